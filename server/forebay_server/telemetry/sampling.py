"""Few lines of many: how many log lines of a kind are written in a storm, and how many were not. Pure; `now` is given.

Each kind has a bucket of `burst` lines that fills up again at `rate` lines a second. What finds it empty is counted,
and the next line of its kind that is written says how many there were; so the lines and what they say add up to all
there was. `settle` gives out what no later line has told.
"""

from math import inf
from typing import Final

BURST: Final = 10
RATE: Final = 1.0  # lines a second
MOST_KINDS: Final = 1024
QUIET: Final = 5.0  # seconds after which what was left out is told without waiting for another line
OTHER: Final = "other"
"""The kind of all kinds beyond `MOST_KINDS`."""


class _Kind:
    __slots__ = ("at", "level", "since", "suppressed")

    def __init__(self, level: float, at: float) -> None:
        self.level = level
        """Lines that may be written at once."""
        self.at = at
        self.suppressed = 0
        self.since = at
        """When the first of those was left out."""


class Sampler:
    """Lets through a few lines of each kind. Used by one thread, or under a lock.

    Args:
        burst: Lines of a kind that are written at once after a pause.
        rate: Lines a second of a kind that are written for as long as a storm lasts.
    """

    def __init__(self, *, burst: int = BURST, rate: float = RATE) -> None:
        self._burst = float(burst)
        self._rate = rate
        self._kinds: dict[str, _Kind] = {}
        self.due = inf
        """When `settle` has something to tell, monotonic seconds; infinity: there is nothing."""

    def admit(self, kind: str, now: float) -> int | None:
        """Whether to write a line.

        Returns:
            None: not. Otherwise how many of its kind were left out since the last that was written.
        """
        found = self._kinds.get(kind)
        if found is None:
            if len(self._kinds) >= MOST_KINDS and kind != OTHER:
                return self.admit(OTHER, now)
            found = self._kinds[kind] = _Kind(self._burst, now)
        level = min(self._burst, found.level + (now - found.at) * self._rate)
        found.at = now
        if level < 1.0:
            found.level = level
            if not found.suppressed:
                found.since = now
                self.due = min(self.due, now + QUIET)
            found.suppressed += 1
            return None
        found.level = level - 1.0
        suppressed, found.suppressed = found.suppressed, 0
        return suppressed

    def settle(self, now: float, *, at_once: bool = False) -> list[tuple[str, int]]:
        """What was left out and not told for `QUIET` seconds: pairs of kind and count. They are told by this.

        Args:
            now: Monotonic seconds.
            at_once: However long ago: nobody will ask again.
        """
        told = []
        self.due = inf
        for kind, found in self._kinds.items():
            if not found.suppressed:
                continue
            if at_once or now - found.since >= QUIET:
                told.append((kind, found.suppressed))
                found.suppressed = 0
            else:
                self.due = min(self.due, found.since + QUIET)
        return told
