"""The figures of a load from many short windows, on a machine that is not quiet. Pure.

On a virtual machine a core stands still for some milliseconds now and then, and in such a second p99 is several times
what it is in the next: the median of many windows, or all of them together, says more of the machine than of the
server. Disturbance only ever adds. So what is compared is a *quiet* window: one quarter of the windows is better.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from math import ceil

Buckets = Iterable[Sequence[int]]
"""`[nanoseconds, count]` for each latency, as the generator writes them."""


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
