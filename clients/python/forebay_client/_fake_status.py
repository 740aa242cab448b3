"""Errors as a server sends them: a `google.rpc.Status` with its details, in the trailers. For `testing`."""

from collections.abc import Mapping
from typing import NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from forebay_client import _errors

STATUS_CODES: dict[str, grpc.StatusCode] = {reason: kind.default_code for reason, kind in _errors.BY_REASON.items()}
"""The status code of each reason."""

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def status_of(
    reason: str,
    message: str,
    *,
    retry_delay: float | None = None,
    code: grpc.StatusCode | None = None,
    details: Mapping[str, str] | None = None,
) -> status_pb2.Status:
    """The status of an error. Without a code, it has that of its reason."""
    found: list[Message] = []
    if reason:
        found.append(error_details_pb2.ErrorInfo(reason=reason, domain=_errors.DOMAIN, metadata=details or {}))
    if retry_delay is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(retry_delay * 1e9))
        found.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed: list[any_pb2.Any] = []
    for detail in found:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    number: int = (code or STATUS_CODES[reason]).value[0]
    return status_pb2.Status(code=number, message=message, details=packed)


def abort(context: grpc.ServicerContext, status: status_pb2.Status) -> NoReturn:
    """Ends a call with a status."""
    trailers: list[tuple[str, str | bytes]] = [(_errors.STATUS_TRAILER, status.SerializeToString())]
    for detail in status.details:
        if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            delay = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
            trailers.append((_errors.PUSHBACK_TRAILER, str(round(delay * 1000))))
    context.set_trailing_metadata(tuple(trailers))
    context.abort(_CODES[status.code], status.message)
    raise AssertionError("unreachable")
