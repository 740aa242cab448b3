"""Sends samples of metrics with the SDK's exporters. Imports OpenTelemetry; see `otlp`.

The SDK has no producer interface, so its data points are built here from samples. Everything is cumulative since the
start of the process; other temporalities are the collector's to make.
"""

import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, Final, TypeAlias

from opentelemetry.sdk.metrics import Exemplar, export
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from forebay_server.telemetry import otel
from forebay_server.telemetry.histogram import FIRST, SCALE
from forebay_server.telemetry.metric import Kind, Metric
from forebay_server.telemetry.resource import resource
from forebay_server.telemetry.samples import Distribution, Sample

Portion: TypeAlias = Sequence[tuple[Metric, Sequence[Sample]]]
"""Samples by metric."""

_CUMULATIVE: Final = export.AggregationTemporality.CUMULATIVE


class MetricSender:
    """Sends portions of samples. Used by one thread; `shutdown` by any.

    Args:
        endpoint: Where to; None: as the variables say.
        protocol: `grpc` or `http/protobuf`.
        exponential: Whether histograms of durations go as exponential ones.

    Raises:
        ImportError: The SDK has no exporter for this protocol.
        Exception: It does not take the variables.
    """

    def __init__(self, endpoint: str | None, protocol: str, *, exponential: bool) -> None:
        otel.hush()
        self._exporter = exporter(endpoint, protocol)
        self._exponential = exponential
        self._resource = resource()
        self._scope = InstrumentationScope("forebay", metadata.version("forebay"))
        self._began = time.time_ns()

    def send(self, portion: Portion) -> bool:
        """Sends them; returns when the collector has them, or when it was in vain."""
        now = time.time_ns()
        metrics = [
            export.Metric(metric.name, metric.help, metric.unit, self._data(metric, samples, now))
            for metric, samples in portion
        ]
        scope = export.ScopeMetrics(self._scope, metrics, "")
        data = export.MetricsData([export.ResourceMetrics(self._resource, [scope], "")])
        return self._exporter.export(data) is export.MetricExportResult.SUCCESS

    def shutdown(self) -> None:
        """Has `send` give up soon."""
        self._exporter.shutdown()

    def _data(self, metric: Metric, samples: Sequence[Sample], now: int) -> Any:
        began = self._began
        pairs = [(dict(zip(metric.labels, labels, strict=True)), value) for _, labels, value in samples]
        if metric.kind is not Kind.HISTOGRAM:
            points = [export.NumberDataPoint(labels, began, now, value) for labels, value in pairs]  # type: ignore[arg-type]  # a number, by its kind
            return export.Gauge(points) if metric.kind is Kind.GAUGE else export.Sum(points, _CUMULATIVE, True)
        if self._exponential and metric.places:
            return export.ExponentialHistogram(
                [_exponential(labels, began, now, value) for labels, value in pairs],  # type: ignore[arg-type]  # see above
                _CUMULATIVE,
            )
        return export.Histogram([_explicit(metric, labels, began, now, value) for labels, value in pairs], _CUMULATIVE)  # type: ignore[arg-type]  # see above


def _explicit(metric: Metric, labels: Mapping[str, str], began: int, now: int, value: Distribution) -> Any:
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
    return [
        Exemplar({}, seconds, round(at * 1e9), span_id, trace_id)
        for seconds, trace_id, span_id, at in value.exemplars.values()
    ]


def exporter(endpoint: str | None, protocol: str) -> export.MetricExporter:
    """The SDK's exporter for a protocol."""
    if protocol == otel.GRPC:
        from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as grpc  # noqa: PLC0415  # only what is used

        return grpc.OTLPMetricExporter(endpoint=endpoint)
    from opentelemetry.exporter.otlp.proto.http import metric_exporter as http  # noqa: PLC0415  # as above

    return http.OTLPMetricExporter(endpoint=endpoint)
