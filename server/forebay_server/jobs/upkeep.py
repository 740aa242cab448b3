"""What has to be asked of the store again and again: what time brings, what can be deleted, what waits.

Each errand is on its way at most once, so a slow store is asked less often, not more. A reap or a purge does a bounded
amount, so that no group takes long, and is repeated at once while it found that much.

Used by the dispatcher alone.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any, Final

from forebay_server.jobs.failpoints import reach
from forebay_server.jobs.keeper import Keeper
from forebay_server.jobs.store import Backlog, Job, Operation, Purge, Reap, Waiting

LIMIT: Final = 256
"""Jobs per reap and purge."""
INTERVAL: Final = 1.0
"""Seconds between reaps, and between purges."""
COUNT_SHARED: Final = 1.0
"""Seconds between counts of what waits, where others use the store too."""
COUNT_OWN: Final = 5.0
"""The same where nobody else does, and only corrections are expected."""
COUNT_LEAST: Final = 0.1
"""Seconds between counts, however urgent."""
COUNT_PART: Final = 0.05
"""The part of the time that counting may take: it looks at each flow that waits."""
COUNT_MOST: Final = 30.0
"""Seconds between counts at most, however long they take."""


class _Errand:
    """An operation that is repeated."""

    __slots__ = ("asked", "busy", "done", "due", "operation")

    def __init__(self, operation: Operation, done: Callable[[Any, float], float]) -> None:
        self.operation = operation
        self.done = done
        """Told the outcome and how long it took; gives the seconds until the next time."""
        self.due = 0.0
        self.busy = False
        self.asked = 0.0


class Upkeep:
    """Runs the errands.

    Args:
        keeper: The way to the store.
        reap: What to reap.
        shared: Whether other servers use the store.
        reaped: Told the jobs that have changed with time.
        counted: Told what waits.
        clock: Monotonic seconds.

    Attributes:
        due: When `tick` wants to be called.
    """

    def __init__(
        self,
        keeper: Keeper,
        *,
        reap: Reap,
        shared: bool,
        reaped: Callable[[Sequence[Job]], None],
        counted: Callable[[Sequence[Waiting]], None],
        clock: Callable[[], float],
    ) -> None:
        self._keeper = keeper
        self._reap = reap
        self._shared = shared
        self._reaped = reaped
        self._counted = counted
        self._clock = clock
        self._count = _Errand(Backlog(), self._has_counted)
        self._errands = [_Errand(reap, self._has_reaped), _Errand(Purge(LIMIT), self._has_purged), self._count]
        self._earliest_count = 0.0
        self._took = 0.0
        """Seconds that the last count took."""
        self._stale = False
        self._stopped = False
        self.due = 0.0

    def tick(self, now: float) -> None:
        """Sends what is due."""
        if self._stopped:
            self.due = inf
            return
        for errand in self._errands:
            if not errand.busy and errand.due <= now:
                errand.busy = True
                errand.asked = now
                self._keeper.do(errand.operation, partial(self._back, errand))
        self.due = min((errand.due for errand in self._errands if not errand.busy), default=inf)

    def count(self) -> None:
        """What waits is not known as well as it should be: asks for it soon."""
        if self._count.busy:
            self._stale = True
        else:
            self._count.due = min(self._count.due, max(self._clock(), self._earliest_count))
            self.due = min(self.due, self._count.due)

    def stop(self) -> None:
        """Asks for nothing any more."""
        self._stopped = True

    def _back(self, errand: _Errand, outcome: Any) -> None:
        errand.busy = False
        now = self._clock()
        pause = INTERVAL
        if not isinstance(outcome, Exception):
            pause = errand.done(outcome, now - errand.asked)
        errand.due = now + pause
        self.due = min(self.due, errand.due)

    def _has_reaped(self, jobs: Sequence[Job], _took: float) -> float:
        if jobs:
            reach("reap.committed")
            self._reaped(jobs)
            self.count()
        return 0.0 if len(jobs) >= self._reap.limit else INTERVAL

    def _has_purged(self, deleted: int, _took: float) -> float:
        if deleted:
            reach("purge.committed")
        return 0.0 if deleted >= LIMIT else INTERVAL

    def _has_counted(self, backlog: Sequence[Waiting], took: float) -> float:
        self._counted(backlog)
        # One count that takes long may have waited for a store that was away: that says nothing about counting.
        cost, self._took = min(took, self._took), took
        least = min(max(COUNT_LEAST, cost / COUNT_PART), COUNT_MOST)
        self._earliest_count = self._clock() + least
        stale, self._stale = self._stale, False
        return least if stale else max(least, COUNT_SHARED if self._shared else COUNT_OWN)
