"""The figures of a load from many short windows, on a machine that is not quiet. Pure.

On a virtual machine a core stands still for some milliseconds now and then, and in such a second p99 is several times
what it is in the next: the median of many windows, or all of them together, says more of the machine than of the
server. Disturbance only ever adds. So what is compared is a *quiet* window: one quarter of the windows is better.
"""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import ceil

Buckets = Iterable[Sequence[int]]
"""`[nanoseconds, count]` for each latency, as the generator writes them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """What one window gave: its figures by name, `p99_ms` and `failures` among them, and its latencies."""

    figures: Mapping[str, float]
    buckets: Buckets

    def __getitem__(self, name: str) -> float:
        return self.figures[name]


def together(windows: Sequence[Window]) -> dict[str, float]:
    """The medians of the windows of a load, all their failures, and the p99 of all of them as one."""
    figures = {name: statistics.median(window[name] for window in windows) for name in windows[0].figures}
    figures["failures"] = sum(window["failures"] for window in windows)
    figures["p99_of_all_ms"] = pooled([window.buckets for window in windows], 0.99)
    return figures


def quiet(figures: Sequence[float], *, more_is_better: bool) -> float:
    """The figure of a quiet window, of two at least."""
    quarters = statistics.quantiles(figures, n=4, method="inclusive")
    return quarters[2] if more_is_better else quarters[0]


def pooled(windows: Iterable[Buckets], fraction: float) -> float:
    """The latency in milliseconds that this fraction of the requests of all windows together did not exceed.

    Raises:
        ValueError: There were none.
    """
    counts: Counter[int] = Counter()
    for buckets in windows:
        for nanoseconds, count in buckets:
            counts[nanoseconds] += count
    left = ceil(fraction * counts.total())
    for nanoseconds, count in sorted(counts.items()):
        left -= count
        if left <= 0:
            return nanoseconds / 1e6
    raise ValueError("no request has succeeded")
