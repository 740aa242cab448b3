"""A job's trace goes from its submission through its run, in whichever process, to its webhook."""

import base64
import signal
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from forebay.v1 import job_pb2, job_service_pb2
from forebay_server.config.tree import JobsConfig, WebhooksConfig
from tests.serving import request_of, row, synthetic
from tests.tracing.conftest import PARENT, PARENT_SPAN, traceparent
from tests.waiting import eventually

SUBMIT = "forebay.v1.JobService/Submit"
SAMPLED = (("traceparent", traceparent()),)


def submit(caller, model="model", *, metadata=SAMPLED, webhook=None):
    """Hands over a job; its id."""
    request = job_service_pb2.SubmitRequest(request=request_of(model, row(1.0)), webhook=webhook)
    return caller.jobs.Submit(request, timeout=10, metadata=metadata).job.id


def finish(caller, job):
    """Waits for a job's end; how it ended."""
    request = job_service_pb2.ResultRequest(id=job)
    request.wait.FromSeconds(10)
    return caller.jobs.Result(request, timeout=20).job.state


def test_a_jobs_spans(collector, serve, call):
    """Submit has the caller as its parent, the run has Submit, the batch has the run, and they are linked."""
    server = serve(synthetic("model"), tracing={"endpoint": collector.endpoint}, jobs=JobsConfig(store="memory:"))
    caller = call(server)
    job = submit(caller)
    assert finish(caller, job) == job_pb2.JOB_STATE_SUCCEEDED
    (submitted,) = collector.received.await_spans(SUBMIT)
    (run,) = collector.received.await_spans("forebay.job")
    (batch,) = collector.received.await_spans("forebay.batch")
    (result,) = collector.received.await_spans("forebay.v1.JobService/Result")

    assert (submitted.trace, submitted.parent, submitted.kind) == (PARENT, PARENT_SPAN, "SERVER")
    assert (run.trace, run.parent, run.kind) == (PARENT, submitted.id, "CONSUMER")
    assert run.attributes["forebay.job.id"] == job
    assert run.attributes["forebay.job.attempt"] == 1
    assert run.attributes["forebay.job.wait.duration"] >= 0
    assert run.links == [batch.identity]
    assert (batch.parent, batch.links) == (run.id, [run.identity])
    assert result.trace != PARENT, "it had no context"


@pytest.mark.parametrize("sampled", [True, False])
def test_a_trace_survives_kill_9(collector, process, call, tmp_path, sampled):
    """A job that is submitted to one process and runs in the next has one trace; unsampled ones have none anywhere."""
    arguments = ("--set", f"jobs.store={tmp_path / 'jobs.db'}", "--set", "jobs.claim_s=1")
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_TRACES_SAMPLER": "parentbased_always_on",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    # The first process has a model that never gets there.
    slow = tmp_path / "slow.toml"
    slow.write_text('[[models]]\npath = "synthetic:"\nname = "model"\nengine.options.hang = 1.0\n')
    fast = tmp_path / "fast.toml"
    fast.write_text('[[models]]\npath = "synthetic:"\nname = "model"\n')
    first = process("--config", str(slow), *arguments, environment=environment).ready()
    metadata = [("traceparent", traceparent(sampled=sampled))]
    caller = call(first)
    job = submit(caller, metadata=metadata)
    if sampled:
        collector.received.await_spans(SUBMIT)
    request = job_service_pb2.ResultRequest(id=job)
    eventually(lambda: caller.jobs.Result(request, timeout=5).job.state == job_pb2.JOB_STATE_RUNNING, "it runs", 20)
    first.signal(signal.SIGKILL)
    first.wait()

    second = process("--config", str(fast), *arguments, environment=environment).ready()
    assert finish(call(second), job) == job_pb2.JOB_STATE_SUCCEEDED
    if not sampled:
        second.signal(signal.SIGTERM)
        second.wait()
        assert collector.received.named("forebay.job") == []
        assert collector.received.named("forebay.model.load"), "it was there to be seen"
        return
    (submitted,) = collector.received.named(SUBMIT)
    (run,) = collector.received.await_spans("forebay.job")
    assert (run.trace, run.parent) == (PARENT, submitted.id)
    assert run.attributes["forebay.job.attempt"] == 2
    assert run.attributes["forebay.job.wait.duration"] > 0


@pytest.fixture
def hook():
    """A receiver of webhooks; what it got, and its port."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            got.append(dict(self.headers.items()))
            self.send_response(500 if len(got) == 1 else 204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield got, server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_webhooks_have_spans_and_pass_the_context_on(collector, serve, call, hook, monkeypatch):
    """Each try is a CLIENT span under the submission, and its receiver can go on with it."""
    got, port = hook
    monkeypatch.setenv("HOOK_SECRET", "whsec_" + base64.b64encode(bytes(range(32))).decode())
    webhooks = WebhooksConfig(
        allow=[f"http://127.0.0.1:{port}"], allow_private=True, secrets={"main": "env:HOOK_SECRET"}
    )
    server = serve(
        synthetic("model"),
        tracing={"endpoint": collector.endpoint, "sampler": "parentbased_always_off"},
        jobs=JobsConfig(store="memory:", webhooks=webhooks),
    )
    caller = call(server)
    webhook = job_pb2.Webhook(url=f"http://127.0.0.1:{port}/done", secret="main")
    job = submit(caller, webhook=webhook)
    spans = collector.received.await_spans("forebay.webhook", 2, 40.0)
    (submitted,) = collector.received.named(SUBMIT)

    assert [span.attributes["http.response.status_code"] for span in spans] == [500, 204]
    assert [span.attributes["forebay.webhook.tries"] for span in spans] == [1, 2]
    assert [span.failed for span in spans] == [True, False]
    assert {(span.trace, span.parent, span.kind) for span in spans} == {(PARENT, submitted.id, "CLIENT")}
    assert spans[0].attributes["forebay.job.id"] == job
    headers = [{key.lower(): value for key, value in each.items()} for each in got]
    assert [each["traceparent"] for each in headers] == [f"00-{span.trace}-{span.id}-01" for span in spans]


def test_an_unsampled_job_tells_its_receiver_nothing(collector, serve, call, hook, monkeypatch):
    """Without a span there is no context to pass on."""
    got, port = hook
    monkeypatch.setenv("HOOK_SECRET", "whsec_" + base64.b64encode(bytes(range(32))).decode())
    webhooks = WebhooksConfig(
        allow=[f"http://127.0.0.1:{port}"], allow_private=True, secrets={"main": "env:HOOK_SECRET"}
    )
    server = serve(
        synthetic("model"),
        tracing={"endpoint": collector.endpoint, "sampler": "always_off"},
        jobs=JobsConfig(store="memory:", webhooks=webhooks),
    )
    webhook = job_pb2.Webhook(url=f"http://127.0.0.1:{port}/done", secret="main")
    submit(call(server), webhook=webhook)
    eventually(lambda: got, "the message has come", 20)

    assert all(key.lower() != "traceparent" for key in got[0])
