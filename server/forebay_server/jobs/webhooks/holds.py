"""Whom to leave alone for a while: targets that give no answer at all.

A target that hangs costs its whole time limit each time, and its messages stand in line with those for others. After
a few failures in a row it is *held*: its messages are put back without a connection. When the hold ends, one message
finds out whether it answers again; if not, the next hold is longer. Any answer, even an error, ends it.

Pure: `now` is monotonic seconds.
"""

from dataclasses import dataclass
from typing import Final

FAILURES: Final = 3
"""In a row, before a target is held."""
FIRST: Final = 15.0
"""Seconds of the first hold; each is twice the one before."""
LONGEST: Final = 300.0
"""Seconds."""
REMEMBERED: Final = 1000
"""Targets that are remembered; beyond it the one that failed least recently is forgotten."""


@dataclass(slots=True)
class _Record:
    failures: int = 0
    until: float = 0.0
    probing: bool = False


class Holds:
    """The targets that failed of late. For one thread at a time."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def remaining(self, origin: str, now: float) -> float:
        """Seconds for which a target is still held; 0: send.

        The answer 0 at the end of a hold is given once: until it is known how that message fared, the target is held.
        """
        record = self._records.get(origin)
        if record is None or record.failures < FAILURES:
            return 0.0
        if record.until > now:
            return record.until - now
        record.until = now + FIRST
        record.probing = True
        return 0.0

    def failed(self, origin: str, now: float) -> bool:
        """It gave no answer. Whether it is held from now on and was not before."""
        record = self._records.pop(origin, None) or _Record()
        self._records[origin] = record  # the youngest is last
        if len(self._records) > REMEMBERED:
            del self._records[next(iter(self._records))]
        if record.until > now and not record.probing:
            return False  # it was on its way when the hold began
        record.failures += 1
        record.probing = False
        over = record.failures - FAILURES
        if over >= 0:
            record.until = now + min(LONGEST, FIRST * 2.0 ** min(over, 32))
        return over == 0

    def answered(self, origin: str) -> None:
        """It gave an answer."""
        self._records.pop(origin, None)
