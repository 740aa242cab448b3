"""Writes down how runs have ended, as often as it takes.

An end is kept until it is in the store, however long that takes: the claim lives as long as this process, so nobody
else can give the job its end. If too many bytes of outcomes wait for a store that does not answer, further jobs are
given back instead.

Used by the dispatcher alone.
"""

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count as counter
from math import inf
from typing import Final

import structlog

from forebay_server.errors import ForebayError, Internal, StoreFull
from forebay_server.jobs.failpoints import reach
from forebay_server.jobs.keeper import Keeper
from forebay_server.jobs.runs import Run
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import Finish, Job, Release

AGAIN: Final = 1.0
"""Seconds before an end is written again for which the store had no room."""

_log = structlog.get_logger(__name__)


End = Finish | Release
Written = Callable[[Sequence[Run], Sequence[End], Sequence[Job | Exception | None]], None]
"""Told of runs, their ends, and what the store said to each; None if the run's owner has lost it before."""


class Ends:
    """Ends of runs on their way to the store.

    Args:
        keeper: The way there.
        most_bytes: Of outcomes that wait while the store does not answer.
        encode_error: A serialized `google.rpc.Status` for an error.
        ended: Told of each run once.
        clock: Monotonic seconds.

    Attributes:
        nbytes: Of outcomes that are held.
        due: When `tick` wants to be called.
    """

    def __init__(
        self,
        keeper: Keeper,
        *,
        most_bytes: int,
        encode_error: Callable[[ForebayError], bytes],
        ended: Written,
        clock: Callable[[], float],
    ) -> None:
        self._keeper = keeper
        self._most_bytes = most_bytes
        self._encode_error = encode_error
        self._ended = ended
        self._clock = clock
        self._again: list[tuple[float, int, Run, End]] = []
        """What the store could not take, by when to try again."""
        self._serial = counter()
        self.nbytes = 0
        self.due = inf

    def finish(self, runs: Sequence[Run], state: JobState, outcomes: Sequence[bytes], version: int) -> None:
        """Jobs have their ends: one state and version, each with its outcome."""
        size = sum(map(len, outcomes))
        if self.nbytes + size > self._most_bytes and not self._keeper.healthy:
            for run in runs:
                self.release(run, 0.0, refund=False)
            return
        self.nbytes += size
        make = tuple.__new__  # Several times as fast as the class; this is done for each job.
        ends: list[End] = [
            make(Finish, (run.job.id, run.owner.name, run.job.attempt, state, outcome, version))
            for run, outcome in zip(runs, outcomes, strict=True)
        ]
        self._write(runs, ends, size)

    def release(self, run: Run, delay: float, *, refund: bool) -> None:
        """The job waits again; its attempt does not count if it is refunded."""
        self._write([run], [Release(run.job.id, run.owner.name, run.job.attempt, delay, refund)], 0)

    def tick(self, now: float) -> None:
        """Tries again what is due."""
        again = self._again
        while again and again[0][0] <= now:
            _, _, run, end = heappop(again)
            self._write([run], [end], _size(end))
        self.due = again[0][0] if again else inf

    def _write(self, runs: Sequence[Run], ends: Sequence[End], nbytes: int) -> None:
        self._keeper.do_all(ends, lambda outcomes: self._written(runs, ends, outcomes, nbytes), nbytes)

    def _written(
        self, runs: Sequence[Run], ends: Sequence[End], outcomes: Sequence[Job | Exception], nbytes: int
    ) -> None:
        """The store has taken ends, or not."""
        reach("finish.committed" if isinstance(ends[0], Finish) else "release.committed")
        settled: Sequence[Job | Exception | None] = outcomes
        if any(isinstance(outcome, ForebayError) for outcome in outcomes):
            left: list[tuple[Run, End, Job | Exception | None]] = []
            for run, end, outcome in zip(runs, ends, outcomes, strict=True):
                if not isinstance(outcome, ForebayError):
                    left.append((run, end, outcome))
                elif run.owner.ended:
                    left.append((run, end, None))
                else:
                    nbytes -= _size(end)
                    self._try_again(run, end, outcome)
            if not left:
                return
            runs, ends, settled = zip(*left, strict=True)
        self.nbytes -= nbytes
        self._ended(runs, ends, settled)

    def _try_again(self, run: Run, end: End, error: ForebayError) -> None:
        if isinstance(end, Finish) and end.state is JobState.SUCCEEDED and isinstance(error, Internal):
            # The store can't hold this outcome.
            failure = self._encode_error(error)
            self.nbytes += len(failure) - len(end.outcome)
            end = end._replace(state=JobState.FAILED, outcome=failure)
        if not isinstance(error, StoreFull):
            _log.warning("job_end_not_written", job=run.job.id, error=error.message)
        at = self._clock() + AGAIN
        heappush(self._again, (at, next(self._serial), run, end))
        self.due = min(self.due, at)


def _size(end: End) -> int:
    """Bytes of its outcome."""
    return len(end.outcome) if isinstance(end, Finish) else 0
