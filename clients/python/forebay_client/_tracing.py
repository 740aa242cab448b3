"""CLIENT spans through the OpenTelemetry API, if the application uses it.

Nothing of OpenTelemetry is imported unless the application has imported it, and without a provider that it has set up
nothing is recorded. What is sent along (`traceparent`) is what its propagators say.

Names are those of the semantic conventions 1.44 for remote procedure calls.
"""

import sys
from collections.abc import Sequence
from typing import Any, Final

from forebay_client._exceptions import ForebayError

METHODS: Final = {
    "Predict": "forebay.v1.InferenceService/Predict",
    "StreamPredict": "forebay.v1.InferenceService/StreamPredict",
    "ListModels": "forebay.v1.ModelService/ListModels",
    "GetModel": "forebay.v1.ModelService/GetModel",
    "GetStatistics": "forebay.v1.ModelService/GetStatistics",
    "Submit": "forebay.v1.JobService/Submit",
    "Result": "forebay.v1.JobService/Result",
    "CancelJob": "forebay.v1.JobService/CancelJob",
    "ListJobs": "forebay.v1.JobService/ListJobs",
    "Check": "grpc.health.v1.Health/Check",
}
"""By the name that the client has for them."""
ITEM: Final = "forebay.stream.item"
ITEM_ID: Final = "forebay.stream.item.id"
TRACEPARENT: Final = "traceparent"

Metadata = tuple[tuple[str, str | bytes], ...]

_tracer: tuple[Any, Any] = (None, None)  # the last provider, and its tracer: making one takes longer than a span


class CallSpan:
    """The span of one call, or of an item of a stream."""

    __slots__ = ("_api", "_span", "carrier", "context")

    def __init__(self, api: Any, name: str, attributes: dict[str, Any], context: Any = None) -> None:
        from opentelemetry import propagate  # noqa: PLC0415  # the application has it, see the top

        self._api = api
        self._span = _tracer_of(api).start_span(name, context=context, kind=api.SpanKind.CLIENT, attributes=attributes)
        self.context = api.set_span_in_context(self._span, context)
        self.carrier: dict[str, str] = {}
        """What goes along."""
        propagate.inject(self.carrier, context=self.context)

    @property
    def recording(self) -> bool:
        """Whether anybody will see it."""
        return bool(self._span.is_recording())

    def end(self, error: ForebayError | None = None) -> None:
        """It is over."""
        span = self._span
        if error is not None:
            self.fail(error.code.name, error.reason)
            return
        span.set_attribute("rpc.response.status_code", "OK")
        span.end()

    def fail_or_end(self, code: Any) -> None:
        """It is over, with this `grpc.StatusCode`."""
        if code.name == "OK":
            self.end()
        else:
            self.fail(code.name)

    def fail(self, code: str, reason: str = "") -> None:
        """It is over, and has failed."""
        span = self._span
        span.set_attribute("rpc.response.status_code", code)
        span.set_attribute("error.type", reason or code)
        span.set_status(self._api.Status(self._api.StatusCode.ERROR))
        span.end()


def start(method: str, address: str | Sequence[str]) -> CallSpan | None:
    """Begins the span of a call; None if the application does not use OpenTelemetry.

    Args:
        method: One of `METHODS`.
        address: What the client was given; of several addresses the first is named.
    """
    api: Any = sys.modules.get("opentelemetry.trace")
    if not hasattr(api, "get_tracer_provider"):
        return None
    name = METHODS[method]
    server = address if isinstance(address, str) else next(iter(address), "")
    host, _, port = server.rpartition(":")
    attributes: dict[str, Any] = {"rpc.system.name": "grpc", "rpc.method": name, "server.address": server}
    if port.isdigit():
        attributes |= {"server.address": host, "server.port": int(port)}
    return CallSpan(api, name, attributes)


def with_context(metadata: Metadata, span: CallSpan | None) -> Metadata:
    """The metadata of a call that has this span."""
    return metadata if span is None or not span.carrier else (*metadata, *span.carrier.items())


class StreamSpan:
    """The span of a stream, and those of its items. Whoever calls it holds the stream's lock."""

    def __init__(self, span: CallSpan) -> None:
        self._span = span
        self._items: dict[int, CallSpan] = {}
        self._opened_in = _current(span._api)  # noqa: SLF001  # its other half
        self._ended = False

    def item(self, index: int) -> str:
        """An item begins: its `traceparent`; empty if nobody will see it.

        If the source has a span of its own around the item, that is the parent; else the stream is.
        """
        if not self._span.recording:
            return ""
        api = self._span._api  # noqa: SLF001  # see above
        around = _current(api)
        own = around.get_span_context().is_valid and around is not self._opened_in
        item = CallSpan(api, ITEM, {ITEM_ID: index}, None if own else self._span.context)
        self._items[index] = item
        return item.carrier.get(TRACEPARENT, "")

    def answered(self, index: int, error: ForebayError | None) -> None:
        """An item has its outcome."""
        item = self._items.pop(index, None)
        if item is not None:
            item.end(error)

    def end(self, error: ForebayError | None = None, *, cancelled: bool = False) -> None:
        """The stream is over; items without an outcome have none."""
        if self._ended:
            return
        self._ended = True
        for each in (*self._items.values(), self._span):
            if cancelled:
                each.fail("CANCELLED")
            else:
                each.end(error)
        self._items.clear()


def stream(span: CallSpan | None) -> StreamSpan | None:
    """What a stream has of its span."""
    return None if span is None else StreamSpan(span)


def _tracer_of(api: Any) -> Any:
    global _tracer  # noqa: PLW0603  # a memo
    provider, tracer = _tracer
    current = api.get_tracer_provider()
    if current is not provider:
        tracer = api.get_tracer("forebay_client")
        _tracer = current, tracer
    return tracer


def _current(api: Any) -> Any:
    return api.get_current_span()
