"""Webhooks of a real server: what a receiver gets, what callers may ask for, and a death in between."""

import base64
import json
from functools import partial

import grpc
import pytest
from standardwebhooks import Webhook as Verifier

from forebay.v1 import job_pb2
from forebay_server.config.tree import JobsConfig, WebhooksConfig
from tests.e2e.test_jobs import SUCCEEDED, Jobs, any_front_end, refused
from tests.e2e.test_starts import failed
from tests.server.jobs.webhooks.conftest import Receiver
from tests.serving import request_of, row, synthetic
from tests.waiting import eventually

KEY = "whsec_" + base64.b64encode(bytes(range(32))).decode()
Code = grpc.StatusCode


@pytest.fixture
def receiver():
    opened = Receiver()
    yield opened
    opened.close()


@pytest.fixture
def jobs(serve, call, tmp_path, monkeypatch, receiver):
    """A caller of a server that may send messages to the receiver; one of its models always fails."""
    monkeypatch.setenv("HOOK_SECRET", KEY)
    webhooks = WebhooksConfig(
        allow=[f"{receiver.origin}/hooks"], allow_private=True, secrets={"main": "env:HOOK_SECRET"}
    )
    server = serve(
        synthetic(),
        synthetic("broken", failure_rate=1.0),
        jobs=JobsConfig(store=str(tmp_path / "jobs.db"), webhooks=webhooks),
    )
    return Jobs(call(server))


def hook(receiver, path="/hooks/done", secret="main"):
    return job_pb2.Webhook(url=receiver.origin + path, secret=secret)


def test_a_finished_job_is_told(jobs, receiver):
    """Once, signed, whatever its end was, soon after it; a job without a webhook is not told."""
    jobs.outcome(jobs.submit(request_of("model", row(3))).id)
    good = jobs.submit(request_of("model", row(1)), request_id="order-7", webhook=hook(receiver))
    bad = jobs.submit(request_of("broken", row(13)), webhook=hook(receiver))
    eventually(lambda: len(receiver.received) >= 2, "both messages arrive")

    told = {}
    for received in receiver.received:
        assert received.path == "/hooks/done"
        message = Verifier(KEY).verify(received.body, received.headers)
        told[message["data"]["id"]] = message
    assert (told[good.id]["type"], told[bad.id]["type"]) == ("job.succeeded", "job.failed")
    assert told[good.id]["data"]["request_id"] == "order-7"
    assert jobs.outcome(good.id).job.state == SUCCEEDED
    assert len(receiver.received) == 2


def test_what_callers_may_not_ask_for(jobs, receiver):
    """Another target, or a secret that is not there: refused before anything is stored."""
    request = request_of("model", row(1))
    for webhook, field in [
        (hook(receiver, "/other"), "webhook.url"),
        (job_pb2.Webhook(url="http://169.254.169.254/hooks", secret="main"), "webhook.url"),
        (hook(receiver, secret="HOOK_SECRET"), "webhook.secret"),
    ]:
        ask = partial(jobs.submit, request, webhook=webhook)
        refused(ask, Code.INVALID_ARGUMENT, "INVALID_TENSOR", field)
    assert not jobs.list().jobs
    assert not receiver.received


@any_front_end
def test_a_message_survives_kill_9(process, call, receiver, tmp_path):
    """It has not arrived when the server dies; the next server sends it, with the same id."""
    (tmp_path / "forebay.toml").write_text(f"""
[[models]]
path = "synthetic:"

[jobs]
store = "jobs.db"

[jobs.webhooks]
allow = ["{receiver.origin}"]
allow_private = true
secrets = {{ main = "env:HOOK_SECRET" }}
""")
    arguments = {"environment": {"HOOK_SECRET": KEY}}
    receiver.answers.append((503, {}))
    first = process("--config", "forebay.toml", "--set", "log.level=debug", **arguments).ready()
    jobs = Jobs(call(first))
    job = jobs.submit(request_of("synthetic", row(1)), webhook=hook(receiver))
    first.await_event("webhook_undelivered")
    jobs.list()  # the store takes one after the other, so it knows of the first try, or soon will
    first.popen.kill()
    first.wait()
    assert len(receiver.received) == 1

    process("--config", "forebay.toml", **arguments).ready()
    eventually(lambda: len(receiver.received) == 2, "the second try", 60)  # 10, or if the first was not noted 40
    ids = {received.headers["webhook-id"] for received in receiver.received}
    assert ids == {f"msg_{job.id}"}
    assert json.loads(receiver.received[1].body)["data"]["state"] == "SUCCEEDED"


WRONG = [
    ("jobs.webhooks.allow=ftp://example.com", "ftp://example.com"),
    ("jobs.webhooks.secrets.main=env:NOT_THERE", "NOT_THERE"),
]


@any_front_end
@pytest.mark.parametrize(("setting", "word"), WRONG)
def test_wrong_settings_are_told_at_the_start(process, setting, word):
    """One sentence and the code for settings."""
    failed(process("synthetic:", "--jobs", "jobs.db", "--set", setting), 2, word)
