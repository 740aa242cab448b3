"""Jobs, on both clients, against a real server."""

import datetime as dt
import threading
import time

import grpc
import numpy as np
import pytest

import forebay_client
from forebay.v1 import job_pb2
from forebay_client import JobState, Webhook
from tests.clients.job_service import QUEUE_FULL, UNAVAILABLE

ROW = np.array([[1.0, 2.0]], np.float32)
UTC = dt.UTC
BORN = dt.datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


def test_a_job_is_handed_over_and_fetched(client):
    """The result is what `predict` would have given, with the job."""
    job = client.submit("double", {"x": ROW}, request_id="order-17")
    result = client.result(job)

    assert (job.done, job.model, job.request_id) == (True, "double", "order-17")
    assert result.prediction["y"].tolist() == [[2, 4]]
    assert (result.prediction.version, result.prediction.request_id) == (3, "order-17")
    assert result.job == job == client.job(job) == client.job(job.id)


def test_a_job_is_described_in_types_of_the_language(client, server):
    """States are an enum, instants datetimes, spans timedeltas; what is not yet known is None."""
    job = client.submit("slow", {"x": ROW}, expire_after=dt.timedelta(minutes=1))

    assert job == forebay_client.Job(
        id=f"{1:032x}",
        state=JobState.PENDING,
        model="slow",
        version=0,
        attempt=0,
        request_id=server.jobs.submits[0].request_id,
        create_time=BORN,
        start_time=None,
        end_time=None,
        expire_time=BORN + dt.timedelta(minutes=1),
        purge_time=None,
        jobs_ahead=0,
        estimated_wait=dt.timedelta(milliseconds=250),
    )
    assert not job.done
    server.jobs.touch(job.id, 17)
    job = client.job(job.id)
    assert (job.state, job.done) == (JobState.UNKNOWN, False)
    server.jobs.finish(job.id)
    job = client.job(job.id)
    assert (job.end_time, job.purge_time) == (BORN + dt.timedelta(seconds=5), BORN + dt.timedelta(seconds=86_405))
    assert (job.jobs_ahead, job.estimated_wait) == (None, None)
    server.jobs.touch(job.id, 17)  # of a newer server; its end is one all the same
    job = client.job(job.id)
    assert (job.state, job.done) == (JobState.UNKNOWN, True)
    assert client.result(job, timeout=0).job == job


def test_every_option_reaches_the_server(client, server):
    """What is inferred, under which key, for how long, and whom to tell."""
    client.submit(
        "double",
        ROW,
        version="stable",
        outputs=["y"],
        parameters={"k": 3},
        priority="low",
        request_id="key",
        expire_after=60,
        ttl=dt.timedelta(hours=1),
        webhook=Webhook(url="https://example.com/done", secret="main"),
    )
    (sent,) = server.jobs.submits

    assert (sent.request_id, sent.request.request_id, sent.request.version) == ("key", "key", "stable")
    assert (list(sent.request.outputs), sent.request.parameters["k"].int_value, sent.request.priority) == (["y"], 3, 3)
    assert (sent.expire_after.ToTimedelta(), sent.ttl.ToTimedelta()) == (dt.timedelta(0, 60), dt.timedelta(0, 3600))
    assert (sent.webhook.url, sent.webhook.secret) == ("https://example.com/done", "main")


def test_the_key_is_random_unless_given(client, server):
    """128 bits of its own for each job, so that sending one again is safe."""
    client.submit("double", {"x": ROW})
    client.submit("double", {"x": ROW})
    first, second = (submit.request_id for submit in server.jobs.submits)

    assert len(first) == len(second) == 32
    assert first != second


@pytest.mark.parametrize("known", [True, False], ids=["named", "array"])
def test_a_submission_is_repeated_under_its_key(client, server, known):
    """The store was away twice and one acknowledgement was lost: there is one job."""
    server.jobs.refusals = [UNAVAILABLE, UNAVAILABLE]
    server.jobs.lost_answers = 1
    job = client.submit("double", {"x": ROW} if known else ROW)

    assert [submit.request_id for submit in server.jobs.submits] == [job.request_id] * 4
    assert list(server.jobs.jobs) == [job.id]


def test_a_submission_is_given_up_at_its_deadline(client, server):
    """The caller hears what the server said last, as soon as the next try would be too late."""
    server.jobs.refusals = [UNAVAILABLE, (*UNAVAILABLE[:3], 30.0)]
    with pytest.raises(forebay_client.StoreUnavailable):
        client.submit("double", {"x": ROW}, deadline=20)

    assert len(server.jobs.submits) == 2


def test_what_may_not_be_repeated_is_not(client, server):
    """A full queue is the caller's to judge, and a reused key his fault."""
    server.jobs.refusals = [QUEUE_FULL]
    with pytest.raises(forebay_client.QueueFull) as caught:
        client.submit("double", {"x": ROW}, request_id="key")
    assert caught.value.retry_delay == 0.25
    client.submit("double", {"x": ROW}, request_id="key")
    with pytest.raises(forebay_client.JobKeyReused) as caught:
        client.submit("double", {"x": ROW + 1}, request_id="key")
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.ALREADY_EXISTS, "JOB_KEY_REUSED")
    assert len(server.jobs.submits) == 3


def test_waiting_ends_when_the_job_does(client, server):
    """One call, which the server answers when the job has finished."""
    job = client.submit("slow", {"x": ROW})
    threading.Timer(0.2, server.jobs.finish, [job.id]).start()
    result = client.result(job.id)

    assert result.prediction["y"].tolist() == [[2, 4]]
    (asked,) = server.jobs.results
    assert asked.wait.seconds == 60
    assert 69 < server.jobs.remaining[0] < 71


def test_looking_once(client, server):
    """`timeout=0` does not wait, and tells how the job stands."""
    job = client.submit("slow", {"x": ROW})
    with pytest.raises(forebay_client.JobNotFinished, match=f"job {job.id} is PENDING") as caught:
        client.result(job, timeout=0)
    assert caught.value.job == job
    assert not server.jobs.results[0].HasField("wait")
    server.jobs.finish(job.id)
    assert client.result(job, timeout=0).job.state is JobState.SUCCEEDED


def test_waiting_has_an_end(client):
    """A job that does not finish in time may do so later."""
    job = client.submit("slow", {"x": ROW})
    start = time.monotonic()
    with pytest.raises(forebay_client.JobNotFinished):
        client.result(job, timeout=0.3)
    assert time.monotonic() - start >= 0.3


def test_a_server_that_is_too_busy_to_wait_is_not_pestered(client, server):
    """It answers at once; it is asked less and less often."""
    server.jobs.busy = True
    job = client.submit("slow", {"x": ROW})
    with pytest.raises(forebay_client.JobNotFinished):
        client.result(job, timeout=1)
    assert 3 <= len(server.jobs.results) <= 8


@pytest.mark.parametrize(
    ("value", "error", "code"),
    [
        (-1, forebay_client.QueueFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (-2, forebay_client.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
        (-3, forebay_client.InternalError, grpc.StatusCode.INTERNAL),
    ],
)
def test_a_jobs_own_error_is_raised(client, value, error, code):
    """As the exception of its reason, with the job."""
    job = client.submit("double", {"x": np.array([[value, 0]], np.float32)})
    with pytest.raises(error) as caught:
        client.result(job)

    assert (job.state, caught.value.job, caught.value.code) == (JobState.FAILED, job, code)


def test_a_cancelled_and_an_expired_job_have_no_result(client, server):
    """Each its exception; cancelling what has ended changes nothing."""
    job = client.submit("slow", {"x": ROW})
    assert client.cancel(job).state is JobState.CANCELLED
    with pytest.raises(forebay_client.JobCancelled) as cancelled:
        client.result(job)
    late = client.submit("slow", {"x": ROW})
    server.jobs.finish(late.id, job_pb2.JOB_STATE_EXPIRED)
    with pytest.raises(forebay_client.JobExpired) as expired:
        client.result(late)

    assert (cancelled.value.job.id, cancelled.value.code) == (job.id, grpc.StatusCode.CANCELLED)
    assert (expired.value.job.id, expired.value.reason) == (late.id, "DEADLINE_EXPIRED")
    assert client.cancel(late.id).state is JobState.EXPIRED


def test_an_unknown_job_is_not_found(client):
    """By whatever method."""
    for ask in (client.result, client.job, client.cancel, lambda job: list(client.watch(job))):
        with pytest.raises(forebay_client.JobNotFound):
            ask("0" * 32)


def test_watching_tells_each_change(client, server):
    """Now, at each change, and no more after the end."""
    job = client.submit("slow", {"x": ROW})
    states = []
    watching = iter(client.watch(job))
    states.append(next(watching).state)
    server.jobs.touch(job.id, job_pb2.JOB_STATE_RUNNING)
    states.append(next(watching).state)
    server.jobs.finish(job.id)
    states.extend(found.state for found in watching)

    assert states == ["PENDING", "RUNNING", "SUCCEEDED"]
    assert server.jobs.watches == 1


def test_watching_has_an_end(client):
    """With the job as it was told last."""
    job = client.submit("slow", {"x": ROW})
    watching = iter(client.watch(job, timeout=0.3))
    assert next(watching) == job
    with pytest.raises(forebay_client.JobNotFinished) as caught:
        next(watching)
    assert caught.value.job == job


def test_waiting_and_watching_outlive_the_server(client, server):
    """It goes away, and is back after a while; nothing is told twice."""
    job = client.submit("slow", {"x": ROW})
    seen = []
    watcher = threading.Thread(target=lambda: seen.extend(client.watch(job)))
    watcher.start()

    def restart() -> None:
        server.stop()
        time.sleep(0.5)
        server.restart()
        server.jobs.finish(job.id)

    restarting = threading.Timer(0.2, restart)
    restarting.start()
    result = client.result(job)
    watcher.join()
    restarting.join()

    assert result.prediction["y"].tolist() == [[2, 4]]
    assert [found.state for found in seen] == ["PENDING", "SUCCEEDED"]
    assert server.jobs.watches > 1


def test_jobs_are_listed_over_all_pages(client, server):
    """The newest first; by state and by model."""
    jobs = [client.submit(model, {"x": ROW}) for model in ("double", "slow", "double", "echo", "slow")]

    assert list(client.jobs(page_size=2)) == jobs[::-1]
    assert list(client.jobs(states=["PENDING"])) == [jobs[4], jobs[1]]
    assert list(client.jobs(states=[JobState.SUCCEEDED], model="double")) == [jobs[2], jobs[0]]
    assert list(client.jobs(model="nobody")) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda client: client.submit("double", {"x": ROW}, ttl=0), "ttl is a positive number of seconds, not 0"),
        (lambda client: client.submit("double", {"x": ROW}, expire_after=dt.timedelta(-1)), "expire_after is a"),
        (lambda client: client.submit("double", {"x": ROW}, deadline=0), "a deadline is a positive number"),
        (lambda client: client.result("x", timeout=-1), "a timeout is a number of seconds from 0 on"),
        (lambda client: client.watch("x", timeout=float("nan")), "a timeout is a number of seconds from 0 on"),
        (lambda client: client.jobs(states=["DONE"]), "'DONE' is not a valid JobState"),
        (lambda client: client.jobs(page_size=0), "a page holds 1 to 1000 jobs, not 0"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(client, server, call, message):
    """At the call itself, not at the first step of an iterator."""
    with pytest.raises(ValueError, match=message):
        call(client)
    assert server.jobs.submits == server.jobs.results == []


def test_a_server_without_jobs_does_not_support_them(surface, make_server):
    """It has no such service."""
    client = surface(make_server(keeps_jobs=False).address)
    with pytest.raises(forebay_client.Unsupported):
        client.submit("double", {"x": ROW})
    client.close()
