"""The thread that makes spans of records and sends them over OTLP.

A collector that is down, slow or silent holds up this thread and nobody else: records wait in the tracer's queue, which
is bounded, and what finds it full, or can't be delivered in the exporter's time, is dropped and counted.
"""

import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from forebay_server.background import can_wait
from forebay_server.errors import ConfigError
from forebay_server.telemetry import otel
from forebay_server.telemetry.tracing.options import Options
from forebay_server.telemetry.tracing.tracer import Tracer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

    from forebay_server.telemetry.tracing.spans import Spans

REST: Final = 0.0002
"""Seconds of rest after each message, so that the dispatcher, which may wait for the GIL, gets its turn."""
DRIFT: Final = 1_000_000
"""Nanoseconds by which the wall clock may leave the monotonic one before that is followed."""

_log = structlog.get_logger(__name__)


class SpanFigures(NamedTuple):
    """What has become of spans since the start."""

    exported: int
    """Taken by the collector."""
    dropped: int
    """Lost: the queue was full, or the collector did not take them in time."""
    suppressed: int
    """Slow or failed requests that have none, because there were too many of these."""
    queued: int
    """Waiting now."""


class Exporter:
    """Sends the spans of a tracer. `start` and `close` are called by the app, `figures` from any thread.

    Args:
        tracer: Whose spans.
        options: How.

    Raises:
        ConfigError: The OpenTelemetry SDK is not installed, or its exporter can't be made as the variables say.
    """

    def __init__(self, tracer: Tracer, options: Options) -> None:
        self._tracer = tracer
        self._options = options
        self._stopping = threading.Event()
        self._lost = 0
        self._sending = 0
        self._exported = 0
        self._reached: bool | None = None
        self._epoch = 0
        self._spans, self._exporter, self._succeeded = _open(options)
        self._thread = threading.Thread(target=self._run, name="forebay-spans", daemon=True)

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Sends what is left, for so many seconds at most."""
        self._stopping.set()
        self._thread.join(timeout / 2)
        self._exporter.shutdown()  # a collector that does not answer is waited for no longer
        self._thread.join(timeout / 2)
        if self._thread.is_alive():
            self._lost += self._sending  # nobody will know what became of them

    def figures(self) -> SpanFigures:
        """What has become of spans."""
        tracer = self._tracer
        return SpanFigures(self._exported, tracer.dropped + self._lost, tracer.suppressed, len(tracer.queue))

    def _run(self) -> None:
        can_wait()
        while True:
            ending = self._stopping.wait(self._options.delay)
            try:
                while self._tracer.queue:
                    self._send()
                    time.sleep(REST)
            except Exception:  # noqa: BLE001 - nobody else would hear of it
                _log.exception("spans_not_made")
            if ending:
                return

    def _send(self) -> None:
        """Sends one message."""
        queue, make, epoch = self._tracer.queue, self._spans.make, self._clock()
        spans: list[ReadableSpan] = []
        while queue and len(spans) < self._options.batch:
            spans.append(make(queue.popleft(), epoch))
        self._sending = len(spans)
        reached = self._succeeded(self._exporter.export(spans))
        self._sending = 0
        if reached:
            self._exported += len(spans)
        else:
            self._lost += len(spans)
        if reached is not self._reached:  # one line for an outage, however long
            if not reached:
                _log.warning("spans_not_exported", dropped=self.figures().dropped)
            elif self._reached is False:
                _log.info("spans_exported_again", dropped=self.figures().dropped)
            self._reached = reached

    def _clock(self) -> int:
        """Nanoseconds since 1970 at the zero of the monotonic clock; steady, so that spans fit into each other."""
        epoch = time.time_ns() - time.monotonic_ns()
        if abs(epoch - self._epoch) > DRIFT:
            self._epoch = epoch
        return self._epoch


def _open(options: Options) -> "tuple[Spans, SpanExporter, Callable[[object], bool]]":
    """Imports the SDK, which takes a while, and makes its parts."""
    try:
        from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: PLC0415 - only who traces needs it

        if options.protocol == otel.GRPC:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  # as above
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # type: ignore[assignment]  # noqa: PLC0415  # as above, and of one kind
                OTLPSpanExporter,
            )

        from forebay_server.telemetry.tracing.spans import Spans  # noqa: PLC0415 - it imports the SDK
    except ImportError as error:
        raise ConfigError("tracing needs the OpenTelemetry SDK: install forebay[otel]") from error
    otel.hush()
    try:
        exporter = OTLPSpanExporter(endpoint=otel.url(otel.Signal.TRACES, options.endpoint, options.protocol))
        resource = otel.resource()
    except Exception as error:
        raise ConfigError(f"the OTLP exporter can't be made: {error}") from error
    spans = Spans(resource, version("forebay"), options.links)
    return spans, exporter, lambda result: result is SpanExportResult.SUCCESS
