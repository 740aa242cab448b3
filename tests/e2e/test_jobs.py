"""Durable jobs, as callers see them: a real server over real sockets, SQLite on disk, generated stubs."""

import signal
import time

import grpc
import numpy as np
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2

from forebay.v1 import error_pb2, inference_pb2, job_pb2, job_service_pb2
from forebay_server.config.tree import (
    BatchingConfig,
    EngineConfig,
    ExposureConfig,
    JobsConfig,
    LimitsConfig,
    ModelConfig,
)
from tests.serving import FRONT_ENDS, NATIVE, array_of, details_of, request_of, row, synthetic, unpack
from tests.waiting import eventually

Code = grpc.StatusCode
any_front_end = pytest.mark.parametrize("front_end", FRONT_ENDS[:1] if NATIVE else FRONT_ENDS[1:], indirect=True)
"""For what has nothing to do with the front end."""

PENDING, RUNNING, SUCCEEDED, FAILED, CANCELLED, EXPIRED = range(1, 7)
NOWHERE = "0123456789abcdef0123456789abcdef"


def seconds(value):
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(round(value * 1e9))
    return duration


class Jobs:
    """One caller of a server's jobs, and what tests say often."""

    def __init__(self, caller, metadata=None):
        self.caller = caller
        self.stub = caller.jobs
        self.metadata = metadata

    def submit(self, request, *, timeout=20.0, expire_after=None, ttl=None, **fields):
        message = job_service_pb2.SubmitRequest(request=request, **fields)
        if expire_after is not None:
            message.expire_after.CopyFrom(seconds(expire_after))
        if ttl is not None:
            message.ttl.CopyFrom(seconds(ttl))
        return self.stub.Submit(message, timeout=timeout, metadata=self.metadata).job

    def result(self, job_id, wait=0.0, *, timeout=30.0):
        message = job_service_pb2.ResultRequest(id=job_id, wait=seconds(wait))
        return self.stub.Result(message, timeout=timeout, metadata=self.metadata)

    def outcome(self, job_id):
        """What came of it, when that is known."""
        response = self.result(job_id, 25.0)
        assert response.job.state in (SUCCEEDED, FAILED, CANCELLED, EXPIRED), response
        return response

    def watch(self, job_id, *, timeout=30.0):
        return self.stub.WatchJob(job_service_pb2.WatchJobRequest(id=job_id), timeout=timeout, metadata=self.metadata)

    def cancel(self, job_id):
        return self.stub.CancelJob(job_service_pb2.CancelJobRequest(id=job_id), timeout=20, metadata=self.metadata).job

    def list(self, **fields):
        return self.stub.ListJobs(job_service_pb2.ListJobsRequest(**fields), timeout=20, metadata=self.metadata)


def refused(call, code, reason, *fields):
    """The error that a call must end with; the fields that it names; its details by kind."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    found_code, found_reason, details = details_of(caught.value)
    assert (found_code, found_reason) == (code, reason), caught.value
    assert f"ERROR_REASON_{reason}" in error_pb2.ErrorReason.keys()  # noqa: SIM118  # not a dictionary
    by_kind = {type(detail): detail for detail in details}
    named = by_kind.get(error_details_pb2.BadRequest, error_details_pb2.BadRequest()).field_violations
    assert [violation.field for violation in named] == list(fields)
    return by_kind


@pytest.fixture
def offer(serve, call, tmp_path):
    """Starts a server with jobs in a file; gives it and a caller."""

    def start(*models, **sections):
        jobs = JobsConfig(**{"store": str(tmp_path / "jobs.db"), **sections.pop("jobs", {})})
        server = serve(*(models or [synthetic()]), jobs=jobs, **sections)
        return server, Jobs(call(server))

    return start


GATE = """
import os
import time

from forebay_server.engines.python import model


@model(inputs={"x": ("FP32", (-1, 4))}, outputs={"y": ("FP32", (-1, 4))})
class Gate:
    def infer(self, x):
        time.sleep(0.02)  # what it is known to take, so few jobs are claimed at a time
        if x[0, 0] == 777:
            while not os.path.exists(GO):
                time.sleep(0.002)
        elif x[0, 0] == 13:
            raise ValueError("SECRET")
        return x
"""


class Gate:
    """A model of one row a batch, in which rows of 777 keep the only instance busy until `open`; those of 13 fail."""

    def __init__(self, folder):
        self._go = folder / "go"
        module = folder / "e2e_gate.py"
        module.write_text(GATE.replace("GO", repr(str(self._go))))
        self.path = f"python:{module}:Gate"
        self.model = ModelConfig(
            name="model",
            path=self.path,
            batching=BatchingConfig(max_batch_size=1, check_rows=False),
            engine=EngineConfig(run="worker"),
        )

    def open(self):
        """Lets the rows go."""
        self._go.touch()

    def close(self):
        """Later ones wait again."""
        self._go.unlink()

    def shut(self, jobs, name="model"):
        """Submits a job that keeps the instance busy, and waits until it does."""
        job_id = jobs.submit(request_of(name, row(777))).id
        eventually(lambda: jobs.result(job_id).job.state == RUNNING, "it runs")
        return job_id


@pytest.fixture
def gate(tmp_path):
    gate = Gate(tmp_path)
    yield gate
    gate.open()  # or the server would wait for it


# --- Submit and Result ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "fields"),
    [
        (1, {}),
        (3, {"request_id": "mine", "priority": 1}),
        (300, {"outputs": ["y"]}),
        (2, {"readable": True, "version": "1"}),
        (0, {"request_id": "none"}),
    ],
)
def test_the_result_is_what_predict_gives(offer, rows, fields):
    """Byte for byte; rows beyond a batch, readable answers and no rows at all included."""
    _, jobs = offer()
    request = request_of("model", np.arange(rows * 4, dtype=np.float32).reshape(rows, 4), **fields)

    job = jobs.submit(request)
    response = jobs.outcome(job.id)

    assert response.response == jobs.caller.inference.Predict(request, timeout=20)
    assert job.state == PENDING
    assert (response.job.state, response.job.version, response.job.attempt) == (SUCCEEDED, 1, 1)
    assert job.create_time == response.job.create_time
    assert response.job.start_time.ToNanoseconds() <= response.job.end_time.ToNanoseconds()
    kept = response.job.purge_time.ToNanoseconds() - response.job.end_time.ToNanoseconds()
    assert abs(kept - 86_400 * 10**9) < 10**6


def test_many_jobs_of_many_callers(offer, together):
    """Each gets its own answer, however they are mixed with calls."""
    _, jobs = offer()

    def one(number):
        if number % 4 == 0:
            return array_of(jobs.caller.predict("model", row(number)).outputs[0])[0, 0]
        response = jobs.outcome(jobs.submit(request_of("model", row(number))).id)
        return array_of(response.response.outputs[0])[0, 0]

    assert together(one, range(100)) == list(range(100))


def test_the_error_of_a_job_is_its_outcome(offer):
    """A model that fails, or refuses the input: the calls succeed, the job has failed."""
    _, jobs = offer(synthetic(poison=13, reject=14))

    failed = jobs.outcome(jobs.submit(request_of("model", row(13))).id)
    rejected = jobs.outcome(jobs.submit(request_of("model", row(14))).id)

    assert (failed.job.state, failed.error.code, unpack(failed.error)[0]) == (FAILED, 13, "INTERNAL")
    assert (rejected.job.state, rejected.error.code, unpack(rejected.error)[0]) == (FAILED, 3, "INPUT_REJECTED")
    assert [job.id for job in jobs.list(states=[FAILED]).jobs] == [rejected.job.id, failed.job.id]


def test_a_result_waits_no_longer_than_its_caller(offer, gate):
    """`wait` beyond the deadline is answered before it, with the job as it is; a short `wait` ends after it."""
    _, jobs = offer(gate.model)
    job = gate.shut(jobs)

    start = time.monotonic()
    response = jobs.result(job, 100.0, timeout=1.0)
    assert 0.5 < time.monotonic() - start < 1.0
    assert response.job.state == RUNNING
    assert response.WhichOneof("outcome") is None

    start = time.monotonic()
    assert jobs.result(job, 0.3, timeout=20).job.state == RUNNING
    assert 0.25 < time.monotonic() - start < 1.0

    waiting = jobs.stub.Result.future(job_service_pb2.ResultRequest(id=job, wait=seconds(20)), timeout=30)
    time.sleep(0.05)
    gate.open()
    start = time.monotonic()
    assert waiting.result().job.state == SUCCEEDED
    assert time.monotonic() - start < 1.0


def test_what_submit_refuses(offer):
    """All that `Predict` refuses, by the same names below `request`, and its own fields."""
    _, jobs = offer()
    good = request_of("model", row(1))
    bad = request_of("model", row(1), name="z", outputs=["q"])

    def invalid(*fields, **parts):
        message = job_service_pb2.SubmitRequest(**{"request": good, **parts})
        refused(lambda: jobs.stub.Submit(message, timeout=20), Code.INVALID_ARGUMENT, "INVALID_TENSOR", *fields)

    invalid("request.inputs[0].name", "request.inputs", "request.outputs[0]", request=bad)
    invalid("request.model", request=inference_pb2.PredictRequest())
    invalid("request_id", request_id="k" * 129)
    invalid("expire_after", expire_after=seconds(-1))
    invalid("expire_after", "ttl", expire_after=seconds(10**10), ttl=seconds(0))
    invalid("webhook.url", webhook=job_pb2.Webhook(url="http://127.0.0.1/", secret="s"))
    refused(lambda: jobs.submit(request_of("other", row(1))), Code.NOT_FOUND, "MODEL_NOT_FOUND")
    refused(lambda: jobs.submit(request_of("model", row(1), version="2")), Code.NOT_FOUND, "VERSION_NOT_FOUND")
    refused(lambda: jobs.result(NOWHERE, -1.0), Code.INVALID_ARGUMENT, "INVALID_TENSOR", "wait")
    wrong = {"states": [99], "page_size": -1, "model": "a b"}
    named = ("states[0]", "page_size", "model")
    refused(lambda: jobs.list(**wrong), Code.INVALID_ARGUMENT, "INVALID_TENSOR", *named)
    refused(lambda: jobs.list(page_token="x"), Code.INVALID_ARGUMENT, "INVALID_TENSOR", "page_token")
    assert list(jobs.list().jobs) == []


@any_front_end
def test_models_that_are_not_ready(serve, call, tmp_path):
    """UNAVAILABLE while it loads, FAILED_PRECONDITION when that has failed."""
    (tmp_path / "e2e_jobs_loading.py").write_text(
        "import os, time\nfrom forebay_server.engines.python import model\n"
        "@model(inputs={'x': ('FP32', (-1, 4))}, outputs={'y': ('FP32', (-1, 4))})\n"
        "class Slow:\n"
        "    def load(self):\n"
        f"        while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
        "        raise ValueError('broken')\n"
        "    def infer(self, x):\n        return x\n"
    )
    path = f"python:{tmp_path / 'e2e_jobs_loading.py'}:Slow"
    server = serve(ModelConfig(name="model", path=path), jobs=JobsConfig(store=str(tmp_path / "jobs.db")), ready=False)
    jobs = Jobs(call(server))
    refused(lambda: jobs.submit(request_of("model", row(1))), Code.UNAVAILABLE, "MODEL_LOADING")
    (tmp_path / "go").touch()
    assert not server.wait_ready(20)
    refused(lambda: jobs.submit(request_of("model", row(1))), Code.FAILED_PRECONDITION, "MODEL_FAILED")


@any_front_end
def test_an_engine_that_is_lost(offer):
    """UNAVAILABLE, as for `Predict`."""
    _, jobs = offer(synthetic(dies=13))
    jobs.caller.fails(request_of("model", row(13)))
    eventually(lambda: not jobs.caller.serving("model/model"), "the model is lost")
    refused(lambda: jobs.submit(request_of("model", row(1))), Code.UNAVAILABLE, "ENGINE_UNAVAILABLE")


FREE = """
from forebay_server.engines.python import model


@model(inputs={"x": ("FP32", (-1, 4))}, outputs={"y": ("FP32", (-1, -1))})
def free(x):
    return x
"""
"""A model of whose outputs nobody knows the size before."""


def test_messages_that_are_too_large(offer, front_end, tmp_path):
    """A request over the limit is refused, and one whose outcome is known to be; another such outcome can't be told."""
    module = tmp_path / "e2e_free.py"
    module.write_text(FREE)
    free = ModelConfig(name="free", path=f"python:{module}:free")
    _, jobs = offer(synthetic(), free, limits=LimitsConfig(max_receive_mib=0.01, max_send_mib=0.004))
    with pytest.raises(grpc.RpcError) as caught:
        jobs.submit(request_of("model", row(1, 700)))
    assert caught.value.code() == Code.RESOURCE_EXHAUSTED
    if front_end == "native":  # grpcio refuses it by itself, without details
        code, reason, details = details_of(caught.value)
        assert (code, reason, len(details)) == (Code.RESOURCE_EXHAUSTED, "BYTES_LIMIT", 1)

    refused(lambda: jobs.submit(request_of("model", row(1, 300))), Code.RESOURCE_EXHAUSTED, "BYTES_LIMIT")
    job = jobs.submit(request_of("free", row(1, 300)))
    assert [told.job.state for told in jobs.watch(job.id)][-1] == SUCCEEDED
    details = refused(lambda: jobs.result(job.id), Code.RESOURCE_EXHAUSTED, "BYTES_LIMIT")
    assert error_details_pb2.RetryInfo not in details
    assert jobs.outcome(jobs.submit(request_of("model", row(1, 200))).id).HasField("response")


@any_front_end
def test_too_many_jobs_wait(offer, gate):
    """QUEUE_FULL with RetryInfo; what was taken in runs."""
    _, jobs = offer(gate.model, jobs={"max_pending": 3})
    taken = [gate.shut(jobs)]

    def fill():
        while len(taken) < 30:
            taken.append(jobs.submit(request_of("model", row(len(taken) + 20))).id)

    details = refused(fill, Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")

    assert details[error_details_pb2.RetryInfo].retry_delay.ToMilliseconds() >= 1000
    assert len(taken) >= 4
    gate.open()
    assert [jobs.outcome(job_id).job.state for job_id in taken] == [SUCCEEDED] * len(taken)
    assert jobs.submit(request_of("model", row(1))).id


# --- Idempotency ------------------------------------------------------------------------------------------------------


def test_one_key_a_hundred_times_at_once(offer, call):
    """One job, the same id for all, run once; another payload is refused."""
    server, jobs = offer()
    callers = [call(server) for _ in range(4)]
    message = job_service_pb2.SubmitRequest(request=request_of("model", row(5)), request_id="key")

    futures = [callers[number % 4].jobs.Submit.future(message, timeout=20) for number in range(100)]
    ids = {future.result().job.id for future in futures}

    assert len(ids) == 1
    (job_id,) = ids
    assert jobs.outcome(job_id).job.attempt == 1
    assert len(jobs.list().jobs) == 1
    again = jobs.submit(request_of("model", row(5), request_id="other", priority=3), request_id="key")
    assert (again.id, again.state) == (job_id, SUCCEEDED)
    refused(lambda: jobs.submit(request_of("model", row(6)), request_id="key"), Code.ALREADY_EXISTS, "JOB_KEY_REUSED")


# --- Watching and cancelling ------------------------------------------------------------------------------------------


def test_a_watch_sees_each_state(offer, gate):
    """PENDING behind others, RUNNING, SUCCEEDED, and the end; a finished job is told once."""
    _, jobs = offer(gate.model)
    first = gate.shut(jobs)
    for number in range(12):
        jobs.submit(request_of("model", row(number + 20)))
    job = jobs.submit(request_of("model", row(99)))

    watch = jobs.watch(job.id)
    seen = [next(watch).job]
    gate.open()
    seen += [told.job for told in watch]

    assert [told.state for told in seen] == [PENDING, RUNNING, SUCCEEDED]
    assert seen[0].jobs_ahead > 0
    assert seen[0].HasField("estimated_wait")
    assert (seen[1].attempt, seen[1].HasField("start_time"), seen[1].jobs_ahead) == (1, True, 0)
    assert seen[2] == jobs.result(job.id).job
    assert [told.job for told in jobs.watch(first)] == [jobs.result(first).job]


def test_cancel_in_every_state(offer, gate):
    """What has not finished is cancelled, also while it runs, and has no outcome; what has finished stays as it is."""
    _, jobs = offer(gate.model)
    failed = jobs.submit(request_of("model", row(13))).id
    assert jobs.outcome(failed).job.state == FAILED
    done = jobs.submit(request_of("model", row(1))).id
    assert jobs.outcome(done).job.state == SUCCEEDED
    running = gate.shut(jobs)
    others = [jobs.submit(request_of("model", row(number + 20))).id for number in range(9)]
    pending = others.pop()
    expired = jobs.submit(request_of("model", row(9)), expire_after=0.05).id
    assert jobs.outcome(expired).job.state == EXPIRED
    watch = jobs.watch(running)
    assert next(watch).job.state == RUNNING
    start = time.monotonic()

    assert jobs.cancel(pending).state == CANCELLED
    assert jobs.cancel(running).state == CANCELLED

    assert [told.job.state for told in watch] == [CANCELLED]
    assert time.monotonic() - start < 1.0, "the engine is not waited for"
    for job_id, state in ((failed, FAILED), (done, SUCCEEDED), (pending, CANCELLED), (expired, EXPIRED)):
        before = jobs.result(job_id).job
        assert before.state == state
        assert jobs.cancel(job_id) == before == jobs.cancel(job_id)
    gate.open()
    assert [jobs.outcome(job_id).job.state for job_id in others] == [SUCCEEDED] * 8
    for job_id, attempt in ((pending, 0), (running, 1)):
        response = jobs.result(job_id)
        assert (response.job.state, response.job.attempt) == (CANCELLED, attempt)
        assert response.WhichOneof("outcome") is None


def test_a_job_that_nobody_needs_any_more(offer, gate):
    """EXPIRED, with DEADLINE_EXPIRED as its outcome, for those who wait for it and those who come later."""
    _, jobs = offer(gate.model)
    gate.shut(jobs)
    for number in range(6):
        jobs.submit(request_of("model", row(number + 20)))
    job = jobs.submit(request_of("model", row(9)), expire_after=0.3)
    lasts = job.expire_time.ToNanoseconds() - job.create_time.ToNanoseconds()
    assert abs(lasts - 300_000_000) <= 1000

    response = jobs.outcome(job.id)

    assert (response.job.state, response.job.attempt) == (EXPIRED, 0)
    assert (response.error.code, unpack(response.error)[0]) == (4, "DEADLINE_EXPIRED")
    assert jobs.result(job.id) == response


@any_front_end
def test_an_outcome_that_is_kept_no_longer(offer):
    """NOT_FOUND after its time to live, which is cut to the operator's; its key is free again."""
    _, jobs = offer(jobs={"max_ttl_s": 0.4})
    job = jobs.submit(request_of("model", row(1)), ttl=3600.0, request_id="key")
    assert jobs.outcome(job.id).job.state == SUCCEEDED

    def gone():
        try:
            jobs.result(job.id)
        except grpc.RpcError as error:
            return details_of(error)[1] == "JOB_NOT_FOUND"
        return False

    eventually(gone, "it is deleted")
    assert list(jobs.list().jobs) == []
    assert jobs.submit(request_of("model", row(2)), request_id="key").id != job.id


# --- Isolation --------------------------------------------------------------------------------------------------------


def test_jobs_of_others_are_not_there(offer, call):
    """NOT_FOUND everywhere, in the same words as an id that nobody has; not listed; keys are each tenant's own."""
    server, _ = offer(server={"public": ExposureConfig(address="127.0.0.1:0", trusted=True)})
    caller = call(server)
    ours, theirs = (Jobs(caller, [("x-forebay-tenant", name)]) for name in ("ours", "theirs"))
    job = ours.submit(request_of("model", row(1)), request_id="key").id

    texts = set()
    asks = (theirs.result, lambda one: theirs.result(one, 5.0), lambda one: list(theirs.watch(one)), theirs.cancel)
    for job_id in (job, NOWHERE, "", "x" * 32, job.upper(), job[:-1]):
        for ask in asks:
            with pytest.raises(grpc.RpcError) as caught:
                ask(job_id)
            assert details_of(caught.value)[:2] == (Code.NOT_FOUND, "JOB_NOT_FOUND")
            texts.add(caught.value.details())
    assert texts == {"there is no such job"}
    assert list(theirs.list().jobs) == []
    assert [listed.id for listed in ours.list().jobs] == [job]
    assert theirs.submit(request_of("model", row(2)), request_id="key").id != job
    assert ours.outcome(job).job.state == SUCCEEDED


@any_front_end
def test_pages(offer):
    """The newest first, each once, by state; a token is good for its own question only."""
    _, jobs = offer(synthetic(), synthetic("other"))
    ids = [jobs.submit(request_of("model" if number % 3 else "other", row(number))).id for number in range(25)]
    for job_id in ids:
        jobs.outcome(job_id)

    found, token = [], ""
    while True:
        page = jobs.list(page_size=10, page_token=token, states=[SUCCEEDED])
        found += [job.id for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
        assert len(page.jobs) == 10
        refused(lambda: jobs.list(page_token=token), Code.INVALID_ARGUMENT, "INVALID_TENSOR", "page_token")  # noqa: B023  # called at once

    assert found == ids[::-1]
    assert [job.id for job in jobs.list(model="other").jobs] == ids[::-3]
    assert list(jobs.list(states=[PENDING]).jobs) == []


# --- Waiting ----------------------------------------------------------------------------------------------------------


def test_waiting_calls_do_not_keep_predict_from_its_connection(offer, gate):
    """300 calls wait on the connection, a quarter of its streams in the server; `Predict` on it is as quick as ever."""
    _, jobs = offer(gate.model, synthetic("quick"))
    job = gate.shut(jobs)
    message = job_service_pb2.ResultRequest(id=job, wait=seconds(20))
    waiting = [jobs.stub.Result.future(message, timeout=30) for _ in range(300)]
    eventually(lambda: sum(future.done() for future in waiting) >= 44, "those beyond 256 are answered at once")
    time.sleep(0.2)
    assert sum(future.done() for future in waiting) == 44

    for number in range(50):
        start = time.monotonic()
        assert jobs.caller.predict("quick", row(number)).version == 1
        assert time.monotonic() - start < 0.5

    assert jobs.cancel(job).state == CANCELLED
    states = [future.result().job.state for future in waiting]
    assert (states.count(RUNNING), states.count(CANCELLED)) == (44, 256)


def test_waiting_calls_are_bounded_per_tenant(offer, gate):
    """Watches beyond are refused, waits beyond are answered at once; one that goes makes room."""
    _, jobs = offer(gate.model, jobs={"max_waiting": 2})
    job = gate.shut(jobs)
    watches = [jobs.watch(job) for _ in range(2)]
    for watch in watches:
        next(watch)

    details = refused(lambda: list(jobs.watch(job)), Code.RESOURCE_EXHAUSTED, "TENANT_QUOTA")
    assert details[error_details_pb2.RetryInfo].retry_delay.ToMilliseconds() == 1000
    start = time.monotonic()
    assert jobs.result(job, 10.0).WhichOneof("outcome") is None
    assert time.monotonic() - start < 1.0

    watches[0].cancel()

    def room():
        watch = jobs.watch(job)
        try:
            next(watch)
        except grpc.RpcError:
            return False
        watch.cancel()
        return True

    eventually(room, "room for another watch")


# --- The life of the server -------------------------------------------------------------------------------------------


def test_what_is_offered(serve, call, tmp_path):
    """Without a store there is no such service; with one, health and reflection know it."""
    without = call(serve(synthetic()))
    with pytest.raises(grpc.RpcError) as caught:
        without.jobs.ListJobs(job_service_pb2.ListJobsRequest(), timeout=5)
    assert caught.value.code() == Code.UNIMPLEMENTED
    assert not without.serving("forebay.v1.JobService")

    caller = call(serve(synthetic(), jobs=JobsConfig(store="memory:")))
    assert caller.serving("forebay.v1.JobService")
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc  # noqa: PLC0415  # for this test alone

    stub = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
    (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5)
    assert "forebay.v1.JobService" in {one.name for one in answer.list_services_response.service}


@any_front_end
def test_a_kill_and_a_restart(process, call, gate):
    """Outcomes are still there, and what had not run, or was running, runs; nothing that was acknowledged is lost."""
    arguments = (gate.path, "--name", "model", "--max-batch-size", "1", "--run", "worker", "--jobs", "jobs.db")
    first = process(*arguments).ready()
    jobs = Jobs(call(first))
    done = jobs.submit(request_of("model", row(1)), request_id="done").id
    before = jobs.outcome(done)
    running = gate.shut(jobs)
    ids = {jobs.submit(request_of("model", row(value)), request_id=f"k{value}").id: value for value in range(20, 32)}
    first.popen.kill()
    first.wait()
    gate.open()

    second = process(*arguments).ready()
    jobs = Jobs(call(second))

    assert jobs.result(done) == before
    for job_id, value in {running: 777, **ids}.items():
        response = jobs.outcome(job_id)
        assert np.array_equal(array_of(response.response.outputs[0]), row(value))
    assert jobs.result(running).job.attempt == 2
    for job_id, value in ids.items():
        assert jobs.submit(request_of("model", row(value)), request_id=f"k{value}").id == job_id
    assert {job.id for job in jobs.list().jobs} == {done, running, *ids}


def test_a_drain_loses_nothing(process, call, gate):
    """What runs is finished, what waits stays for the next server; calls that wait are answered, the end is clean."""
    arguments = (gate.path, "--name", "model", "--max-batch-size", "1", "--run", "worker", "--jobs", "jobs.db")
    first = process(*arguments).ready()
    jobs = Jobs(call(first))
    running = gate.shut(jobs)
    ids = {jobs.submit(request_of("model", row(value))).id: value for value in range(20, 28)}
    last = list(ids)[-1]
    watch = jobs.watch(last)
    assert next(watch).job.state == PENDING
    waiting = jobs.stub.Result.future(job_service_pb2.ResultRequest(id=last, wait=seconds(20)), timeout=25)
    time.sleep(0.1)

    first.signal(signal.SIGTERM)

    with pytest.raises(grpc.RpcError) as caught:
        list(watch)
    assert details_of(caught.value)[:2] == (Code.UNAVAILABLE, "DRAINING")
    assert waiting.result().job.state == PENDING
    time.sleep(0.2)
    assert first.popen.poll() is None, "it waits for what runs"
    gate.open()
    assert first.wait() == 0, first.stderr
    assert first.events("stopped")[0]["unanswered"] == 0
    closed = first.events("job_store_closed")[0]
    assert 0 < closed["groups"] <= closed["operations"]

    second = process(*arguments).ready()
    jobs = Jobs(call(second))
    assert jobs.result(running).job.state == SUCCEEDED, "its outcome was stored before the end"
    for job_id, value in {running: 777, **ids}.items():
        response = jobs.outcome(job_id)
        assert np.array_equal(array_of(response.response.outputs[0]), row(value))
        assert response.job.attempt == 1, "what was given back does not count"


def test_calls_while_the_server_drains(offer, gate):
    """On a connection that still lives, new jobs are refused; questions and cancellations are answered."""
    server, jobs = offer(gate.model)
    running = gate.shut(jobs)
    waiting = [jobs.submit(request_of("model", row(value))).id for value in range(20, 28)][-1]

    server._dispatcher.call(server._jobs.drain)  # the wire tells connections to go away at the same moment

    refused(lambda: jobs.submit(request_of("model", row(1))), Code.UNAVAILABLE, "DRAINING")
    refused(lambda: list(jobs.watch(waiting)), Code.UNAVAILABLE, "DRAINING")
    start = time.monotonic()
    assert jobs.result(waiting, 10.0).job.state == PENDING
    assert time.monotonic() - start < 1.0
    assert jobs.cancel(waiting).state == CANCELLED
    assert [job.state for job in jobs.list().jobs] == [CANCELLED, *[PENDING] * 7, RUNNING]
    gate.open()
    eventually(lambda: jobs.result(running).job.state == SUCCEEDED, "what runs is finished")
    assert server.drain() == 0


@any_front_end
def test_a_store_that_another_server_has(process, call):
    """One sentence and code 1; the other one goes on."""
    first = process("synthetic:", "--jobs", "jobs.db").ready()
    second = process("synthetic:", "--jobs", "jobs.db")
    assert second.wait() == 1
    assert any(line.startswith("forebay: ") and "jobs.db is in use by another process" in line for line in second.lines)
    jobs = Jobs(call(first))
    assert jobs.outcome(jobs.submit(request_of("synthetic", row(1))).id).job.state == SUCCEEDED


@any_front_end
def test_a_store_that_is_away(serve, call, postgres_alone):
    """Down at the start, and later: jobs are NOT_SERVING and UNAVAILABLE, calls are not disturbed, and it heals."""
    url = postgres_alone.url()
    postgres_alone.stop()
    server = serve(synthetic(), jobs=JobsConfig(store=url, store_timeout_s=1.0))
    jobs = Jobs(call(server))
    name = "forebay.v1.JobService"

    def away():
        eventually(lambda: not jobs.caller.serving(name), "jobs are not served")
        assert jobs.caller.serving()
        assert jobs.caller.serving("forebay.v1.InferenceService")
        start = time.monotonic()
        refused(lambda: jobs.submit(request_of("model", row(1))), Code.UNAVAILABLE, "STORE_UNAVAILABLE")
        assert time.monotonic() - start < 0.5, "at once, as it is known"
        refused(lambda: jobs.result(NOWHERE), Code.UNAVAILABLE, "STORE_UNAVAILABLE")
        for number in range(20):
            start = time.monotonic()
            jobs.caller.predict("model", row(number))
            assert time.monotonic() - start < 0.5

    away()
    postgres_alone.start()
    eventually(lambda: jobs.caller.serving(name), "it heals")
    kept = jobs.submit(request_of("model", row(7))).id
    assert jobs.outcome(kept).job.state == SUCCEEDED

    postgres_alone.stop(signal.SIGQUIT)
    away()
    postgres_alone.start()
    eventually(lambda: jobs.caller.serving(name), "it heals again")
    assert np.array_equal(array_of(jobs.result(kept).response.outputs[0]), row(7))
    assert jobs.outcome(jobs.submit(request_of("model", row(8))).id).job.state == SUCCEEDED

    postgres_alone.stop()
    away()
    start = time.monotonic()
    assert server.drain() == 0
    assert time.monotonic() - start < 5.0, "a store that is away is not waited for"


@any_front_end
def test_a_server_that_only_takes_jobs_in(serve, call, database):
    """Jobs wait, and it says truly that it serves; another server on the same database runs them, and both answer."""
    front = serve(synthetic(), jobs=JobsConfig(store=database, run=False))
    jobs = Jobs(call(front))
    ids = {jobs.submit(request_of("model", row(value))).id: value for value in range(5)}
    time.sleep(0.3)
    for place, job_id in enumerate(ids):
        job = jobs.result(job_id).job
        assert (job.state, job.attempt, job.jobs_ahead, job.HasField("estimated_wait")) == (PENDING, 0, place, False)
    assert jobs.caller.serving("forebay.v1.JobService")
    assert np.array_equal(array_of(jobs.caller.predict("model", row(7)).outputs[0]), row(7))

    back = serve(synthetic(), jobs=JobsConfig(store=database))

    for job_id, value in ids.items():
        assert np.array_equal(array_of(jobs.outcome(job_id).response.outputs[0]), row(value))
    assert jobs.outcome(jobs.submit(request_of("model", row(9))).id).job.attempt == 1
    assert Jobs(call(back)).result(next(iter(ids))) == jobs.result(next(iter(ids)))


@any_front_end
def test_jobs_that_were_only_taken_in_run_after_a_restart(offer):
    """The same file with the setting as it is by default."""
    first, jobs = offer(jobs={"run": False})
    ids = {jobs.submit(request_of("model", row(value))).id: value for value in range(5)}
    assert jobs.result(next(iter(ids)), 0.3).job.state == PENDING
    assert first.drain() == 0

    _, jobs = offer()

    for job_id, value in ids.items():
        response = jobs.outcome(job_id)
        assert np.array_equal(array_of(response.response.outputs[0]), row(value))
        assert response.job.attempt == 1


@any_front_end
def test_nothing_of_a_payload_is_logged(process, call):
    """Whatever goes wrong."""
    server = process("synthetic:poison=13,shape=?", "--jobs", "jobs.db", "--log-level", "debug").ready()
    jobs = Jobs(call(server))
    secret = np.frombuffer(b"SECRETSECRETSECR", "<f4").reshape(1, 4)
    jobs.outcome(jobs.submit(request_of("synthetic", secret), request_id="key-SECRET").id)
    poisoned = np.concatenate([[[13.0]], secret], axis=1).astype("<f4")
    assert jobs.outcome(jobs.submit(request_of("synthetic", poisoned)).id).job.state == FAILED
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert server.events("internal error") or "error_id" in server.stderr
    assert "SECRET" not in server.stderr


def test_watches_end_with_their_callers(offer, gate):
    """Those that come and go make room for others."""
    server, jobs = offer(gate.model, jobs={"max_waiting": 20})
    job = gate.shut(jobs)
    for _ in range(10):
        watches = [jobs.watch(job) for _ in range(20)]
        for watch in watches:
            assert next(watch).job.state == RUNNING
            watch.cancel()
        eventually(lambda: server._dispatcher.call(server._jobs.in_flight) == 1, "the server has let them go")
