"""Writes down how runs have ended, as often as it takes.

An end is kept until it is in the store, however long that takes: the claim lives as long as this process, so nobody
else can give the job its end. If too many bytes of outcomes wait for a store that does not answer, further jobs are
given back instead.

Used by the dispatcher alone.
"""

from collections.abc import Callable
from dataclasses import replace
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


class Ends:
    """Ends of runs on their way to the store.

    Args:
        keeper: The way there.
        most_bytes: Of outcomes that wait while the store does not answer.
        encode_error: A serialized `google.rpc.Status` for an error.
        ended: Told of each run, once, what the store said to its end; None if the run's owner has lost it before.
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
        ended: Callable[[Run, Finish | Release, Job | Exception | None], None],
        clock: Callable[[], float],
    ) -> None:
        self._keeper = keeper
        self._most_bytes = most_bytes
        self._encode_error = encode_error
        self._ended = ended
        self._clock = clock
        self._again: list[tuple[float, int, Run, Finish | Release]] = []
        """What the store could not take, by when to try again."""
        self._serial = counter()
        self.nbytes = 0
        self.due = inf

    def finish(self, run: Run, state: JobState, outcome: bytes, version: int) -> None:
        """The job has its end."""
        job = run.job
        if self.nbytes + len(outcome) > self._most_bytes and not self._keeper.healthy:
            self.release(run, 0.0, refund=False)
            return
        self.nbytes += len(outcome)
        self._write(run, Finish(job.id, run.owner.name, job.attempt, state, outcome, version))

    def release(self, run: Run, delay: float, *, refund: bool) -> None:
        """The job waits again; its attempt does not count if it is refunded."""
        self._write(run, Release(run.job.id, run.owner.name, run.job.attempt, delay, refund))

    def tick(self, now: float) -> None:
        """Tries again what is due."""
        again = self._again
        while again and again[0][0] <= now:
            _, _, run, operation = heappop(again)
            self._write(run, operation)
        self.due = again[0][0] if again else inf

    def _write(self, run: Run, operation: Finish | Release) -> None:
        self._keeper.do(operation, lambda outcome: self._written(run, operation, outcome))

    def _written(self, run: Run, operation: Finish | Release, outcome: Job | Exception) -> None:
        """The store has taken an end, or not."""
        reach("finish.committed" if isinstance(operation, Finish) else "release.committed")
        if not isinstance(outcome, ForebayError):
            self._settle(run, operation, outcome)
        elif run.owner.ended:
            self._settle(run, operation, None)
        else:
            self._try_again(run, operation, outcome)

    def _settle(self, run: Run, operation: Finish | Release, outcome: Job | Exception | None) -> None:
        if isinstance(operation, Finish):
            self.nbytes -= len(operation.outcome)
        self._ended(run, operation, outcome)

    def _try_again(self, run: Run, operation: Finish | Release, error: ForebayError) -> None:
        if isinstance(operation, Finish) and operation.state is JobState.SUCCEEDED and isinstance(error, Internal):
            # The store can't hold this outcome.
            failure = self._encode_error(error)
            self.nbytes += len(failure) - len(operation.outcome)
            operation = replace(operation, state=JobState.FAILED, outcome=failure)
        if not isinstance(error, StoreFull):
            _log.warning("job_end_not_written", job=run.job.id, error=error.message)
        at = self._clock() + AGAIN
        heappush(self._again, (at, next(self._serial), run, operation))
        self.due = min(self.due, at)
