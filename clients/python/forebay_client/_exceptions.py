"""Everything that a call can raise, as typed exceptions.

* ForebayError
    * InvalidRequest            INVALID_ARGUMENT, OUT_OF_RANGE; has `violations`
        * InputRejected
        * JobKeyReused          ALREADY_EXISTS
    * NotFound                  NOT_FOUND
        * ModelNotFound
        * VersionNotFound
        * JobNotFound
    * ModelFailed               FAILED_PRECONDITION
    * PayloadQuarantined        FAILED_PRECONDITION
    * Unsupported               UNIMPLEMENTED
    * MessageTooLarge           RESOURCE_EXHAUSTED, never to be retried
    * Denied                    PERMISSION_DENIED, UNAUTHENTICATED
    * Overloaded                RESOURCE_EXHAUSTED; has `retry_delay`
        * QueueFull
        * BytesLimit
        * TenantQuota
        * StoreFull
    * DeadlineExceeded          DEADLINE_EXCEEDED
        * DeadlineUnreachable
        * DeadlineExpired
        * JobExpired
        * JobNotFinished        raised here: it may finish later
    * Unavailable               UNAVAILABLE
        * Draining
        * EngineUnavailable
        * EngineRestarted
        * ModelLoading
        * StoreUnavailable
    * Cancelled                 CANCELLED, ABORTED
        * JobCancelled          raised here, for a job
    * InternalError             INTERNAL and every other code; has `error_id`
        * BadResponse           raised here: the server's answer can't be read

A server may give reasons that this client does not know: they raise the class of their status code. `_errors` makes
these exceptions; wrong arguments raise `TypeError` and `ValueError` before anything is sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import grpc

from forebay_client._jobs import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A field of the request that is not as it has to be."""

    field: str
    """Its path, such as `inputs[0].shape`."""
    description: str
    """What is wrong with it."""


class ForebayError(Exception):
    """A call, or an item of a stream, has no result.

    Attributes:
        code: The gRPC status code.
        reason: The cause within the code, such as `QUEUE_FULL`: the name of an `ErrorReason` of the contract without
            its prefix. Empty if nobody gave one, as with a lost connection or a proxy's own error.
        message: The server's sentence.
        retry_delay: Seconds to wait before the request is sent again; None if the server did not say.
        violations: The fields that are wrong, with `InvalidRequest`.
        error_id: What finds the fault in the server's log, with `InternalError`.
        details: Further facts of the server, by name.
        index: Which item of a stream failed, counted from 0; None if it was a call, or the stream itself.
        taken: With an error of the stream itself: how many items were taken from the source. Every one of them has had
            its own outcome, so the rest begins with this one. Else None.
        job: The job, with errors of the job itself; else None.
    """

    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        retry_delay: float | None = None,
        violations: Sequence[Violation] = (),
        error_id: str = "",
        details: Mapping[str, str] | None = None,
        index: int | None = None,
        taken: int | None = None,
        job: Job | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.reason = reason
        self.retry_delay = retry_delay
        self.violations = tuple(violations)
        self.error_id = error_id
        self.details = dict(details or {})
        self.index = index
        self.taken = taken
        self.job = job

    def __str__(self) -> str:
        cause = f"{self.code.name} ({self.reason})" if self.reason else self.code.name
        text = f"{cause}: {self.message}" if self.message else cause
        if self.index is not None:
            text = f"item {self.index}: {text}"
        if self.retry_delay is not None:
            text = f"{text} [retry after {self.retry_delay:g} s]"
        return text


class InvalidRequest(ForebayError):
    """A field is not as the contract or the model wants it. Do not retry."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class InputRejected(InvalidRequest):
    """The model refused this input, or failed on it alone. Do not retry."""


class JobKeyReused(InvalidRequest):
    """The idempotency key stands for a job with another payload. Use another one."""

    default_code = grpc.StatusCode.ALREADY_EXISTS


class NotFound(ForebayError):
    """There is no such thing. Do not retry."""

    default_code = grpc.StatusCode.NOT_FOUND


class ModelNotFound(NotFound):
    """The server has no model of this name."""


class VersionNotFound(NotFound):
    """The model has no such version or label."""


class JobNotFound(NotFound):
    """There is no such job, or it is another tenant's, or its outcome has been deleted."""


class ModelFailed(ForebayError):
    """The model failed to load or is unloaded: an operator has to act. Do not retry."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class PayloadQuarantined(ForebayError):
    """Each server that ran this job went away before it had finished. Do not submit it again as it is."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class Unsupported(ForebayError):
    """The server or the model does not do this. Do not retry."""

    default_code = grpc.StatusCode.UNIMPLEMENTED


class MessageTooLarge(ForebayError):
    """A message is over the size limit, or results were not read for too long. Do not retry."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Denied(ForebayError):
    """A proxy, or the server, does not let this caller do this. Do not retry."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class Overloaded(ForebayError):
    """Shed. Retry after `retry_delay` seconds."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class QueueFull(Overloaded):
    """The model's queue holds as many rows as it may."""


class BytesLimit(Overloaded):
    """The server holds as many bytes of requests as it may."""


class TenantQuota(Overloaded):
    """The tenant's own part of the queue is full."""


class StoreFull(Overloaded):
    """The disk of the job store is full."""


class DeadlineExceeded(ForebayError):
    """The deadline passed. Retry only with more time."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class DeadlineUnreachable(DeadlineExceeded):
    """Refused at once: by the model's measured speed the deadline can't be met."""


class DeadlineExpired(DeadlineExceeded):
    """The deadline passed before the result was there; mostly while the request waited."""


class JobExpired(DeadlineExceeded):
    """The job had not finished by its `expire_time`."""


class JobNotFinished(DeadlineExceeded):
    """The job has not finished within the time that was waited; `job` is how it stands. Ask again later."""


class Unavailable(ForebayError):
    """Not here, not now. Retry, on another replica if there is one."""

    default_code = grpc.StatusCode.UNAVAILABLE


class Draining(Unavailable):
    """The server is shutting down. Retry elsewhere, at once."""


class EngineUnavailable(Unavailable):
    """The model's engine has failed or is stuck. Retry elsewhere."""


class EngineRestarted(Unavailable):
    """The engine went away while it ran the request. Retry."""


class ModelLoading(Unavailable):
    """The model is being loaded or warmed up. Retry later, or elsewhere."""


class StoreUnavailable(Unavailable):
    """The job store does not answer. Retry; it is not known whether the call had its effect."""


class Cancelled(ForebayError):
    """The call was cancelled here."""

    default_code = grpc.StatusCode.CANCELLED


class JobCancelled(Cancelled):
    """The job was cancelled before it had finished."""


class InternalError(ForebayError):
    """A fault of the server or of the model; `error_id` finds it in the server's log. Retry at most once."""

    default_code = grpc.StatusCode.INTERNAL


class BadResponse(InternalError):
    """The server's answer is not as the contract says."""
