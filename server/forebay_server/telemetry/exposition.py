"""Samples as text for Prometheus: its own format (0.0.4), and OpenMetrics 1.0, which has exemplars and units.

Written by hand because most of it is histograms, whose lines differ in a number only: fifty models are ten thousand
lines. Runs in an exporter's thread, and lets others have the GIL between families, so that the dispatcher waits for a
fraction of a millisecond, not for all of it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from forebay_server.telemetry.metric import Metric
from forebay_server.telemetry.names import METRICS
from forebay_server.telemetry.samples import Distribution, Sample

PORTION: Final = 32
"""Samples between two chances for others."""


def expose(samples: Iterable[Sample], *, openmetrics: bool, breathe: Callable[[], None]) -> bytes:
    """All samples, by metric.

    Args:
        samples: In any order; no two of the same metric and labels.
        openmetrics: Which format.
        breathe: Called often; gives up the GIL.
    """
    lines: list[str] = []
    written = 0
    for metric, found in by_metric(samples):
        lines += _about(metric, openmetrics=openmetrics)
        bounds = [f'le="{bound!r}"}} ' for bound in map(float, metric.bounds)] + ['le="+Inf"} ']
        for _, values, value in found:
            written += 1
            if written % PORTION == 0:
                breathe()
            labels = _labels(metric.labels, values)
            if isinstance(value, Distribution):
                _histogram(lines, metric.family, labels, bounds, value, exemplars=openmetrics)
            elif labels:
                lines.append(f"{metric.prometheus}{{{labels}}} {value!r}")
            else:
                lines.append(f"{metric.prometheus} {value!r}")
    if openmetrics:
        lines.append("# EOF")
    lines.append("")
    return "\n".join(lines).encode()


def by_metric(samples: Iterable[Sample]) -> list[tuple[Metric, list[Sample]]]:
    """Samples by metric, in the order in which `names` has these."""
    found: dict[Metric, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample[0], []).append(sample)
    return [(metric, found[metric]) for metric in METRICS if metric in found]


def _about(metric: Metric, *, openmetrics: bool) -> list[str]:
    family = metric.family if openmetrics else metric.prometheus
    text = metric.help.replace("\\", "\\\\").replace("\n", "\\n")
    lines = [f"# HELP {family} {text}", f"# TYPE {family} {metric.kind.value}"]
    if openmetrics and metric.word:
        lines.append(f"# UNIT {family} {metric.word}")
    return lines


def _histogram(
    lines: list[str], family: str, labels: str, bounds: Sequence[str], value: Distribution, *, exemplars: bool
) -> None:
    start = f"{family}_bucket{{{labels}," if labels else f"{family}_bucket{{"
    written = [f"{start}{bound}{count}" for bound, count in zip(bounds, value.buckets, strict=True)]
    if exemplars:
        for place, (seconds, trace_id, span_id, at) in value.exemplars.items():
            written[place] += f' # {{trace_id="{trace_id:032x}",span_id="{span_id:016x}"}} {seconds!r} {at:.3f}'
    lines += written
    braced = f"{{{labels}}}" if labels else ""
    lines.append(f"{family}_sum{braced} {value.sum!r}")
    lines.append(f"{family}_count{braced} {value.buckets[-1]}")


def _labels(keys: Sequence[str], values: Sequence[str]) -> str:
    return ",".join([f'{key}="{_escape(value)}"' for key, value in zip(keys, values, strict=True)])


def _escape(value: str) -> str:
    if value.isalnum():
        return value
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
