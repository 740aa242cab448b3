"""What each version of each model has done since the server started, in plain numbers.

The core and the services leave events, plain tuples (`scheduling.events`), in a list; whoever runs the dispatcher hands
the whole list to `Statistics.absorb` now and then, in the dispatcher's thread. `GetStatistics` and the exporters read.
Every label has a bounded number of values, whatever callers do. Nothing here decides.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from math import ceil, log2
from typing import Any, Final

import numpy as np

from forebay_server.scheduling.events import BATCH, CANCELLED, DONE, EXEMPLAR, METHODS, OK, REFUSED, SERVED
from forebay_server.telemetry.histogram import GROWTH, SMALLEST, Histogram
from forebay_server.telemetry.names import OTHER, UNKNOWN

MAX_BATCH_SIZES: Final = 1024
"""Distinct batch sizes that are counted one by one; others count as the next power of two."""
MAX_MODELS: Final = 4096
"""Versions of models that are kept."""
MAX_EXEMPLARS: Final = 16
"""Kept per histogram, by the power of two of their duration; the oldest goes."""

_MANY: Final = 24
"""From so many durations on, numpy is quicker."""

ModelKey = tuple[str, int]
Event = tuple[Any, ...]
Exemplar = tuple[float, int, int, float]
"""(seconds, trace id, span id, seconds since 1970)."""


class ModelFigures:
    """The figures of one version of a model. Read them in the dispatcher's thread, or take a `copy` there.

    Attributes:
        outcomes_by: By method, requests by `OK`, `CANCELLED` or the reason of their error.
        refusals: Requests that were not accepted, by reason; they are among the outcomes, too.
        batch_sizes: Batches by their rows, without padding.
        batch_requests: Batches by their requests.
        dispatches: Batches by the number of the reason of their start.
        padded_rows: Rows that were added as padding.
        queue_time: Seconds in the queue, per accepted request.
        compute_time: Seconds in the engine, per batch.
        accuracy: Seconds in the engine over those that were predicted, per batch for which they were.
        request_times: By method, seconds from the arrival of an accepted request to its outcome.
        exemplars: By method, requests that were traced, by the power of two above their duration.
    """

    __slots__ = (
        "accuracy",
        "batch_requests",
        "batch_sizes",
        "compute_time",
        "dispatches",
        "exemplars",
        "outcomes_by",
        "padded_rows",
        "queue_time",
        "refusals",
        "request_times",
    )

    def __init__(self) -> None:
        self.outcomes_by: tuple[dict[str, int], ...] = tuple({} for _ in METHODS)
        self.refusals: dict[str, int] = {}
        self.batch_sizes: dict[int, int] = {}
        self.batch_requests: dict[int, int] = {}
        self.dispatches: dict[int, int] = {}
        self.padded_rows = 0
        self.queue_time = Histogram()
        self.compute_time = Histogram()
        self.accuracy = Histogram()
        self.request_times = tuple(Histogram() for _ in METHODS)
        self.exemplars: tuple[dict[int, Exemplar], ...] = tuple({} for _ in METHODS)

    @property
    def outcomes(self) -> dict[str, int]:
        """Requests by outcome, all methods together."""
        found: dict[str, int] = {}
        for outcomes in self.outcomes_by:
            for outcome, count in outcomes.items():
                found[outcome] = found.get(outcome, 0) + count
        return found

    @property
    def request_time(self) -> Histogram:
        """Seconds from the arrival of an accepted request to its outcome, all methods together."""
        found = Histogram()
        for times in self.request_times:
            found.add(times)
        return found

    def batches(self, events: Sequence[Event]) -> None:
        """Batches have run; `BATCH` events, at least one. Column by column, which is quicker than one by one."""
        _, _, rows, requests, padded, reasons, predicted, took = zip(*events, strict=True)
        for sizes, found in ((self.batch_sizes, Counter(rows)), (self.batch_requests, Counter(requests))):
            for size, count in found.items():
                known = size if size in sizes or len(sizes) < MAX_BATCH_SIZES else 1 << (size - 1).bit_length()
                sizes[known] = sizes.get(known, 0) + count
        for reason, count in Counter(map(int, reasons)).items():
            self.dispatches[reason] = self.dispatches.get(reason, 0) + count
        self.padded_rows += sum(padded) - sum(rows)
        self.compute_time.record_all(took)
        self.accuracy.record_all([real / thought for real, thought in zip(took, predicted, strict=True) if thought])

    def durations(self, method: int, times: "_Times") -> None:
        """Requests of a method have ended, those of `SERVED` events well; the others are counted by `ended`."""
        waited, took = self.queue_time, self.request_times[method]
        waited.record_all(times.waited)
        took.record_all(times.took)
        if not times.served:
            return
        _, _, _, began, ended, arrivals = zip(*times.served, strict=True)
        counts = list(map(len, arrivals))
        requests = sum(counts)
        self.ended(method, OK, requests)
        if requests >= _MANY:
            flat = np.fromiter(chain.from_iterable(arrivals), float, requests)
            waited.record_all(np.repeat(began, counts) - flat)
            took.record_all(np.repeat(ended, counts) - flat)
            return
        for start, end, those in zip(began, ended, arrivals, strict=True):
            for arrival in those:
                waited.record(start - arrival)
                took.record(end - arrival)

    def ended(self, method: int, outcome: str, requests: int) -> None:
        """So many requests have ended alike."""
        outcomes = self.outcomes_by[method]
        outcomes[outcome] = outcomes.get(outcome, 0) + requests

    def exemplar(self, method: int, seconds: float, trace_id: int, span_id: int, at: float) -> None:
        """A request of a method was traced."""
        exemplars = self.exemplars[method]
        power = max(-64, ceil(log2(seconds))) if seconds > 0.0 else -64
        if power not in exemplars and len(exemplars) >= MAX_EXEMPLARS:
            del exemplars[min(exemplars, key=lambda each: exemplars[each][3])]
        exemplars[power] = (seconds, trace_id, span_id, at)

    def copy(self) -> "ModelFigures":
        """Figures that no longer move; about 4 microseconds."""
        copied = ModelFigures.__new__(ModelFigures)
        copied.outcomes_by = tuple([outcomes.copy() for outcomes in self.outcomes_by])
        copied.refusals = self.refusals.copy()
        copied.batch_sizes = self.batch_sizes.copy()
        copied.batch_requests = self.batch_requests.copy()
        copied.dispatches = self.dispatches.copy()
        copied.padded_rows = self.padded_rows
        copied.queue_time = self.queue_time.copy()
        copied.compute_time = self.compute_time.copy()
        copied.accuracy = self.accuracy.copy()
        copied.request_times = tuple([times.copy() for times in self.request_times])
        copied.exemplars = tuple([exemplars.copy() for exemplars in self.exemplars])
        return copied


class _Times:
    """Durations of one version and method, until all events have been gone through."""

    __slots__ = ("served", "took", "waited")

    def __init__(self) -> None:
        self.served: list[Event] = []
        """`SERVED` events."""
        self.waited: list[float] = []
        self.took: list[float] = []


class Statistics:
    """The figures of all models.

    Args:
        codes: The canonical name of the status code for each reason of an error.
        tenants: Those that are known by name; all others count as one.

    Attributes:
        smallest: The upper bound of the first bucket of the histograms, in seconds.
        growth: By how much each bound is larger than the one before.
    """

    smallest = SMALLEST
    growth = GROWTH

    def __init__(self, codes: Mapping[str, str], tenants: Iterable[str] = ()) -> None:
        self._codes = {**codes, OK: OK, CANCELLED: CANCELLED}
        self._models: dict[ModelKey, ModelFigures] = {}
        self.tenant_refusals: dict[str, int] = {**dict.fromkeys(tenants, 0), OTHER: 0}
        """Requests that were not accepted, by tenant."""

    def absorb(self, events: Iterable[Event]) -> None:
        """Adds up events."""
        batches: defaultdict[ModelKey, list[Event]] = defaultdict(list)
        durations: defaultdict[tuple[ModelKey, int], _Times] = defaultdict(_Times)
        for event in events:
            kind = event[0]
            key = event[1]
            if kind == SERVED:
                durations[key, event[2]].served.append(event)
            elif kind == BATCH:
                batches[key].append(event)
            else:
                figures = self._figures(key)
                if figures is not None:
                    self._absorb_single(event, figures, durations)
        for key, those in batches.items():
            figures = self._figures(key)
            if figures is not None:
                figures.batches(those)
        for (key, method), times in durations.items():
            figures = self._figures(key)
            if figures is not None:
                figures.durations(method, times)

    def _figures(self, key: ModelKey) -> ModelFigures | None:
        """Those of a version; None if too many are kept."""
        figures = self._models.get(key)
        if figures is None and len(self._models) < MAX_MODELS:
            figures = self._models[key] = ModelFigures()
        return figures

    def _absorb_single(
        self, event: Event, figures: ModelFigures, durations: defaultdict[tuple[ModelKey, int], _Times]
    ) -> None:
        """Adds up an event of one request."""
        match event:
            case (kind, key, method, outcome, queued, total) if kind == DONE:
                figures.ended(method, outcome if outcome in self._codes else UNKNOWN, 1)
                times = durations[key, method]
                times.waited.append(queued)
                times.took.append(total)
            case (kind, _, method, reason, tenant) if kind == REFUSED:
                reason = reason if reason in self._codes else UNKNOWN
                figures.ended(method, reason, 1)
                figures.refusals[reason] = figures.refusals.get(reason, 0) + 1
                self.tenant_refusals[tenant if tenant in self.tenant_refusals else OTHER] += 1
            case (kind, _, method, seconds, trace_id, span_id, at) if kind == EXEMPLAR:
                figures.exemplar(method, seconds, trace_id, span_id, at)
            case _:
                pass

    def of(self, key: ModelKey) -> ModelFigures:
        """The figures of a version; all zero if it has done nothing."""
        return self._models.get(key) or ModelFigures()

    def keys(self) -> list[ModelKey]:
        """The versions that have done something."""
        return list(self._models)

    def code(self, outcome: str) -> str:
        """The canonical name of the status code of an outcome."""
        return self._codes.get(outcome, UNKNOWN)

    def forget(self, key: ModelKey) -> None:
        """Drops the figures of a version that is gone."""
        self._models.pop(key, None)
