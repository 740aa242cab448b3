"""Sends metrics to an OpenTelemetry collector on a timer, from a thread of its own, through the SDK's exporters.

Nobody waits for it: a collector that is down or slow delays the next export, and at any time there is one set of
samples in memory. They are sent in portions, because the SDK's encoder keeps the GIL.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from forebay_server.background import can_wait
from forebay_server.config.tree import MetricsConfig
from forebay_server.errors import ConfigError
from forebay_server.telemetry import otel
from forebay_server.telemetry.metric import Metric
from forebay_server.telemetry.names import METRICS
from forebay_server.telemetry.samples import Sample

if TYPE_CHECKING:
    from forebay_server.telemetry.otlp_sender import MetricSender, Portion

PORTION: Final = 64
"""Data points in an export."""
LAST_TRY: Final = 2.0
"""Seconds that the export at the end may take."""

DEFAULT_INTERVAL: Final = 60.0
"""Seconds between exports, as the specification says."""

_INTERVAL: Final = "OTEL_METRIC_EXPORT_INTERVAL"  # milliseconds
_EXPONENTIAL: Final = "base2_exponential_bucket_histogram"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to export, once settings and environment are put together.

    Attributes:
        endpoint: As set; empty: the SDK finds it in the environment.
        protocol: `grpc` or `http/protobuf`.
        interval: Seconds.
        exponential: Whether histograms of durations go as exponential ones.
    """

    endpoint: str
    protocol: str
    interval: float
    exponential: bool


def options(config: MetricsConfig, environment: Mapping[str, str]) -> Options | None:
    """What the settings and the standard variables ask for; None: no export.

    Raises:
        ConfigError: A variable has a value that it can't have.
    """
    if not otel.wanted(otel.Signal.METRICS, config.endpoint, environment):
        return None
    interval = config.interval_s or otel.number(_INTERVAL, environment, DEFAULT_INTERVAL * 1e3, least=1.0) / 1e3
    aggregation = environment.get("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "").lower()
    return Options(
        endpoint=config.endpoint,
        protocol=otel.protocol(otel.Signal.METRICS, config.protocol, environment),
        interval=interval,
        exponential=aggregation == _EXPONENTIAL,
    )


class OtlpMetrics:
    """The exporter.

    Args:
        chosen: How.
        read: Gives all samples; called in this exporter's thread, raises if it can't.

    Attributes:
        sent: Exports that the collector has taken.
        failed: Exports that it has not.
    """

    def __init__(self, chosen: Options, read: Callable[[], Sequence[Sample]]) -> None:
        self._options = chosen
        self._read = read
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="forebay-otlp-metrics", daemon=True)
        self._sender: MetricSender | None = None
        self._ok = True
        self.sent = 0
        self.failed = 0

    def start(self) -> None:
        """Makes the sender, which connects when it sends, and starts the thread.

        Raises:
            ConfigError: The extra `otel` is not installed, or the SDK does not take the settings.
        """
        chosen = self._options
        try:
            from forebay_server.telemetry.otlp_sender import MetricSender  # noqa: PLC0415  # it imports the SDK, an extra

            endpoint = otel.url(otel.Signal.METRICS, chosen.endpoint, chosen.protocol)
            self._sender = MetricSender(endpoint, chosen.protocol, exponential=chosen.exponential)
        except ImportError as error:
            raise ConfigError("to export metrics install forebay[otel]") from error
        except Exception as error:
            raise ConfigError(f"telemetry.metrics: {error}") from error
        self._thread.start()

    def close(self) -> None:
        """Sends once more, if that is quick, and ends."""
        if self._sender is None or not self._thread.is_alive():
            return
        self._stopping.set()
        self._thread.join(LAST_TRY)
        self._sender.shutdown()
        self._thread.join(LAST_TRY)

    def _main(self) -> None:
        can_wait()
        while not self._stopping.wait(self._options.interval):
            self._export()
        self._export()

    def _export(self) -> None:
        try:
            samples = self._read()
        except Exception as error:  # noqa: BLE001  # the dispatcher is busy or has ended; the next time may go well
            _log.debug("metrics_not_read", error=str(error))
            return
        ok = True
        for portion in _portions(samples):
            ok = ok and self._send(portion)
            if not ok:
                break  # the others would fail as slowly
            time.sleep(0)
        if ok:
            self.sent += 1
        else:
            self.failed += 1
        if ok != self._ok:
            self._ok = ok
            if ok:
                _log.info("metrics_exported_again")
            else:
                _log.warning("metrics_not_exported", protocol=self._options.protocol)

    def _send(self, portion: "Portion") -> bool:
        assert self._sender is not None  # noqa: S101  # `start` made it
        try:
            return self._sender.send(portion)
        except Exception:  # noqa: BLE001  # whatever the SDK does, the thread goes on
            _log.exception("metrics_export_failed")
            return False


def _portions(samples: Sequence[Sample]) -> "Iterator[Portion]":
    """Samples by metric, so many at a time."""
    by_metric: dict[Metric, list[Sample]] = {}
    for sample in samples:
        by_metric.setdefault(sample[0], []).append(sample)
    portion: list[tuple[Metric, list[Sample]]] = []
    room = PORTION
    for metric in METRICS:
        found = by_metric.get(metric, [])
        while found:
            portion.append((metric, found[:room]))
            taken = len(portion[-1][1])
            found = found[taken:]
            room -= taken
            if not room:
                yield portion
                portion, room = [], PORTION
    if portion:
        yield portion
