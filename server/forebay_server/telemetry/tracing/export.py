"""The thread that makes spans of records and sends them over OTLP.

A collector that is down, slow or silent holds up this thread and nobody else: records wait in the tracer's queue, which
is bounded, and what finds it full, or can't be delivered in the exporter's time, is dropped and counted.
"""

import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from forebay_server.background import can_wait
from forebay_server.errors import ConfigError
from forebay_server.telemetry.tracing.options import Options
from forebay_server.telemetry.tracing.tracer import Tracer

if TYPE_CHECKING:
    from forebay_server.telemetry.tracing.way import Way

STEPS: Final = 4
"""See `background`. With all requests sampled, on a core that is busy with them, a sixth to a third of the spans were
dropped, in four runs; with the usual ten steps about a half, in one, and more requests were answered."""
SLICE: Final = 0.0001
"""Seconds of work at a stretch: so long the dispatcher may have to wait for the GIL."""
REST: Final = 0.0002
"""Seconds of rest after each, so that the dispatcher gets its turn."""
HURRY: Final = 0.00002
"""The same while more waits than fits into a message; the kernel makes it somewhat longer."""
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
        self._sending = 0  # spans of the message that is being made or sent
        self._exported = 0
        self._reached: bool | None = None
        self._epoch = 0
        self._spans, self._frame, self._sender = _open(options)
        self._thread = threading.Thread(target=self._run, name="forebay-spans", daemon=True)

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Sends what is left, for so many seconds at most."""
        self._stopping.set()
        self._thread.join(timeout / 2)
        self._sender.shutdown()  # a collector that does not answer is waited for no longer
        self._thread.join(timeout / 2)
        if self._thread.is_alive():
            self._lost += self._sending  # nobody will know what became of them

    def figures(self) -> SpanFigures:
        """What has become of spans."""
        tracer = self._tracer
        return SpanFigures(self._exported, tracer.dropped + self._lost, tracer.suppressed, len(tracer.queue))

    def _run(self) -> None:
        can_wait(STEPS)
        while True:
            ending = self._stopping.wait(self._options.delay)
            try:
                while self._tracer.queue:
                    self._send(self._gather())
            except Exception:  # noqa: BLE001  # nobody else would hear of it
                _log.exception("spans_not_sent")
                self._lost += self._sending
                self._sending = 0
            if ending:
                return

    def _gather(self) -> list[bytes]:
        """The spans of the next message, made in short stretches."""
        queue, make, epoch, most = self._tracer.queue, self._spans.make, self._clock(), self._options.batch
        spans: list[bytes] = []
        while queue and len(spans) < most:
            until = time.monotonic() + SLICE
            while queue and len(spans) < most and time.monotonic() < until:
                self._sending += 1
                spans.append(make(queue.popleft(), epoch))
            time.sleep(HURRY if len(queue) > most else REST)
        return spans

    def _send(self, spans: list[bytes]) -> None:
        """Sends one message."""
        reached = self._sender.send(self._frame.message(spans))
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


def _open(options: Options) -> "Way":
    """Imports the SDK, which takes a while, and makes its parts."""
    try:
        from forebay_server.telemetry.tracing.way import open_way  # noqa: PLC0415  # it imports the SDK, an extra

        return open_way(options)
    except ImportError as error:
        raise ConfigError("tracing needs the OpenTelemetry SDK: install forebay[otel]") from error
    except Exception as error:
        raise ConfigError(f"the OTLP exporter can't be made: {error}") from error
