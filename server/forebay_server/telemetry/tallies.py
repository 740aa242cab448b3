"""Counts and durations of what happens seldom: calls of the lesser services, jobs, the store, webhooks, turns.

A request has no part in it (see `statistics`), so this may cost a microsecond. The dispatcher's. Whoever tells must
know that its labels are bounded.
"""

from forebay_server.telemetry.histogram import Histogram
from forebay_server.telemetry.metric import Metric
from forebay_server.telemetry.samples import Sample, durations

Place = tuple[Metric, tuple[str, ...]]


class Tallies:
    """Counters and histograms by metric and labels."""

    def __init__(self) -> None:
        self._counts: dict[Place, float] = {}
        self._durations: dict[Place, Histogram] = {}

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Counts something; `by` 0 makes it known before it happens."""
        place = metric, labels
        self._counts[place] = self._counts.get(place, 0) + by

    def durations(self, metric: Metric, *labels: str) -> Histogram:
        """The durations under these labels, to record into."""
        place = metric, labels
        found = self._durations.get(place)
        if found is None:
            found = self._durations[place] = Histogram()
        return found

    def copy(self) -> "Tallies":
        """Tallies that no longer move."""
        copied = Tallies()
        copied._counts = self._counts.copy()
        copied._durations = {place: histogram.copy() for place, histogram in self._durations.items()}
        return copied

    def samples(self) -> list[Sample]:
        """All of it."""
        found: list[Sample] = [(metric, labels, count) for (metric, labels), count in self._counts.items()]
        found += [
            (metric, labels, durations(metric, histogram)) for (metric, labels), histogram in self._durations.items()
        ]
        return found
