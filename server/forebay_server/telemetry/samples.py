"""What is exported: samples, plain values under a metric's name and labels, and how figures become samples.

Taking figures is the dispatcher's part and quick; making samples of them is the exporter's, in a thread of its own.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

from forebay_server.scheduling.events import METHODS, REASONS
from forebay_server.telemetry import names
from forebay_server.telemetry.histogram import Histogram
from forebay_server.telemetry.metric import Metric
from forebay_server.telemetry.names import OTHER
from forebay_server.telemetry.statistics import Exemplar, ModelFigures, ModelKey


class Distribution(NamedTuple):
    """The value of a histogram."""

    buckets: list[int]
    """How many were at most as large as each of the metric's bounds; then, as the last, how many there were."""
    sum: float
    exemplars: Mapping[int, Exemplar] = {}
    """By the place of their bucket."""
    exact: Histogram | None = None
    """With the finer buckets, if there are any."""


Value: TypeAlias = float | Distribution
Sample: TypeAlias = tuple[Metric, tuple[str, ...], Value]


def durations(metric: Metric, histogram: Histogram, exemplars: Mapping[Any, Exemplar] | None = None) -> Distribution:
    """The value of a metric with `places`."""
    cumulative = list(accumulate(histogram.counts))
    found: dict[int, Exemplar] = {}
    for exemplar in (exemplars or {}).values():
        bucket = bisect_left(metric.bounds, exemplar[0])
        if bucket not in found or found[bucket][3] < exemplar[3]:
            found[bucket] = exemplar
    return Distribution(
        [*[cumulative[place] for place in metric.places], histogram.count], histogram.sum, found, histogram
    )


def sizes(metric: Metric, counted: Mapping[int, int]) -> Distribution:
    """The value of a metric with `sizes`, of how often each size was seen."""
    counts = [0] * (len(metric.sizes) + 1)
    for size, times in counted.items():
        counts[bisect_left(metric.sizes, size)] += times
    return Distribution(list(accumulate(counts)), sum(size * times for size, times in counted.items()))


def of_version(key: ModelKey, done: ModelFigures, codes: Mapping[str, str]) -> Iterator[Sample]:
    """The samples of what a version of a model has done.

    Args:
        key: Name and version; `NOBODY` for requests that named none that is served.
        done: A copy.
        codes: The status code of each outcome.
    """
    name, version = key
    model = (name, str(version)) if name else (OTHER, "")
    for method, outcomes in zip(METHODS, done.outcomes_by, strict=True):
        for outcome, count in outcomes.items():
            code = codes.get(outcome, names.UNKNOWN)
            yield names.REQUESTS, (*model, method, code, "" if outcome == code else outcome), count
    for reason, count in done.refusals.items():
        yield names.REFUSALS, (*model, reason), count
    if not name:
        return
    for method, times, exemplars in zip(METHODS, done.request_times, done.exemplars, strict=True):
        if times.count:
            yield (
                names.REQUEST_DURATION,
                (*model, method),
                durations(names.REQUEST_DURATION, times, exemplars),
            )
    yield names.QUEUE_DURATION, model, durations(names.QUEUE_DURATION, done.queue_time)
    yield names.COMPUTE_DURATION, model, durations(names.COMPUTE_DURATION, done.compute_time)
    for number, count in done.dispatches.items():
        yield names.BATCHES, (*model, REASONS.get(number, OTHER)), count
    yield names.BATCH_ROWS, model, sizes(names.BATCH_ROWS, done.batch_sizes)
    yield names.BATCH_REQUESTS, model, sizes(names.BATCH_REQUESTS, done.batch_requests)
    yield names.PADDED_ROWS, model, done.padded_rows
    yield names.PREDICTION, model, durations(names.PREDICTION, done.accuracy)
    yield names.ENGINE_BUSY, model, done.compute_time.sum
