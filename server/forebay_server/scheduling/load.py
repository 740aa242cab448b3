"""How much of the time something takes, of late. Pure: `now` is an argument."""

from math import exp, inf
from typing import Final

MEMORY: Final = 1.0
"""Seconds after which a stretch of work counts a third of what it did."""


class Load:
    """A share of the time: the sum of stretches of work, each of which counts less as time goes by."""

    __slots__ = ("_at", "_share")

    def __init__(self) -> None:
        self._share = 0.0
        self._at = -inf

    def add(self, seconds: float, now: float) -> None:
        """So much work is done now. `now` is not before that of earlier calls."""
        self._share = self.share(now) + seconds / MEMORY
        self._at = now

    def share(self, now: float) -> float:
        """About the part of the last `MEMORY` seconds that was work; more than 1 if it was more than there was time."""
        return self._share * exp((self._at - now) / MEMORY) if self._share else 0.0
