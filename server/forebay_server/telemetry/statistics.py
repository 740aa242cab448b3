"""What each version of each model has done since the server started, in plain numbers.

The core and the services leave events, plain tuples (`telemetry.names`), in a list; whoever runs the dispatcher hands
the whole list to `Statistics.absorb` now and then, in the dispatcher's thread. `GetStatistics` and the exporters read.
Every label has a bounded number of values, whatever callers do. Nothing here decides.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from forebay_server.telemetry.histogram import GROWTH, SMALLEST, Histogram
from forebay_server.telemetry.names import BATCH, CANCELLED, DONE, OK, REFUSED, SERVED, UNKNOWN

MAX_BATCH_SIZES: Final = 1024
"""Distinct batch sizes that are counted one by one; others count as the next power of two."""
MAX_MODELS: Final = 4096
"""Versions of models that are kept."""

ModelKey = tuple[str, int]
Event = tuple[Any, ...]


class ModelFigures:
    """The figures of one version of a model. Read them in the dispatcher's thread, or accept that they move.

    Attributes:
        outcomes: Requests by `OK`, `CANCELLED` or the reason of their error.
        batch_sizes: Batches by their rows, without padding.
        dispatches: Batches by the number of the reason of their start.
        padded_rows: Rows that were added as padding.
        queue_time: Seconds in the queue, per accepted request.
        compute_time: Seconds in the engine, per batch.
        request_time: Seconds from the arrival of an accepted request to its outcome.
    """

    __slots__ = (
        "batch_sizes",
        "compute_time",
        "dispatches",
        "outcomes",
        "padded_rows",
        "queue_time",
        "request_time",
    )

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.batch_sizes: dict[int, int] = {}
        self.dispatches: dict[int, int] = {}
        self.padded_rows = 0
        self.queue_time = Histogram()
        self.compute_time = Histogram()
        self.request_time = Histogram()

    def batch(self, rows: int, padding: int, reason: int, seconds: float) -> None:
        """A batch has run."""
        sizes = self.batch_sizes
        if rows not in sizes and len(sizes) >= MAX_BATCH_SIZES:
            rows = 1 << (rows - 1).bit_length()
        sizes[rows] = sizes.get(rows, 0) + 1
        self.dispatches[reason] = self.dispatches.get(reason, 0) + 1
        self.padded_rows += padding
        self.compute_time.record(seconds)


class Statistics:
    """The figures of all models.

    Args:
        codes: The canonical name of the status code for each reason of an error.

    Attributes:
        smallest: The upper bound of the first bucket of the histograms, in seconds.
        growth: By how much each bound is larger than the one before.
    """

    smallest = SMALLEST
    growth = GROWTH

    def __init__(self, codes: Mapping[str, str]) -> None:
        self._codes = {**codes, OK: OK, CANCELLED: CANCELLED}
        self._models: dict[ModelKey, ModelFigures] = {}

    def absorb(self, events: Iterable[Event]) -> None:
        """Adds up events."""
        models = self._models
        codes = self._codes
        durations: dict[ModelKey, tuple[list[float], list[float]]] = {}
        for event in events:
            kind = event[0]
            figures = models.get(event[1])
            if figures is None:
                if len(models) >= MAX_MODELS:
                    continue
                figures = models[event[1]] = ModelFigures()
            if kind == SERVED:
                _, key, began, ended, arrivals = event
                waited, took = durations.setdefault(key, ([], []))
                waited.extend([began - arrival for arrival in arrivals])
                took.extend([ended - arrival for arrival in arrivals])
                figures.outcomes[OK] = figures.outcomes.get(OK, 0) + len(arrivals)
            elif kind == DONE:
                _, key, outcome, queued, total = event
                if outcome not in codes:
                    outcome = UNKNOWN
                figures.outcomes[outcome] = figures.outcomes.get(outcome, 0) + 1
                waited, took = durations.setdefault(key, ([], []))
                waited.append(queued)
                took.append(total)
            elif kind == BATCH:
                _, _, rows, _, padded_rows, reason, _, seconds = event
                figures.batch(rows, padded_rows - rows, int(reason), seconds)
            elif kind == REFUSED:
                reason = event[2] if event[2] in codes else UNKNOWN
                figures.outcomes[reason] = figures.outcomes.get(reason, 0) + 1
        for key, (waited, took) in durations.items():
            models[key].queue_time.record_all(waited)
            models[key].request_time.record_all(took)

    def of(self, key: ModelKey) -> ModelFigures:
        """The figures of a version; all zero if it has done nothing."""
        return self._models.get(key) or ModelFigures()

    def code(self, outcome: str) -> str:
        """The canonical name of the status code of an outcome."""
        return self._codes.get(outcome, UNKNOWN)

    def forget(self, key: ModelKey) -> None:
        """Drops the figures of a version that is gone."""
        self._models.pop(key, None)
