"""Jobs as plain values, read from the messages of `JobService`, and the messages that ask for them. Pure.

Instants are `datetime` in UTC, and spans `timedelta`.
"""

import datetime as dt
import enum
from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf import duration_pb2, timestamp_pb2

from forebay.v1 import inference_pb2, job_pb2, job_service_pb2
from forebay_client._results import Prediction

PAGE_SIZE = 100  # jobs in a page of `jobs`
MAX_PAGE_SIZE = 1000  # the contract's limit

Seconds = float | dt.timedelta
"""A span of time, in seconds if it is a number."""


class JobState(enum.StrEnum):
    """Where a job is in its life."""

    PENDING = "PENDING"
    """Stored, and waits for an engine."""
    RUNNING = "RUNNING"
    """A server has claimed it. If that goes away or has no room, the job is PENDING again."""
    SUCCEEDED = "SUCCEEDED"
    """It ran, and its prediction is stored."""
    FAILED = "FAILED"
    """It has an error instead of a prediction, and will not be tried again."""
    CANCELLED = "CANCELLED"
    """It was cancelled before it had finished."""
    EXPIRED = "EXPIRED"
    """It had not finished by its `expire_time`."""
    UNKNOWN = "UNKNOWN"
    """A state that this client does not know; a newer one does."""


_FINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A durable inference, as it was when the server told it."""

    id: str
    """128 random bits in hexadecimal. Only the tenant that submitted the job can use it."""
    state: JobState
    model: str
    version: int
    """The version that ran; 0 before."""
    attempt: int
    """How many times it has been given to an engine."""
    request_id: str
    """The idempotency key that it was submitted with."""
    create_time: dt.datetime
    """When it was stored."""
    start_time: dt.datetime | None
    """When it was last given to an engine."""
    end_time: dt.datetime | None
    """When it reached its final state."""
    expire_time: dt.datetime | None
    """When it expires unless it has finished; None: never."""
    purge_time: dt.datetime | None
    """When it and its outcome are deleted; None before it has finished."""
    jobs_ahead: int | None
    """About how many jobs of the model are ahead of it; None unless it is PENDING."""
    estimated_wait: dt.timedelta | None
    """About how long it will wait; None unless it is PENDING and the server can tell."""

    @property
    def done(self) -> bool:
        """Whether it has reached its final state, which may be one that this client does not know."""
        return self.state in _FINAL or (self.state is JobState.UNKNOWN and self.end_time is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A job that succeeded, and what came of it."""

    job: Job
    prediction: Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Whom to tell that a job has finished."""

    url: str
    """The target; the operator of the server has to allow it."""
    secret: str
    """The name of the secret that signs the message; the operator has configured it."""


def read_job(message: job_pb2.Job) -> Job:
    """The job in a message."""
    pending = message.state == job_pb2.JOB_STATE_PENDING
    waits = pending and message.HasField("estimated_wait")
    return Job(
        id=message.id,
        state=read_state(message.state),
        model=message.model,
        version=message.version,
        attempt=message.attempt,
        request_id=message.request_id,
        create_time=message.create_time.ToDatetime(dt.UTC),
        start_time=_read_time(message, "start_time", message.start_time),
        end_time=_read_time(message, "end_time", message.end_time),
        expire_time=_read_time(message, "expire_time", message.expire_time),
        purge_time=_read_time(message, "purge_time", message.purge_time),
        jobs_ahead=message.jobs_ahead if pending else None,
        estimated_wait=message.estimated_wait.ToTimedelta() if waits else None,
    )


def job_id(job: Job | str) -> str:
    """The id of a job, or what was given for one."""
    return job.id if isinstance(job, Job) else job


def submit_request(
    request: inference_pb2.PredictRequest,
    *,
    expire_after: Seconds | None,
    ttl: Seconds | None,
    webhook: Webhook | None,
) -> job_service_pb2.SubmitRequest:
    """Hands over a request, whose `request_id` is also the idempotency key.

    Raises:
        ValueError: A span is not positive.
    """
    message = job_service_pb2.SubmitRequest(request=request, request_id=request.request_id)
    if expire_after is not None:
        message.expire_after.CopyFrom(_span("expire_after", expire_after))
    if ttl is not None:
        message.ttl.CopyFrom(_span("ttl", ttl))
    if webhook is not None:
        message.webhook.CopyFrom(job_pb2.Webhook(url=webhook.url, secret=webhook.secret))
    return message


def list_request(
    states: Iterable[JobState | str], model: str, page_size: int = PAGE_SIZE
) -> job_service_pb2.ListJobsRequest:
    """Asks for the first page of jobs.

    Raises:
        ValueError: There is no such state, or the page can't have this size.
    """
    if not 1 <= page_size <= MAX_PAGE_SIZE:
        raise ValueError(f"a page holds 1 to {MAX_PAGE_SIZE} jobs, not {page_size}")
    return job_service_pb2.ListJobsRequest(
        states=[job_pb2.JobState.Value(f"JOB_STATE_{JobState(state)}") for state in states],
        model=model,
        page_size=page_size,
    )


def read_state(number: int) -> JobState:
    """A state from its number."""
    try:
        return JobState(job_pb2.JobState.Name(job_pb2.JobState.ValueType(number)).removeprefix("JOB_STATE_"))
    except ValueError:
        return JobState.UNKNOWN


def _read_time(message: job_pb2.Job, name: str, time: timestamp_pb2.Timestamp) -> dt.datetime | None:
    return time.ToDatetime(dt.UTC) if message.HasField(name) else None  # type: ignore[arg-type]  # one of its names


def _span(name: str, span: Seconds) -> duration_pb2.Duration:
    seconds = span.total_seconds() if isinstance(span, dt.timedelta) else span
    if not 0 < seconds < _LONGEST:
        raise ValueError(f"{name} is a positive number of seconds, not {seconds:g}")
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


_LONGEST = 315_576_000_000.0  # seconds; what a Duration may hold
