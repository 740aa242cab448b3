"""Carries events from those who append them to those who add them up, many at a time.

The core and the services append plain tuples to lists; once in a while, and before figures are read, they are absorbed.
Called by the dispatcher only.
"""

from typing import Any, Protocol

from forebay_server.telemetry.statistics import Statistics

ABSORB_AT = 512
"""Events that may wait to be added up."""


class Source(Protocol):
    """Who has a list of events; `scheduling.core.Core`."""

    events: list[tuple[Any, ...]]


class Feed:
    """From lists of events to statistics."""

    def __init__(self, statistics: Statistics, core: Source) -> None:
        self._statistics = statistics
        self._core = core
        self.events: list[tuple[Any, ...]] = []
        """Where others than the core put their events."""

    def flush(self) -> None:
        """Absorbs events if there are many. Cheap; once a turn."""
        if len(self._core.events) >= ABSORB_AT or len(self.events) >= ABSORB_AT:
            self.absorb()

    def absorb(self) -> None:
        """Absorbs all events."""
        for events in (self._core.events, self.events):
            self._statistics.absorb(events)
            events.clear()
