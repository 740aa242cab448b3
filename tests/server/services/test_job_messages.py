"""Jobs as messages, and page tokens."""

import base64

import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from forebay.v1 import inference_pb2, job_pb2, job_service_pb2
from forebay_server.errors import InvalidRequest
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import Found, Job
from forebay_server.services.job_messages import job_part, page_start, page_token, result

JOB = Job(
    id="0123456789abcdef0123456789abcdef",
    tenant="acme",
    sequence=7,
    state=JobState.FAILED,
    model="m",
    version="stable",
    served_version=3,
    priority=1,
    request_id="key",
    attempt=2,
    crashes=1,
    created=1_700_000_000.25,
    started=1_700_000_001.5,
    ended=1_700_000_002.000001,
    expires=1_700_000_003.0,
    purges=1_700_000_004.9999996,
)


def message(**fields):
    base = {"id": JOB.id, "state": 4, "model": "m", "version": 3, "attempt": 2, "request_id": "key"}
    made = job_pb2.Job(**{**base, **fields})
    for name, seconds, nanos in [
        ("create_time", 1_700_000_000, 250_000_000),
        ("start_time", 1_700_000_001, 500_000_000),
        ("end_time", 1_700_000_002, 1000),
        ("expire_time", 1_700_000_003, 0),
        ("purge_time", 1_700_000_005, 0),
    ]:
        getattr(made, name).seconds, getattr(made, name).nanos = seconds, nanos
    return made


def test_every_field_of_a_job():
    """All that a caller may know, and nothing else."""
    part = job_part(JOB)

    assert job_service_pb2.SubmitResponse.FromString(part).job == message()
    assert b"acme" not in part


def test_a_new_job():
    """What is not known is unset; the prospect is told."""
    job = JOB._replace(
        state=JobState.PENDING, started=None, ended=None, expires=None, purges=None, attempt=0, served_version=0
    )
    made = job_service_pb2.SubmitResponse.FromString(job_part(job, (5, 1.25))).job

    assert made.state == job_pb2.JOB_STATE_PENDING
    assert [name for name in ("start_time", "end_time", "expire_time", "purge_time") if made.HasField(name)] == []
    assert made.jobs_ahead == 5
    assert (made.estimated_wait.seconds, made.estimated_wait.nanos) == (1, 250_000_000)
    assert not job_service_pb2.SubmitResponse.FromString(job_part(job, (5, None))).job.HasField("estimated_wait")


def test_an_endless_wait_is_a_valid_duration():
    """Even if the cost model thinks of ages."""
    made = job_service_pb2.SubmitResponse.FromString(job_part(JOB, (1, 1e300))).job
    assert made.estimated_wait.seconds == 315_576_000_000


@pytest.mark.parametrize(
    "response",
    [
        job_service_pb2.SubmitResponse,
        job_service_pb2.ResultResponse,
        job_service_pb2.WatchJobResponse,
        job_service_pb2.CancelJobResponse,
    ],
)
def test_one_framing_fits_all(response):
    """The part is a whole response of each kind with one job."""
    assert response.FromString(job_part(JOB)) == response(job=message())


def test_one_framing_fits_lists():
    """Parts in a row are the jobs of a page."""
    other = JOB._replace(request_id="x" * 200)
    assert list(job_service_pb2.ListJobsResponse.FromString(job_part(JOB) + job_part(other)).jobs) == [
        message(),
        message(request_id="x" * 200),
    ]


def test_states_are_numbered_as_in_the_contract():
    """By name and number."""
    numbers = {name.removeprefix("JOB_STATE_"): number for name, number in job_pb2.JobState.items() if number}
    assert {state.name: int(state) for state in JobState} == numbers


@pytest.mark.parametrize("size", [0, 1, 127, 128, 20000])
def test_results(size):
    """The stored bytes are the response, or the error."""
    response = inference_pb2.PredictResponse(model="m", request_id="x" * size)
    job = JOB._replace(state=JobState.SUCCEEDED)
    whole = b"".join(result(Found(job, response.SerializeToString())))
    assert job_service_pb2.ResultResponse.FromString(whole) == job_service_pb2.ResultResponse(
        job=message(state=3), response=response
    )

    error = status_pb2.Status(code=3, message="x" * size)
    for state in (JobState.FAILED, JobState.EXPIRED):
        whole = b"".join(result(Found(JOB._replace(state=state), error.SerializeToString())))
        assert job_service_pb2.ResultResponse.FromString(whole) == job_service_pb2.ResultResponse(
            job=message(state=int(state)), error=error
        )


def test_no_outcome():
    """Neither a response nor an error."""
    made = job_service_pb2.ResultResponse.FromString(b"".join(result(Found(JOB, None), (2, 1.0))))
    assert made.WhichOneof("outcome") is None
    assert made.job.jobs_ahead == 2


QUESTION = ("acme", frozenset({JobState.FAILED, JobState.PENDING}), "m")


@given(st.integers(1, (1 << 63) - 1))
def test_tokens(before):
    """A token says where the page begins, whatever the order of the states."""
    token = page_token(before, *QUESTION)

    assert page_start(token, "acme", [JobState.PENDING, JobState.FAILED, JobState.PENDING], "m") == before


@pytest.mark.parametrize(
    "question",
    [
        ("other", *QUESTION[1:]),
        ("acme", frozenset(), "m"),
        ("acme", frozenset({JobState.FAILED}), "m"),
        (*QUESTION[:2], ""),
        (*QUESTION[:2], "m2"),
    ],
)
def test_tokens_of_another_question(question):
    """Another tenant, other states or another model: the token is none."""
    with pytest.raises(InvalidRequest) as caught:
        page_start(page_token(5, *QUESTION), *question)
    assert caught.value.violations == [("page_token", "is not one that the server gave for this question")]


@pytest.mark.parametrize("bad", ["x", "AAAA", "ä", "=", " ", "A" * 28, "A" * 10000, "\0"])
def test_what_is_no_token(bad):
    """Anything else."""
    with pytest.raises(InvalidRequest):
        page_start(bad, *QUESTION)


def test_a_token_that_was_touched():
    """Each byte counts; so does the range of the sequence."""
    raw = base64.urlsafe_b64decode(page_token(5, *QUESTION))
    for place in range(len(raw)):
        touched = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        with pytest.raises(InvalidRequest):
            page_start(base64.urlsafe_b64encode(touched).decode(), *QUESTION)
    for before in (0, 1 << 63):
        with pytest.raises(InvalidRequest):
            page_start(page_token(before, *QUESTION), *QUESTION)
