"""Calls that wait for a job to change, or to finish.

A waiter is a place in a dictionary: thousands of them cost nothing while nothing happens. What happens in this process
is told from memory. Of what others do the store tells (`Changed`); then the jobs concerned that somebody waits for are
read again, all in one go, and not again before that is done. If others use the store, all of them are read again once
a second too, because a message may be lost.

The number of waiters is bounded per tenant, and per connection, so that a connection has streams left for other calls.

Used by the dispatcher alone.
"""

from collections.abc import Callable, Collection, Hashable
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Any, Final

from forebay_server.errors import ForebayError, JobNotFound
from forebay_server.jobs.states import FINAL, JobState
from forebay_server.jobs.store import Found, Get, Job

RECHECK: Final = 1.0
"""Seconds between two looks at all jobs that somebody waits for, if others use the store."""
_SWEEP_AT: Final = 64

Read = Callable[[Get, Callable[[Any], None]], None]
"""`Keeper.do`, for `Get`."""


class Waiter:
    """A call that waits. To the services it is only a handle."""

    __slots__ = ("connection", "done", "gone", "job_id", "seen", "tell", "tenant", "until")

    def __init__(
        self,
        job_id: str,
        tenant: str,
        connection: Hashable,
        *,
        until: float = inf,
        done: Callable[[Found | ForebayError], None] | None = None,
        tell: Callable[[Job | ForebayError], None] | None = None,
    ) -> None:
        self.job_id = job_id
        self.tenant = tenant
        self.connection = connection
        self.until = until
        """When it is answered anyway, monotonic seconds."""
        self.done = done
        """Told the end; or"""
        self.tell = tell
        """told each change."""
        self.seen: Job | None = None
        """The job as it was last known."""
        self.gone = False


class Waiters:
    """All calls that wait.

    Args:
        read: Asks the store for a job.
        per_tenant: How many of one tenant may wait.
        per_connection: How many of one connection may wait.
        shared: Whether others use the store.
        clock: Monotonic seconds.

    Attributes:
        due: When `tick` wants to be called.
    """

    def __init__(
        self, read: Read, *, per_tenant: int, per_connection: int, shared: bool, clock: Callable[[], float]
    ) -> None:
        self._read = read
        self._per_tenant = per_tenant
        self._per_connection = per_connection
        self._shared = shared
        self._clock = clock
        self._by_job: dict[str, dict[Waiter, None]] = {}
        self._tenants: dict[str, int] = {}
        self._connections: dict[Hashable, int] = {}
        self._alarms: list[tuple[float, int, Waiter]] = []
        self._alarms_most = _SWEEP_AT
        self._serial = count()
        self._size = 0
        self._wanted: dict[str, None] = {}
        """Jobs to be read again."""
        self._reading = 0
        """Reads whose outcome is not there."""
        self._recheck_at = 0.0
        self.due = inf

    def __len__(self) -> int:
        return self._size

    def full(self, tenant: str, connection: Hashable) -> bool:
        """Whether so many wait already that one more must not."""
        return (
            self._tenants.get(tenant, 0) >= self._per_tenant
            or self._connections.get(connection, 0) >= self._per_connection
        )

    def add(self, waiter: Waiter) -> None:
        """One more waits. It is told what is known of the job by the read that this starts."""
        self._by_job.setdefault(waiter.job_id, {})[waiter] = None
        self._tenants[waiter.tenant] = self._tenants.get(waiter.tenant, 0) + 1
        self._connections[waiter.connection] = self._connections.get(waiter.connection, 0) + 1
        self._size += 1
        if waiter.until < inf:
            heappush(self._alarms, (waiter.until, next(self._serial), waiter))
            self.due = min(self.due, waiter.until)
            if len(self._alarms) > self._alarms_most:
                self._alarms = [entry for entry in self._alarms if not entry[2].gone]
                heapify(self._alarms)
                self._alarms_most = 2 * len(self._alarms) + _SWEEP_AT
        if self._shared and self._size == 1:
            self._recheck_at = self._clock() + RECHECK
            self.due = min(self.due, self._recheck_at)
        self._read(Get(waiter.job_id, waiter.tenant), partial(self._first, waiter))

    def leave(self, waiter: Waiter) -> None:
        """One waits no more; harmless if that was so already."""
        if waiter.gone:
            return
        waiter.gone = True
        self._size -= 1
        beside = self._by_job[waiter.job_id]
        del beside[waiter]
        if not beside:
            del self._by_job[waiter.job_id]
        _less(self._tenants, waiter.tenant)
        _less(self._connections, waiter.connection)

    def tell(self, job: Job, outcome: bytes | None = None) -> None:
        """A job has changed in this process.

        Args:
            job: As it is now.
            outcome: What came of it, if it has finished; None if it is not known here (or there is none).
        """
        beside = self._by_job.get(job.id)
        if beside is None:
            return
        unknown = outcome is None and job.state in FINAL and job.state is not JobState.CANCELLED
        for waiter in list(beside):
            if waiter.tenant != job.tenant:
                continue  # The read that it waits for will say that there is no such job.
            if unknown and waiter.done is not None:
                self.look(job.id)  # The outcome is wanted too.
            else:
                self._tell(waiter, Found(job, outcome))

    def look(self, job_id: str) -> None:
        """A job may have changed: reads it again if somebody waits for it."""
        if job_id in self._by_job:
            self._wanted[job_id] = None
            self.due = 0.0

    def changed(self, ids: Collection[str]) -> None:
        """Others have changed these jobs, or, if there are none, perhaps any."""
        if ids:
            for job_id in ids:
                self.look(job_id)
        elif self._by_job:
            self._wanted.update(dict.fromkeys(self._by_job))
            self.due = 0.0

    def tick(self, now: float) -> None:
        """Answers those whose time is over, and reads what has to be read again."""
        alarms = self._alarms
        while alarms and (alarms[0][2].gone or alarms[0][0] <= now):
            waiter = heappop(alarms)[2]
            # One that has seen nothing yet is answered by its first read.
            if not waiter.gone and waiter.seen is not None and waiter.done is not None:
                self.leave(waiter)
                waiter.done(Found(waiter.seen, None))
        if self._shared and self._size and now >= self._recheck_at:
            self._recheck_at = now + RECHECK
            self._wanted.update(dict.fromkeys(self._by_job))
        if self._wanted and not self._reading:
            self._read_again()
        self.due = alarms[0][0] if alarms else inf
        if self._shared and self._size:
            self.due = min(self.due, self._recheck_at)

    def end(self, error: ForebayError) -> None:
        """No more changes will be told: those who wait for the end get the job as it is, the others the error."""
        for beside in list(self._by_job.values()):
            for waiter in list(beside):
                if waiter.done is None:
                    self.leave(waiter)
                    if waiter.tell is not None:
                        waiter.tell(error)
                elif waiter.seen is not None:
                    self.leave(waiter)
                    waiter.done(Found(waiter.seen, None))
                else:
                    waiter.until = -inf  # Its first read is on its way, and answers it.

    def _first(self, waiter: Waiter, outcome: Found | ForebayError) -> None:
        """What `add` has read."""
        self._tell(waiter, outcome)
        if not waiter.gone and waiter.done is not None and waiter.until <= self._clock() and waiter.seen is not None:
            self.leave(waiter)
            waiter.done(Found(waiter.seen, None))

    def _read_again(self) -> None:
        wanted, self._wanted = self._wanted, {}
        for job_id in wanted:
            for tenant in {waiter.tenant for waiter in self._by_job.get(job_id, ())}:
                self._reading += 1
                get = Get(job_id, tenant)
                self._read(get, partial(self._read_done, get))

    def _read_done(self, get: Get, outcome: Found | ForebayError) -> None:
        self._reading -= 1
        if self._wanted and not self._reading:
            self.due = 0.0
        if isinstance(outcome, ForebayError) and not isinstance(outcome, JobNotFound):
            return  # The store does not answer; once it does, all are read again.
        for waiter in list(self._by_job.get(get.id, ())):
            if waiter.tenant == get.tenant:
                self._tell(waiter, outcome)

    def _tell(self, waiter: Waiter, found: Found | ForebayError) -> None:
        """A waiter hears of its job."""
        if waiter.gone:
            return
        if isinstance(found, ForebayError):
            self.leave(waiter)
            (waiter.done or waiter.tell)(found)  # type: ignore[misc]  # one of them is there
            return
        job = found.job
        before, waiter.seen = waiter.seen, job
        final = job.state in FINAL
        if final:
            self.leave(waiter)
        if waiter.done is None:
            if waiter.tell is not None and job != before:
                waiter.tell(job)
        elif final:
            waiter.done(found)


def _less(counts: dict[Any, int], key: Hashable) -> None:
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]
