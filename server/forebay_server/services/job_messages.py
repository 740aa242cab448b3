"""Jobs as messages, and the tokens that lead from one page of a list to the next.

The outcome of a job is kept as it will be sent, so a `ResultResponse` is put together from serialized parts and the
outcome is never parsed. Every response of the service has its job, or each of its jobs, in field 1, so one framing fits
all of them (a test holds the contract to that).
"""

import base64
import binascii
import struct
from collections.abc import Collection
from hashlib import sha256
from typing import Final

from google.rpc import status_pb2

from forebay.v1 import inference_pb2, job_pb2, job_service_pb2
from forebay_server.errors import InvalidRequest
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import Found, Job
from forebay_server.services.framing import MAX_SECONDS
from forebay_server.varint import varint

Prospect = tuple[int, float | None]
"""About how many jobs are ahead, and about how many seconds it waits; None: not known."""

_JOB: Final = job_service_pb2.ResultResponse(job=job_pb2.Job()).SerializeToString()[:1]
_RESPONSE: Final = job_service_pb2.ResultResponse(response=inference_pb2.PredictResponse()).SerializeToString()[:1]
_ERROR: Final = job_service_pb2.ResultResponse(error=status_pb2.Status()).SerializeToString()[:1]


def job_part(job: Job, prospect: Prospect | None = None) -> bytes:
    """The part of a response that holds a job; it is a whole `SubmitResponse`, `WatchJobResponse` or the like, too.

    Args:
        job: The job.
        prospect: When it may run, for one that is PENDING.
    """
    message = job_pb2.Job(
        id=job.id,
        state=int(job.state),  # type: ignore[arg-type]  # the contract's number
        model=job.model,
        version=job.served_version,
        attempt=job.attempt,
        request_id=job.request_id,
    )
    _stamp(message.create_time, job.created)
    if job.started is not None:
        _stamp(message.start_time, job.started)
    if job.ended is not None:
        _stamp(message.end_time, job.ended)
    if job.expires is not None:
        _stamp(message.expire_time, job.expires)
    if job.purges is not None:
        _stamp(message.purge_time, job.purges)
    if prospect is not None:
        ahead, wait = prospect
        message.jobs_ahead = ahead
        if wait is not None:
            _stamp(message.estimated_wait, min(wait, MAX_SECONDS))
    body = message.SerializeToString()
    return _JOB + varint(len(body)) + body


def result(found: Found, prospect: Prospect | None = None) -> tuple[bytes, ...]:
    """The parts of a serialized `ResultResponse`, to be joined."""
    job, outcome = found
    part = job_part(job, prospect)
    if outcome is None:
        return (part,)
    return part, _RESPONSE if job.state is JobState.SUCCEEDED else _ERROR, varint(len(outcome)), outcome


def _stamp(field: object, seconds: float) -> None:
    """Sets a `Timestamp` or `Duration`, to the microsecond: more digits a float of today's seconds does not have."""
    whole, micros = divmod(round(seconds * 1e6), 1_000_000)
    field.seconds = whole  # type: ignore[attr-defined]  # both have them
    field.nanos = micros * 1000  # type: ignore[attr-defined]  # as above


# --- Pages ------------------------------------------------------------------------------------------------------------

_TOKEN: Final = struct.Struct(">BQ12s")
_FORM: Final = 1
"""The first byte of a token: how it is written."""


def page_token(before: int, tenant: str, states: Collection[JobState], model: str) -> str:
    """A token for the page after one that ends with the sequence `before`.

    It holds a check of the question, so that it is good for the same one only. The check is no secret: a forged token
    shows a tenant its own jobs, from another place on. So a token is good on every replica and after a restart.
    """
    raw = _TOKEN.pack(_FORM, before, _check(before, tenant, states, model))
    return base64.urlsafe_b64encode(raw).decode()


def page_start(token: str, tenant: str, states: Collection[JobState], model: str) -> int:
    """The sequence below which the page begins that a token asks for.

    Raises:
        InvalidRequest: It is no token, or one for another question.
    """
    try:
        form, before, check = _TOKEN.unpack(base64.b64decode(token, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, struct.error):
        raise _bad_token() from None
    if form != _FORM or not 0 < before < 1 << 63 or check != _check(before, tenant, states, model):
        raise _bad_token()
    return int(before)


def _bad_token() -> InvalidRequest:
    return InvalidRequest([("page_token", "is not one that the server gave for this question")])


def _check(before: int, tenant: str, states: Collection[JobState], model: str) -> bytes:
    question = (before, tenant, sorted(map(int, set(states))), model)
    return sha256(ascii(question).encode()).digest()[:12]
