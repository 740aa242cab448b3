"""The way of spans to a collector: what makes them, what is around them, what sends them. Imports OpenTelemetry."""

from importlib.metadata import version
from typing import NamedTuple, Protocol

from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from forebay_server.telemetry import otel
from forebay_server.telemetry.resource import resource
from forebay_server.telemetry.tracing import names
from forebay_server.telemetry.tracing.message import Frame
from forebay_server.telemetry.tracing.options import Options
from forebay_server.telemetry.tracing.spans import Spans


class Sender(Protocol):
    """Sends messages of spans to a collector. Used by one thread; `shutdown` by any."""

    def send(self, message: bytes) -> bool:
        """Sends a message, with what tries and time the settings allow; whether the collector has taken it."""

    def shutdown(self) -> None:
        """Has `send` give up soon, and no longer try."""


class Way(NamedTuple):
    """The parts."""

    spans: Spans
    frame: Frame
    sender: Sender


def open_way(options: Options) -> Way:
    """Makes the parts; the sender connects when it sends.

    Raises:
        ImportError: The SDK has no exporter for this protocol.
        Exception: It does not take the variables.
    """
    otel.hush()
    sender = _sender(otel.url(otel.Signal.TRACES, options.endpoint, options.protocol), options.protocol)
    frame = Frame(resource(), InstrumentationScope(names.SCOPE, version("forebay"), names.SCHEMA))
    return Way(Spans(options.links), frame, sender)


def _sender(endpoint: str | None, protocol: str) -> Sender:
    if protocol == otel.GRPC:
        from forebay_server.telemetry.tracing.sender_grpc import GrpcSender  # noqa: PLC0415  # only what is used

        return GrpcSender(endpoint)
    from forebay_server.telemetry.tracing.sender_http import HttpSender  # noqa: PLC0415  # as above

    return HttpSender(endpoint)
