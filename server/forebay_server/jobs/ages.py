"""About how old a job is, by its sequence alone: at least so old as the last glimpse of a smaller or equal newest one.

The store counts what waits by flows, and says of the first of each only its sequence. Sequences grow with time, so it
is enough to note now and then which was the newest. After a restart ages begin at zero: they are lower bounds.

Pure: `now` is an argument.
"""

from bisect import bisect_left
from typing import Final

APART: Final = 1.0
"""Seconds between marks."""
MOST: Final = 1024
"""Marks that are kept; when there are more, every second of them goes."""


class Ages:
    """When which sequence was the newest."""

    def __init__(self) -> None:
        self._sequences: list[int] = []
        self._times: list[float] = []

    def seen(self, sequence: int, now: float) -> None:
        """There is a job with this sequence."""
        if self._sequences and (sequence <= self._sequences[-1] or now - self._times[-1] < APART):
            return
        self._sequences.append(sequence)
        self._times.append(now)
        if len(self._sequences) > MOST:
            # The last stays, and so does the first: it says the most.
            del self._sequences[1:-1:2]
            del self._times[1:-1:2]

    def age(self, sequence: int, now: float) -> float:
        """Seconds for which there has been a job with this sequence, at least."""
        place = bisect_left(self._sequences, sequence)
        return max(0.0, now - self._times[place]) if place < len(self._sequences) else 0.0
