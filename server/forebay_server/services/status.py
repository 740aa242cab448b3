"""Errors of the domain as gRPC statuses: one table, and the details that the contract promises.

Every error of a call, of a stream item and of the adapters themselves is made here, so that each carries exactly one
`google.rpc.ErrorInfo`; overload adds `RetryInfo` and the trailer `grpc-retry-pushback-ms`, bad fields a `BadRequest`.
It does not decide what is an error. An exception that is no `ForebayError` goes through `internal`, which logs it and
gives out a fixed text.

Details travel in headers, and clients take 8 KiB of these by default: texts and lists are cut to stay well below.

Refusing must be cheap, because a server under overload does little else. A serialized protobuf message may be put
together from serialized parts of it, so what is constant is serialized once and the parts are joined.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import structlog
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from forebay_server import errors
from forebay_server.errors import ForebayError, Internal, InvalidRequest, Overloaded
from forebay_server.wire.port import Failure, Refusals

DOMAIN: Final = "forebay"
PUSHBACK_TRAILER: Final = "grpc-retry-pushback-ms"

MAX_TEXT: Final = 512
"""Bytes of a message in UTF-8 (each may become three in a header); longer ones are cut."""
MAX_VIOLATIONS: Final = 16
"""Field violations in one answer; the others are left out."""
MAX_FIELD: Final = 64
"""Bytes of a violation's field path."""
MAX_SENTENCE: Final = 120
"""Bytes of a violation's sentence."""

MIN_RETRY_DELAY: Final = 0.01
"""Seconds; asking again sooner helps nobody."""
BYTES_HELD_RETRY: Final = 0.25
"""Seconds that an adapter at its bytes limit asks callers to wait; it can't know how long requests will take."""

CODES: Final[Mapping[type[ForebayError], int]] = {
    errors.QueueFull: code_pb2.RESOURCE_EXHAUSTED,
    errors.BytesLimit: code_pb2.RESOURCE_EXHAUSTED,
    errors.TenantQuota: code_pb2.RESOURCE_EXHAUSTED,
    errors.StoreFull: code_pb2.RESOURCE_EXHAUSTED,
    errors.DeadlineUnreachable: code_pb2.DEADLINE_EXCEEDED,
    errors.DeadlineExpired: code_pb2.DEADLINE_EXCEEDED,
    errors.Draining: code_pb2.UNAVAILABLE,
    errors.EngineUnavailable: code_pb2.UNAVAILABLE,
    errors.EngineRestarted: code_pb2.UNAVAILABLE,
    errors.ModelLoading: code_pb2.UNAVAILABLE,
    errors.StoreUnavailable: code_pb2.UNAVAILABLE,
    errors.ModelNotFound: code_pb2.NOT_FOUND,
    errors.VersionNotFound: code_pb2.NOT_FOUND,
    errors.JobNotFound: code_pb2.NOT_FOUND,
    errors.JobKeyReused: code_pb2.ALREADY_EXISTS,
    errors.PayloadQuarantined: code_pb2.FAILED_PRECONDITION,
    errors.ModelFailed: code_pb2.FAILED_PRECONDITION,
    errors.InvalidRequest: code_pb2.INVALID_ARGUMENT,
    errors.InputRejected: code_pb2.INVALID_ARGUMENT,
    errors.Unsupported: code_pb2.UNIMPLEMENTED,
    errors.MessageTooLarge: code_pb2.RESOURCE_EXHAUSTED,
    errors.Internal: code_pb2.INTERNAL,
}
"""The status code of each error that can be raised. The classes between them and `ForebayError` have no reason of their
own and are never raised."""

CODE_NAMES: Final[Mapping[str, str]] = {kind.reason: code_pb2.Code.Name(code) for kind, code in CODES.items()}
"""The canonical name of the status code by the contract's reason, for statistics."""

_log = structlog.get_logger(__name__)


def internal(error: BaseException, **context: object) -> Internal:
    """Makes the error that a caller gets for an exception that nobody foresaw.

    The exception goes into the log, under the id that the caller is told; nothing of it goes to the caller.

    Args:
        error: What was raised.
        context: What else the log should say, such as `method="Predict"`.
    """
    answer = Internal()
    _log.error("internal error", error_id=answer.error_id, exc_info=error, **context)
    return answer


def failure(error: ForebayError) -> Failure:
    """The gRPC error for a call that failed with `error`."""
    kind = type(error)
    plain = _plain(CODES[kind], _CONSTANTS[kind], _cut(error.message, MAX_TEXT))
    if isinstance(error, Overloaded):
        retry, trailers = _retry(math.ceil(max(error.retry_after, MIN_RETRY_DELAY) * 1e3))
        return _detailed(plain, retry, trailers)
    if isinstance(error, InvalidRequest):
        return _detailed(plain, _violations(error))
    if isinstance(error, Internal):
        return _detailed(plain, _details(_info(kind, {"error_id": error.error_id})))
    return plain


@lru_cache(maxsize=1024)
def _plain(code: int, constant: bytes, text: str) -> Failure:
    """The error of a class with nothing but its text: the same object each time, so that adapters may know it again."""
    message: bytes = status_pb2.Status(message=text).SerializeToString()
    return Failure(code, text, constant + message)


def _detailed(plain: Failure, details: bytes, trailers: tuple[tuple[str, str], ...] = ()) -> Failure:
    return Failure(plain.code, plain.message, (plain.details or b"") + details, trailers)


def status_bytes(error: ForebayError) -> bytes:
    """A serialized `google.rpc.Status` for a stream item or a job that failed with `error`."""
    details = failure(error).details
    return details or b""


def refusals(*, max_receive_bytes: int, max_send_bytes: int) -> Refusals:
    """The errors that an adapter has to send by itself.

    Args:
        max_receive_bytes: `Limits.max_receive_bytes` of the adapter.
        max_send_bytes: `Limits.max_send_bytes` of the adapter.
    """
    return Refusals(
        message_too_large=failure(errors.MessageTooLarge(f"the message is larger than {max_receive_bytes} bytes")),
        response_too_large=failure(errors.MessageTooLarge(f"the response is larger than {max_send_bytes} bytes")),
        bytes_held=failure(errors.BytesLimit("the server holds as many bytes as it may", retry_after=BYTES_HELD_RETRY)),
        deadline_expired=failure(errors.DeadlineExpired("the deadline passed before the answer")),
        slow_reader=failure(errors.MessageTooLarge("results were not read for too long")),
        slow_sender=failure(errors.DeadlineExpired("the message did not arrive completely in time")),
        draining=failure(errors.Draining("the server is shutting down")),
        compressed=failure(errors.Unsupported("this compression is not accepted; send messages uncompressed")),
    )


@lru_cache(maxsize=4096)
def _retry(milliseconds: int) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(milliseconds)
    return _details(retry), ((PUSHBACK_TRAILER, str(milliseconds)),)


def _violations(error: InvalidRequest) -> bytes:
    bad = error_details_pb2.BadRequest()
    for field, sentence in error.violations[:MAX_VIOLATIONS]:
        bad.field_violations.add(field=_cut(field, MAX_FIELD), description=_cut(sentence, MAX_SENTENCE))
    return _details(bad)


def _cut(text: str, limit: int) -> str:
    """The text as valid UTF-8 of at most so many bytes."""
    if text.isascii() and len(text) <= limit:
        return text
    raw = text.encode("utf-8", "replace")
    return raw.decode() if len(raw) <= limit else raw[: limit - 3].decode("utf-8", "ignore") + "..."


def _info(kind: type[ForebayError], metadata: Mapping[str, str]) -> Message:
    info: Message = error_details_pb2.ErrorInfo(reason=kind.reason, domain=DOMAIN, metadata=metadata)
    return info


def _details(detail: Message) -> bytes:
    packed = any_pb2.Any()
    packed.Pack(detail)
    details: bytes = status_pb2.Status(details=[packed]).SerializeToString()
    return details


def _constant(kind: type[ForebayError]) -> bytes:
    code: bytes = status_pb2.Status(code=CODES[kind]).SerializeToString()
    return code if kind is Internal else code + _details(_info(kind, {}))


_CONSTANTS: Final = {kind: _constant(kind) for kind in CODES}
"""What all errors of a class have in common: the code, and the `ErrorInfo` unless it has metadata."""
