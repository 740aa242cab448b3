"""The cost model: engine seconds of a batch, by bucket and rows.

Warm-up measures a ladder of sizes (1, 2, 4, ... and every size that batches are padded to) several times. Here each
rung is the median of its timings. Between rungs the cost is interpolated linearly, beyond the last it goes on with the
last slope, and below the first it is the first's. A larger batch never costs less: an isotonic pass (pool adjacent
violators) sees to it.

While the server runs, each batch moves its rung by a twentieth of the difference; between two rungs it moves both, by
their nearness. A value over five times the prediction is taken for a hiccup: it is counted, not learned. Only if eight
come in a row has the machine really changed, and the rung takes what is seen. A bucket that warm-up did not see has no
costs until its first batch, which becomes its first rung; further ones are added as its batches reach new sizes.

Not thread-safe: it belongs to the dispatcher once the model serves. No clock: timings are arguments.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

from forebay_server.scheduling.policy import Bucket

CORRECTION = 0.05
"""The part of the difference by which a batch corrects what is expected of its size. The first correct it by a quarter,
a fifth and so on, since warm-up timed each size for a moment only."""
_FIRST_CORRECTIONS = 4
OUTLIER = 5.0
OUTLIERS_BELIEVED = 8
"""So many outliers in a row are no hiccup."""
BEST_WITHIN = 0.96
"""The best size has at least this part of the highest throughput."""
TRIAL_WITHIN = 0.75
"""A larger size is tried if it should have at least this part of the best one's: no measurement is further off."""
MAX_BUCKETS = 1024
"""Costs are kept for so many buckets, the least recently learned are dropped."""
MAX_RUNGS = 32
TAIL_DECAY = 0.999
"""The slowest of about the last thousand batches stands for the 99.9th percentile."""
SAMPLES_FOR_TAIL = 100
PATIENCE_BEFORE = 30.0
"""Seconds after which a batch is stuck while there are too few samples."""
PATIENCE_LEAST = 5.0
PATIENCE_FACTOR = 10.0


class Point(NamedTuple):
    """A rung, for reports and for the cache: its first three items make a measurement again."""

    bucket: Bucket
    rows: int
    seconds: float
    corrections: int
    """Batches that have corrected it since warm-up."""


class _Ladder:
    """The rungs of one bucket."""

    __slots__ = ("corrections", "fitted", "outliers_in_a_row", "pooled", "raw", "samples", "sizes", "tail")

    def __init__(self, rungs: Sequence[tuple[int, float]]) -> None:
        self.sizes = [rows for rows, _ in rungs]
        self.raw = [seconds for _, seconds in rungs]
        self.corrections = [0] * len(rungs)
        self._fit()
        self.samples = 0
        self.outliers_in_a_row = 0
        self.tail = 1.0
        """The largest ratio of seen to predicted of late."""

    def predict(self, rows: int) -> float:
        sizes, fitted = self.sizes, self.fitted
        above = bisect_left(sizes, rows)
        if above == len(sizes):
            last = fitted[-1]
            if above == 1:
                return last * rows / sizes[0]
            slope = (last - fitted[-2]) / (sizes[-1] - sizes[-2])
            return last + slope * (rows - sizes[-1])
        if above == 0 or sizes[above] == rows:
            return fitted[above]
        low, high = sizes[above - 1], sizes[above]
        return fitted[above - 1] + (fitted[above] - fitted[above - 1]) * (rows - low) / (high - low)

    def learn(self, rows: int, seconds: float, *, believed: bool) -> None:
        """Corrects the rungs next to a size; `believed`: they are wrong altogether."""
        sizes = self.sizes
        above = bisect_left(sizes, rows)
        if above < len(sizes) and sizes[above] == rows:
            self._correct(above, seconds, 1.0, believed=believed)
        elif (above in (0, len(sizes)) or rows & (rows - 1) == 0) and len(sizes) < MAX_RUNGS:
            # A size beyond the ladder, or a power of two within it, becomes a rung.
            sizes.insert(above, rows)
            self.raw.insert(above, seconds)
            self.corrections.insert(above, 1)
            self._fit()
        elif above == 0:
            self._correct(0, seconds, 1.0, believed=believed)
        elif above == len(sizes):
            self._correct(above - 1, self.raw[-1] * seconds / self.predict(rows), 1.0, believed=believed)
        else:
            ratio = seconds / self.predict(rows)
            nearness = (rows - sizes[above - 1]) / (sizes[above] - sizes[above - 1])
            self._correct(above - 1, self.fitted[above - 1] * ratio, 1.0 - nearness, believed=believed)
            self._correct(above, self.fitted[above] * ratio, nearness, believed=believed)

    def _correct(self, index: int, seconds: float, nearness: float, *, believed: bool) -> None:
        raw, corrections = self.raw, self.corrections
        step = 1.0 if believed else max(CORRECTION, 1.0 / (corrections[index] + _FIRST_CORRECTIONS))
        raw[index] = new = raw[index] + nearness * step * (seconds - raw[index])
        corrections[index] += 1
        if (
            not self.pooled
            and (index == 0 or raw[index - 1] <= new)
            and (index + 1 == len(raw) or new <= raw[index + 1])
        ):
            self.fitted[index] = new
        else:
            self._fit()

    def _fit(self) -> None:
        self.fitted = _isotonic(self.raw)
        self.pooled = self.fitted != self.raw


class CostModel:
    """Engine seconds by bucket and rows.

    Args:
        measurements: Triples of bucket, rows and seconds, any number of each, in any order.
    """

    def __init__(self, measurements: Iterable[tuple[Bucket, int, float]] = ()) -> None:
        timings: dict[Bucket, dict[int, list[float]]] = {}
        for bucket, rows, seconds in measurements:
            timings.setdefault(bucket, {}).setdefault(rows, []).append(seconds)
        self._ladders = {
            bucket: _Ladder([(rows, median(sizes[rows])) for rows in sorted(sizes)])
            for bucket, sizes in timings.items()
        }
        self.outliers = 0
        """Batches over five times the prediction."""

    def predict(self, bucket: Bucket, rows: int) -> float | None:
        """Engine seconds of a batch of so many rows (padding included); None if nothing is known of the bucket."""
        ladder = self._ladders.get(bucket)
        return None if ladder is None else ladder.predict(rows)

    def observe(self, bucket: Bucket, rows: int, seconds: float) -> None:
        """Learns from a batch of so many rows (padding included) that took so long."""
        ladder = self._ladders.get(bucket)
        if ladder is None:
            if len(self._ladders) >= MAX_BUCKETS:
                del self._ladders[next(iter(self._ladders))]
            self._ladders[bucket] = ladder = _Ladder([(rows, seconds)])
            ladder.corrections[0] = ladder.samples = 1
            return
        predicted = ladder.predict(rows)
        ladder.samples += 1
        ratio = seconds / predicted if predicted > 0.0 else 1.0
        ladder.tail = max(ratio, 1.0, ladder.tail * TAIL_DECAY)
        believed = False
        if ratio > OUTLIER:
            self.outliers += 1
            ladder.outliers_in_a_row += 1
            if ladder.outliers_in_a_row < OUTLIERS_BELIEVED:
                return
            believed = True
        ladder.outliers_in_a_row = 0
        ladder.learn(rows, seconds, believed=believed)

    def best_size(
        self,
        bucket: Bucket,
        limit: int,
        *,
        within: float = BEST_WITHIN,
        per_row: float = 0.0,
        per_batch: float = 0.0,
    ) -> int:
        """The smallest rung whose rows per second are nearly the most.

        Args:
            bucket: The bucket. If nothing is known of it, `limit` is the answer.
            limit: The most rows; it counts as a rung.
            within: The part of the most that is enough.
            per_row: Seconds that a row costs elsewhere.
            per_batch: Seconds that a batch costs elsewhere.
        """
        ladder = self._ladders.get(bucket)
        if ladder is None:
            return limit
        sizes = [size for size in ladder.sizes if size < limit]
        sizes.append(limit)
        rates = [size / max(ladder.predict(size) + size * per_row + per_batch, 1e-12) for size in sizes]
        enough = within * max(rates)
        return next(size for size, rate in zip(sizes, rates, strict=True) if rate >= enough)

    def trial_size(self, bucket: Bucket, size: int, limit: int) -> int:
        """The rung above a size, or twice it, if it may be better than was measured; else the size itself.

        Args:
            bucket: The bucket.
            size: Rows.
            limit: The most rows.
        """
        ladder = self._ladders.get(bucket)
        if ladder is None or size >= limit:
            return size
        more = min((rung for rung in ladder.sizes if rung > size), default=2 * size)
        more = min(more, limit)
        return more if more * ladder.predict(size) >= TRIAL_WITHIN * size * ladder.predict(more) else size

    def patience(self, bucket: Bucket, rows: int) -> float:
        """Seconds after which a batch is stuck: ten times the slowest of late, at least 5 s, and 30 s at first."""
        ladder = self._ladders.get(bucket)
        if ladder is None or ladder.samples < SAMPLES_FOR_TAIL:
            return PATIENCE_BEFORE
        return max(PATIENCE_LEAST, PATIENCE_FACTOR * ladder.tail * ladder.predict(rows))

    def points(self) -> list[Point]:
        """All rungs, by bucket and rows."""
        return [
            Point(bucket, rows, seconds, corrections)
            for bucket, ladder in self._ladders.items()
            for rows, seconds, corrections in zip(ladder.sizes, ladder.fitted, ladder.corrections, strict=True)
        ]


def _isotonic(values: Sequence[float]) -> list[float]:
    """The non-decreasing sequence nearest to `values` (least squares), by pooling adjacent violators."""
    pools: list[tuple[float, int]] = []  # (mean, how many)
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] > mean:
            other, more = pools.pop()
            mean = (mean * count + other * more) / (count + more)
            count += more
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]
