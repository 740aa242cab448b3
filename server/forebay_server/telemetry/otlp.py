"""Sends metrics to an OpenTelemetry collector on a timer, from a thread of its own, through the SDK's exporters.

Nobody waits for it: a collector that is down or slow delays the next export, and at any time there is one set of
samples in memory. They are sent in portions, because the SDK's encoder keeps the GIL.

The SDK has no producer interface, so its data points are built here from samples. Everything is cumulative since the
start of the process; other temporalities are the collector's to make.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final

import structlog

from forebay_server.background import can_wait
from forebay_server.config.tree import MetricsConfig
from forebay_server.errors import ConfigError
from forebay_server.telemetry import otel
from forebay_server.telemetry.histogram import FIRST, SCALE
from forebay_server.telemetry.metric import Kind, Metric
from forebay_server.telemetry.names import METRICS
from forebay_server.telemetry.samples import Distribution, Sample

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
        self._began = time.time_ns()
        self._exporter: Any = None
        self._resource: Any = None
        self._ok = True
        self.sent = 0
        self.failed = 0

    def start(self) -> None:
        """Makes the SDK's exporter, which connects when it sends, and starts the thread.

        Raises:
            ConfigError: The extra `otel` is not installed, or the SDK does not take the settings.
        """
        try:
            self._exporter = _exporter(self._options)
            self._resource = otel.resource()
        except ImportError as error:
            raise ConfigError("to export metrics install forebay[otel]") from error
        except Exception as error:
            raise ConfigError(f"telemetry.metrics: {error}") from error
        self._thread.start()

    def close(self) -> None:
        """Sends once more, if that is quick, and ends."""
        if not self._thread.is_alive():
            return
        self._stopping.set()
        self._thread.join(LAST_TRY)
        self._exporter.shutdown()
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

    def _send(self, portion: Sequence[tuple[Metric, Sequence[Sample]]]) -> bool:
        from opentelemetry.sdk.metrics import export  # noqa: PLC0415  # the extra may be missing
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415  # see above

        now = time.time_ns()
        metrics = [
            export.Metric(metric.name, metric.help, metric.unit, self._data(metric, samples, now))
            for metric, samples in portion
        ]
        scope = export.ScopeMetrics(InstrumentationScope("forebay", metadata.version("forebay")), metrics, "")
        data = export.MetricsData([export.ResourceMetrics(self._resource, [scope], "")])
        try:
            return self._exporter.export(data) is export.MetricExportResult.SUCCESS
        except Exception:  # noqa: BLE001  # whatever the SDK does, the thread goes on
            _log.exception("metrics_export_failed")
            return False

    def _data(self, metric: Metric, samples: Sequence[Sample], now: int) -> Any:
        from opentelemetry.sdk.metrics import export  # noqa: PLC0415  # the extra may be missing

        cumulative = export.AggregationTemporality.CUMULATIVE
        began = self._began
        pairs = [(dict(zip(metric.labels, labels, strict=True)), value) for _, labels, value in samples]
        if metric.kind is not Kind.HISTOGRAM:
            points = [export.NumberDataPoint(labels, began, now, value) for labels, value in pairs]  # type: ignore[arg-type]  # a number, by its kind
            return export.Gauge(points) if metric.kind is Kind.GAUGE else export.Sum(points, cumulative, True)
        if self._options.exponential and metric.places:
            return export.ExponentialHistogram(
                [_exponential(labels, began, now, value) for labels, value in pairs],  # type: ignore[arg-type]  # see above
                cumulative,
            )
        return export.Histogram([_explicit(metric, labels, began, now, value) for labels, value in pairs], cumulative)  # type: ignore[arg-type]  # see above


def _explicit(metric: Metric, labels: Mapping[str, str], began: int, now: int, value: Distribution) -> Any:
    from opentelemetry.sdk.metrics import export  # noqa: PLC0415  # the extra may be missing

    counts = [count - before for count, before in zip(value.buckets, [0, *value.buckets[:-1]], strict=True)]
    return export.HistogramDataPoint(
        attributes=labels,
        start_time_unix_nano=began,
        time_unix_nano=now,
        count=value.buckets[-1],
        sum=value.sum,
        bucket_counts=counts,
        explicit_bounds=[float(bound) for bound in metric.bounds],
        min=None,  # type: ignore[arg-type]  # not known; optional in the protocol
        max=None,  # type: ignore[arg-type]  # see above
        exemplars=_exemplars(value),
    )


def _exponential(labels: Mapping[str, str], began: int, now: int, value: Distribution) -> Any:
    """The finer buckets as they are: their bounds are those of an exponential histogram."""
    from opentelemetry.sdk.metrics import export  # noqa: PLC0415  # the extra may be missing

    exact = value.exact
    assert exact is not None  # noqa: S101  # metrics with `places` have it
    counts = exact.counts[1:]
    used = [place for place, count in enumerate(counts) if count]
    first, last = (used[0], used[-1]) if used else (0, -1)
    return export.ExponentialHistogramDataPoint(
        attributes=labels,
        start_time_unix_nano=began,
        time_unix_nano=now,
        count=exact.count,
        sum=exact.sum,
        scale=SCALE,
        zero_count=exact.counts[0],
        positive=export.Buckets(FIRST + first, counts[first : last + 1]),
        negative=export.Buckets(0, []),
        flags=0,
        min=None,  # type: ignore[arg-type]  # not known; optional in the protocol
        max=None,  # type: ignore[arg-type]  # see above
        exemplars=_exemplars(value),
    )


def _exemplars(value: Distribution) -> list[Any]:
    from opentelemetry.sdk.metrics import Exemplar  # noqa: PLC0415  # the extra may be missing

    return [
        Exemplar({}, seconds, round(at * 1e9), span_id, trace_id)
        for seconds, trace_id, span_id, at in value.exemplars.values()
    ]


def _portions(samples: Sequence[Sample]) -> Iterator[list[tuple[Metric, list[Sample]]]]:
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


def _exporter(chosen: Options) -> Any:
    otel.hush()
    endpoint = otel.url(otel.Signal.METRICS, chosen.endpoint, chosen.protocol)
    if chosen.protocol == otel.GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter  # noqa: PLC0415  # heavy

        return OTLPMetricExporter(endpoint=endpoint)
    from opentelemetry.exporter.otlp.proto.http import metric_exporter  # noqa: PLC0415  # heavy

    return metric_exporter.OTLPMetricExporter(endpoint=endpoint)
