"""The steps of calls about jobs: handing one over, waiting for its end, watching it."""

import random
import time
from typing import Final

from forebay.v1 import job_service_pb2
from forebay_client import _errors
from forebay_client._core import Inputs, RequestBuilder, read_prediction
from forebay_client._exceptions import (
    BadResponse,
    DeadlineExceeded,
    ForebayError,
    InvalidRequest,
    JobCancelled,
    JobExpired,
    JobNotFinished,
    NotFound,
    Unavailable,
)
from forebay_client._jobs import Job, JobState, Result, Seconds, Webhook, read_job, submit_request
from forebay_client._plans import OnlyInputs, build, insist
from forebay_client._retries import Patience, Pauses
from forebay_client._steps import Call, Chance, Clock, Give, Hear, Listen, Pause, Plan

POLL: Final = 60.0  # seconds that one call waits for a job, at most
ANSWER: Final = 10.0  # seconds that such a call may take beyond its waiting
WATCH: Final = 600.0  # seconds after which a watching call is made anew


def submit(
    builder: RequestBuilder,
    inputs: Inputs,
    names: OnlyInputs,
    *,
    expire_after: Seconds | None,
    ttl: Seconds | None,
    webhook: Webhook | None,
    deadline: float,
    clock: Clock = time.monotonic,
) -> Plan[Job]:
    """Hands over a job, under one key however often it takes."""
    until = clock() + deadline
    request = yield from build(builder, inputs, names, deadline, insist)
    message = submit_request(request, expire_after=expire_after, ttl=ttl, webhook=webhook)
    try:
        response = yield from insist("Submit", message, until - clock())
    except (InvalidRequest, NotFound):
        names.pop((builder.model, builder.version), None)  # the model may have been replaced
        raise
    return read_job(response.job)


def job(job_id: str, deadline: float) -> Plan[Job]:
    """A job as it is now."""
    response = yield Call("Result", job_service_pb2.ResultRequest(id=job_id), deadline)
    return read_job(response.job)


def cancel(job_id: str, deadline: float) -> Plan[Job]:
    """Cancels a job, and gives it as it is then."""
    response = yield from insist("CancelJob", job_service_pb2.CancelJobRequest(id=job_id), deadline)
    return read_job(response.job)


def result(
    job_id: str, timeout: float | None, *, clock: Clock = time.monotonic, chance: Chance = random.random
) -> Plan[Result]:
    """Waits for a job's end, by as many calls as it takes.

    Args:
        job_id: The job.
        timeout: Seconds to wait; None: as long as it takes; 0: ask once.
        clock: Tells monotonic instants.
        chance: Gives numbers in [0, 1).

    Raises:
        JobNotFinished: It has not ended within the time.
        ForebayError: It has no prediction, or can't be asked for.
    """
    until = clock() + check_timeout(timeout)
    patience = Patience(until, clock, chance)
    early = Pauses(chance)
    while True:
        asked = clock()
        wait = min(POLL, max(0.0, until - asked))
        request = job_service_pb2.ResultRequest(id=job_id)
        if wait > 0:
            request.wait.FromNanoseconds(round(wait * 1e9))
        try:
            response: job_service_pb2.ResultResponse = yield Call("Result", request, wait + ANSWER)
        except (Unavailable, DeadlineExceeded) as error:  # to ask again does no harm
            pause = patience.after(error)
        else:
            patience.restore()
            found = read_job(response.job)
            if found.done:
                return read_result(found, response)
            now = clock()
            if now >= until:
                raise JobNotFinished(f"job {found.id} is {found.state}", job=found)
            # Where too many calls wait already, the server answers at once: then it is asked less and less often.
            if now - asked >= wait / 2:
                early.reset()
            pause = min(early.next(), until - now)
        yield Pause(pause)


class Watch:
    """What watching a job decides: whether there is something new, and when to call again.

    Args:
        job_id: The job.
        timeout: Seconds; None: to its end.
        clock: Tells monotonic instants.
        chance: Gives numbers in [0, 1).

    Raises:
        ValueError: The timeout is none.
    """

    __slots__ = ("_clock", "_last", "_patience", "_until", "request")

    def __init__(
        self, job_id: str, timeout: float | None, *, clock: Clock = time.monotonic, chance: Chance = random.random
    ) -> None:
        self.request = job_service_pb2.WatchJobRequest(id=job_id)
        self._clock = clock
        self._until = clock() + check_timeout(timeout)
        self._patience = Patience(self._until, clock, chance)
        self._last: Job | None = None

    @property
    def over(self) -> bool:
        """Whether the job has reached its final state."""
        return self._last is not None and self._last.done

    def call_timeout(self) -> float:
        """Seconds for the next call."""
        return max(1e-3, min(WATCH, self._until - self._clock()))

    def news(self, response: job_service_pb2.WatchJobResponse) -> Job | None:
        """The job if it has changed: each call begins with the job as it is."""
        self._patience.restore()
        found = read_job(response.job)
        if found == self._last:
            return None
        self._last = found
        return found

    def interrupted(self, error: ForebayError | None) -> float:
        """A call has ended before the job did, with this error or with OK: the pause before the next call.

        Raises:
            JobNotFinished: The time is over.
            ForebayError: The job can't be watched.
        """
        if self._clock() >= self._until and self._last is not None:
            raise JobNotFinished(f"job {self._last.id} is {self._last.state}", job=self._last)
        if error is None:
            error = Unavailable("the server ended the call before the job had ended")
        if not isinstance(error, (Unavailable, DeadlineExceeded)):
            raise error
        return self._patience.after(error)


def watch(state: Watch) -> Plan[None]:
    """Gives the job at each change, by as many calls as it takes."""
    while not state.over:
        error: ForebayError | None = None
        yield Listen("WatchJob", state.request, state.call_timeout())
        try:
            while (response := (yield Hear())) is not None:
                found = state.news(response)
                if found is not None:
                    yield Give(found)
        except ForebayError as exc:
            error = exc
        if not state.over:
            yield Pause(state.interrupted(error))


def jobs(request: job_service_pb2.ListJobsRequest, deadline: float) -> Plan[None]:
    """Gives the jobs of all pages, each of which is asked for when the caller gets there."""
    while True:
        page: job_service_pb2.ListJobsResponse = yield Call("ListJobs", request, deadline)
        for message in page.jobs:
            yield Give(read_job(message))
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def read_result(found: Job, response: job_service_pb2.ResultResponse) -> Result:
    """What came of a job that has ended.

    Raises:
        ForebayError: It has no prediction: the class of its error's reason, `JobCancelled` or `JobExpired`.
    """
    if found.state is JobState.CANCELLED:
        raise JobCancelled(f"job {found.id} was cancelled", job=found)
    match response.WhichOneof("outcome"):
        case "response":
            return Result(job=found, prediction=read_prediction(response.response))
        case "error":
            kind = JobExpired if found.state is JobState.EXPIRED else None
            raise _errors.from_status(response.error, kind=kind, job=found)
    raise BadResponse(f"job {found.id} is {found.state}, and the server sent no outcome", job=found)


def check_timeout(timeout: float | None) -> float:
    """A timeout as a number.

    Raises:
        ValueError: It is no number of seconds from 0 on.
    """
    if timeout is None:
        return float("inf")
    if not 0 <= timeout < float("inf"):
        raise ValueError(f"a timeout is a number of seconds from 0 on, or None, not {timeout}")
    return timeout
