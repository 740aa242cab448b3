"""From gRPC's errors to ours: one table of reasons, one of status codes, and the reading of error details.

Pure: both clients use it, for calls, and for stream items and jobs, whose errors are `google.rpc.Status` messages.
"""

import asyncio
from collections.abc import Iterable
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from forebay_client import _exceptions as exceptions
from forebay_client._jobs import Job

DOMAIN = "forebay"
STATUS_TRAILER = "grpc-status-details-bin"
PUSHBACK_TRAILER = "grpc-retry-pushback-ms"

_WRITE_FAILED = "Internal error from Core"
"""What `grpc.aio` says, with INTERNAL and in place of the call's own status, when a message of a stream could not be
written because the call had ended (github.com/grpc/grpc/issues/36066)."""

_CANCELLED_HERE = {"Channel closed!", "Locally cancelled by application!"}
"""What gRPC says of a call that was cancelled on this side. A server that stops at once, or a proxy whose connection
breaks, says CANCELLED as well, though the caller waits: as little an answer as a connection that is lost."""

BY_REASON: dict[str, type[exceptions.ForebayError]] = {
    "QUEUE_FULL": exceptions.QueueFull,
    "BYTES_LIMIT": exceptions.BytesLimit,
    "TENANT_QUOTA": exceptions.TenantQuota,
    "DEADLINE_UNREACHABLE": exceptions.DeadlineUnreachable,
    "DEADLINE_EXPIRED": exceptions.DeadlineExpired,
    "DRAINING": exceptions.Draining,
    "ENGINE_UNAVAILABLE": exceptions.EngineUnavailable,
    "ENGINE_RESTARTED": exceptions.EngineRestarted,
    "MODEL_LOADING": exceptions.ModelLoading,
    "MODEL_NOT_FOUND": exceptions.ModelNotFound,
    "VERSION_NOT_FOUND": exceptions.VersionNotFound,
    "MODEL_FAILED": exceptions.ModelFailed,
    "INVALID_TENSOR": exceptions.InvalidRequest,
    "INPUT_REJECTED": exceptions.InputRejected,
    "UNSUPPORTED": exceptions.Unsupported,
    "PAYLOAD_QUARANTINED": exceptions.PayloadQuarantined,
    "JOB_NOT_FOUND": exceptions.JobNotFound,
    "JOB_KEY_REUSED": exceptions.JobKeyReused,
    "STORE_FULL": exceptions.StoreFull,
    "STORE_UNAVAILABLE": exceptions.StoreUnavailable,
    "INTERNAL": exceptions.InternalError,
}
"""The class of each reason of the contract; a test keeps it total."""

BY_CODE: dict[grpc.StatusCode, type[exceptions.ForebayError]] = {
    grpc.StatusCode.CANCELLED: exceptions.Cancelled,
    grpc.StatusCode.UNKNOWN: exceptions.InternalError,
    grpc.StatusCode.INVALID_ARGUMENT: exceptions.InvalidRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED: exceptions.DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: exceptions.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: exceptions.InvalidRequest,
    grpc.StatusCode.PERMISSION_DENIED: exceptions.Denied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: exceptions.Overloaded,
    grpc.StatusCode.FAILED_PRECONDITION: exceptions.ModelFailed,
    grpc.StatusCode.ABORTED: exceptions.Cancelled,
    grpc.StatusCode.OUT_OF_RANGE: exceptions.InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: exceptions.Unsupported,
    grpc.StatusCode.INTERNAL: exceptions.InternalError,
    grpc.StatusCode.UNAVAILABLE: exceptions.Unavailable,
    grpc.StatusCode.DATA_LOSS: exceptions.InternalError,
    grpc.StatusCode.UNAUTHENTICATED: exceptions.Denied,
}
"""The class of a status code whose reason is missing or unknown; a test keeps it total but for OK."""

UNAVAILABLE: int = grpc.StatusCode.UNAVAILABLE.value[0]

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def from_rpc(error: grpc.RpcError) -> exceptions.ForebayError:
    """The exception for a failed call."""
    status = status_pb2.Status()
    pushback: float | None = None
    # The two surfaces give different containers of the same pairs, and the published types know only one of them.
    trailers = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    for key, value in trailers:
        if key == STATUS_TRAILER and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:  # A proxy may have cut it; the code and the message still stand.
                continue
        elif key == PUSHBACK_TRAILER and isinstance(value, str) and value.isdigit():
            pushback = int(value) / 1000
    if error.details() == _WRITE_FAILED:
        return exceptions.Unavailable("the call ended while it was written to")
    if error.code() is grpc.StatusCode.CANCELLED and not status.details and error.details() not in _CANCELLED_HERE:
        return exceptions.Unavailable(f"the call was cut off by the server or on its way: {error.details()}")
    return _make(error.code(), error.details() or status.message, status, pushback)


def from_cancellation() -> exceptions.Cancelled:
    """The exception for a call of `grpc.aio` that was cut off by closing its client.

    Raises:
        asyncio.CancelledError: It was the task that was cancelled: call this while that exception is handled.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise  # noqa: PLE0704  # called in an `except` clause
    return exceptions.Cancelled("the client was closed during the call")


def from_status(
    status: status_pb2.Status,
    *,
    index: int | None = None,
    job: Job | None = None,
    kind: type[exceptions.ForebayError] | None = None,
) -> exceptions.ForebayError:
    """The exception for the error of a stream's item, or of a job; of the class `kind` if that is given."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return _make(code, status.message, status, None, index=index, job=job, kind=kind)


def _make(
    code: grpc.StatusCode,
    message: str,
    status: status_pb2.Status,
    pushback: float | None,
    *,
    index: int | None = None,
    job: Job | None = None,
    kind: type[exceptions.ForebayError] | None = None,
) -> exceptions.ForebayError:
    info = error_details_pb2.ErrorInfo()
    retry_delay = pushback
    violations: list[exceptions.Violation] = []
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_delay = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            violations.extend(
                exceptions.Violation(field=violation.field, description=violation.description)
                for violation in bad.field_violations
            )
    reason = info.reason if info.domain == DOMAIN else ""
    facts = dict(info.metadata)
    kind = kind or _class_of(code, reason, message, retry_delay)
    return kind(
        message,
        code=code,
        reason=reason,
        retry_delay=retry_delay,
        violations=violations,
        error_id=facts.pop("error_id", ""),
        details=facts,
        index=index,
        job=job,
    )


def _class_of(
    code: grpc.StatusCode, reason: str, message: str, retry_delay: float | None
) -> type[exceptions.ForebayError]:
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Without RetryInfo a bytes limit means the message itself; gRPC's own limits have no reason, only this text.
        if reason == "BYTES_LIMIT" and retry_delay is None:
            return exceptions.MessageTooLarge
        if not reason and "larger than max" in message:
            return exceptions.MessageTooLarge
    return BY_REASON.get(reason) or BY_CODE.get(code, exceptions.InternalError)


def again(
    error: exceptions.ForebayError, *, index: int | None = None, taken: int | None = None
) -> exceptions.ForebayError:
    """The same error for another item: exceptions are raised once each, so that tracebacks stay true."""
    return type(error)(
        error.message,
        code=error.code,
        reason=error.reason,
        retry_delay=error.retry_delay,
        violations=error.violations,
        error_id=error.error_id,
        details=error.details,
        index=index,
        taken=taken,
        job=error.job,
    )
