"""A log line for a request that was refused or has failed: at most one each, and few of many.

What a line says: method, model, code and reason, and the ids by which the caller knows the request: its own, and that
of its trace. What it never says: anything else that the caller sent, and any text. An INTERNAL error has no line here:
it has one where it arose, under its error id (`status.internal`, `scheduling.execution`).

Used by the dispatcher. A line that is left out costs about half a microsecond.
"""

from collections.abc import Callable
from typing import Final

import structlog
from google.protobuf.message import DecodeError

from forebay.v1 import inference_pb2
from forebay_server.errors import ForebayError, Internal
from forebay_server.services.pending import Inference
from forebay_server.services.status import CODE_NAMES
from forebay_server.telemetry.sampling import Sampler
from forebay_server.telemetry.tracing.context import KEY, parse
from forebay_server.wire.port import Metadata

REFUSED: Final = "request_refused"
FAILED: Final = "request_failed"
MAX_ID: Final = 128
"""Characters of a request's id; longer ones are cut."""
SAMPLED: Final = "sampled"
"""The key by which a line says that it has been through a sampler."""

_CALLERS: Final = frozenset({"INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "UNIMPLEMENTED"})
"""Codes of what callers did wrong: no reason to look after the server."""

_log = structlog.get_logger(__name__)


class Complaints:
    """Writes the lines.

    Args:
        clock: Monotonic seconds.
        sampler: Says which ones.
    """

    def __init__(self, clock: Callable[[], float], sampler: Sampler | None = None) -> None:
        self._clock = clock
        self._sampler = sampler or Sampler()

    def refused(
        self,
        error: ForebayError,
        method: str,
        *,
        request: Inference | None = None,
        message: inference_pb2.PredictRequest | bytes | None = None,
        metadata: Metadata | None = None,
    ) -> None:
        """A request was not accepted.

        Args:
            error: What the caller gets.
            method: Such as `Predict`.
            request: It, if it came so far.
            message: What the caller sent, parsed or serialized, if it could be read.
            metadata: Of the call.
        """
        self._tell(REFUSED, error, method, request, message, metadata)

    def failed(self, error: ForebayError, method: str, request: Inference, metadata: Metadata | None) -> None:
        """A request that was accepted has failed. Arguments as above."""
        self._tell(FAILED, error, method, request, None, metadata)

    def _tell(
        self,
        event: str,
        error: ForebayError,
        method: str,
        request: Inference | None,
        message: inference_pb2.PredictRequest | bytes | None,
        metadata: Metadata | None,
    ) -> None:
        reason = error.reason
        suppressed = None if isinstance(error, Internal) else self._sampler.admit(reason, self._clock())
        if suppressed is None:
            return
        code = CODE_NAMES[reason]
        said: dict[str, object] = {"method": method, "code": code, "reason": reason}
        if request is not None:
            said["model"], said["version"] = request.lane.key
        if message is not None:
            said["request_id"] = _id_of(message)
        elif request is not None:
            said["request_id"] = _echo_in(request.tail)
        said["trace_id"] = _trace_id(metadata)
        said = {name: value for name, value in said.items() if value != ""}
        if suppressed:
            said["suppressed"] = suppressed
        said[SAMPLED] = True
        if code in _CALLERS:
            _log.info(event, **said)
        else:
            _log.warning(event, **said)

    def flush(self) -> None:
        """Tells what was left out, if it was not told for a while. Cheap; once a turn."""
        if self._sampler.due <= self._clock():
            self._settle(at_once=False)

    def close(self) -> None:
        """Tells all that was left out: nothing more comes."""
        self._settle(at_once=True)

    def _settle(self, *, at_once: bool) -> None:
        for reason, count in self._sampler.settle(self._clock(), at_once=at_once):
            _log.warning("requests_not_logged", reason=reason, suppressed=count, sampled=True)


def _id_of(message: inference_pb2.PredictRequest | bytes) -> str:
    """The id of a request."""
    try:
        parsed = inference_pb2.PredictRequest.FromString(message) if isinstance(message, bytes) else message
    except DecodeError:
        return ""
    return parsed.request_id[:MAX_ID]


def _echo_in(tail: bytes) -> str:
    """The request's id in the serialized part of its response that is known already."""
    try:
        return inference_pb2.PredictResponse.FromString(tail).request_id[:MAX_ID]
    except DecodeError:
        return ""


def _trace_id(metadata: Metadata | None) -> str:
    """The id of the trace that the caller is in; empty if it is in none, or says so in a form that is not W3C's."""
    for key, value in metadata or ():
        if key == KEY:
            parent = parse(value)
            return "" if parent is None else f"{parent.trace_id:032x}"
    return ""
