"""Where the services hand in what they want of jobs, and where all parts of jobs come together.

`Keeper` goes to the store, `Runner` runs jobs, `Waiters` knows which calls wait for which job, `Pending` what waits in
the store, `Upkeep` does what time brings. The desk builds and joins them, and keeps the rules that concern callers: how
many jobs may wait, what is refused while the store is away, and who is told of what.

Used by the dispatcher alone. Answers come through callbacks, never from within the call that they answer.
"""

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence
from functools import partial
from math import ceil
from typing import Final

from forebay_server.config.tree import JobsConfig
from forebay_server.errors import (
    DeadlineExpired,
    Draining,
    ForebayError,
    PayloadQuarantined,
    QueueFull,
    StoreUnavailable,
    TenantQuota,
)
from forebay_server.jobs.failpoints import reach
from forebay_server.jobs.keeper import Keeper
from forebay_server.jobs.pending import Pending
from forebay_server.jobs.runner import Decoder, Runner
from forebay_server.jobs.states import FINAL, JobState
from forebay_server.jobs.store import Cancel, Found, Get, Job, Page, Reap, Submit, Submitted, Waiting
from forebay_server.jobs.upkeep import LIMIT, Upkeep
from forebay_server.jobs.waiting import Waiter, Waiters
from forebay_server.scheduling.runner import Runner as Scheduler

RETRY_LEAST: Final = 1.0
RETRY_MOST: Final = 60.0
"""Seconds after which to submit again when too many jobs wait: the time in which a hundredth of them is done."""
STREAMS_FOR_WAITING: Final = 4
"""One in so many streams of a connection may wait."""
BYTES_FOR_JOBS: Final = 8
"""One in so many bytes that the server may hold may be a claimed job's."""
WAIT_AGAIN: Final = 1.0
"""Seconds after which a call may come again that may not wait."""

EXPIRED: Final = "the job had not finished when its time was over"
CRASHED: Final = "each server that ran the job went away before it had finished"
DRAINING: Final = "the server is shutting down"
NO_STORE: Final = "the job store does not answer"


class Desk:
    """Durable jobs, for the services and the app.

    Args:
        keeper: Not started yet; the desk listens to it. Whoever started it closes it, after `close`.
        scheduler: Who runs requests.
        decoder: Who makes requests of payloads.
        config: The settings.
        shared: Whether other servers use the same store.
        max_streams: Calls at a time on one connection.
        max_held_bytes: Bytes that the server may hold for requests.
        encode_error: A serialized `google.rpc.Status` for an error.
        finished: Told that a job has ended here: there may be a message about it in the outbox.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        keeper: Keeper,
        *,
        scheduler: Scheduler,
        decoder: Decoder,
        config: JobsConfig,
        shared: bool,
        max_streams: int,
        max_held_bytes: int,
        encode_error: Callable[[ForebayError], bytes],
        finished: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._keeper = keeper
        self._config = config
        self._finished = finished
        self._clock = clock
        self._draining = False
        self._closed = False
        self._submitting = 0
        self._ended = dict.fromkeys(sorted(FINAL), 0)
        self._expired = encode_error(DeadlineExpired(EXPIRED))
        self._crashed = encode_error(PayloadQuarantined(CRASHED))
        self._pending = Pending()
        self._waiters = Waiters(
            keeper.do,
            per_tenant=config.max_waiting,
            per_connection=max(1, max_streams // STREAMS_FOR_WAITING),
            shared=shared,
            clock=clock,
        )
        self._upkeep = Upkeep(
            keeper,
            reap=Reap(LIMIT, config.max_attempts, self._expired, self._crashed),
            shared=shared,
            reaped=self._reaped,
            counted=self._counted,
            clock=clock,
        )
        self._runner = Runner(
            keeper,
            scheduler=scheduler,
            decoder=decoder,
            pending=self._pending,
            claim_s=config.claim_s,
            max_attempts=config.max_attempts,
            max_bytes=max(1, max_held_bytes // BYTES_FOR_JOBS),
            encode_error=encode_error,
            tell=self._tell,
            unsure=lambda job: self._waiters.look(job.id),
            count=self._upkeep.count,
            clock=clock,
        )
        keeper.listen(self._changed, self._recovered)

    # --- For the services -----------------------------------------------------------------------------------------

    def submit(self, job: Submit, done: Callable[[Job | ForebayError], None]) -> None:
        """Stores a job; `done` gets the job (an earlier one, if its key was used before), or why not.

        It fails with `QueueFull` if too many wait, with `StoreUnavailable` (at once while the store is known not to
        answer), `StoreFull`, `JobKeyReused` or `Draining`.
        """
        refusal = self._refusal(job.model)
        if refusal is not None:
            self._later(partial(done, refusal))
            return
        self._submitting += 1
        self._keeper.do(job, lambda outcome: self._submitted(done, outcome))
        reach("submit.queued")

    def look(self, job_id: str, tenant: str, done: Callable[[Found | ForebayError], None]) -> None:
        """Finds a job as it is now; `JobNotFound` for one of another tenant, too."""
        self._keeper.do(Get(job_id, tenant), done)

    def wait(
        self,
        job_id: str,
        tenant: str,
        connection: Hashable,
        until: float,
        done: Callable[[Found | ForebayError], None],
    ) -> Waiter:
        """Finds a job when it is final, or else at `until` (monotonic seconds) as it is known then.

        At once if the tenant or the connection has as many calls waiting as it may, or the server drains.
        """
        waiter = Waiter(job_id, tenant, connection, until=until, done=done)
        if self._draining or self._waiters.full(tenant, connection):
            waiter.gone = True
            self._keeper.do(Get(job_id, tenant), done)
        else:
            self._waiters.add(waiter)
        return waiter

    def watch(
        self, job_id: str, tenant: str, connection: Hashable, tell: Callable[[Job | ForebayError], None]
    ) -> Waiter:
        """Tells a job now, and at each change; nothing after its final state or an error.

        Changes that follow each other quickly may come as one. `TenantQuota` if the tenant or the connection has as
        many calls waiting as it may; `Draining` when the server drains.
        """
        waiter = Waiter(job_id, tenant, connection, tell=tell)
        if self._draining:
            waiter.gone = True
            self._later(partial(tell, Draining(DRAINING)))
        elif self._waiters.full(tenant, connection):
            waiter.gone = True
            self._later(partial(tell, TenantQuota("too many calls wait for jobs already", retry_after=WAIT_AGAIN)))
        else:
            self._waiters.add(waiter)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Its call is gone: it is told nothing any more."""
        self._waiters.leave(waiter)

    def cancel(self, job_id: str, tenant: str, done: Callable[[Job | ForebayError], None]) -> None:
        """Cancels a job that is not final, and drops it here if it is in flight here; `done` gets it as it is then."""
        self._keeper.do(Cancel(job_id, tenant), lambda outcome: self._cancelled(done, outcome))

    def page(self, page: Page, done: Callable[[Sequence[Job] | ForebayError], None]) -> None:
        """Lists jobs."""
        self._keeper.do(page, done)

    def prospect(self, job: Job) -> tuple[int, float | None]:
        """About how many jobs are ahead of one that waits, and about how many seconds it will wait.

        The first is an estimate in the sense of `Pending.ahead`. The second supposes that they run here, at the
        measured speed, and that nobody else wants the model; None if it is not served here, or no jobs run here.
        """
        if job.state is not JobState.PENDING:
            return 0, 0.0
        ahead = self._pending.ahead(job)
        return ceil(ahead), self._runner.seconds(job.model, ahead)

    # --- For the app ----------------------------------------------------------------------------------------------

    def serve(self, model: str) -> None:
        """Claims jobs of this model from now on, if jobs run here: it is ready."""
        if self._config.run:
            self._runner.serve(model)

    def unserve(self, model: str) -> None:
        """Claims no more jobs of this model: it is gone. What is claimed ends as the scheduler says."""
        self._runner.unserve(model)

    def drain(self) -> None:
        """Takes no more jobs, claims no more, gives back what does not run yet, and answers who waits."""
        self._draining = True
        self._upkeep.stop()
        self._runner.drain()
        self._waiters.end(Draining(DRAINING))

    def in_flight(self) -> int:
        """What has to end before the server can: jobs in flight here, operations on their way, answers due.

        For a store that does not answer only jobs are worth waiting: their outcomes would be lost, and they run again.
        """
        operations = self._keeper.on_their_way() if self._keeper.healthy else 0
        return self._runner.in_flight() + operations + len(self._waiters)

    def states(self) -> dict[JobState, int]:
        """Jobs by state: what waits, as far as it is known here; what is claimed here; what has ended through here."""
        return {JobState.PENDING: self._pending.total, JobState.RUNNING: self._runner.running(), **self._ended}

    def held(self) -> tuple[int, int, float]:
        """Jobs that wait in the store, jobs that are claimed here, and `Pending.oldest`."""
        return self._pending.total, self._runner.in_flight(), self._pending.oldest(self._clock())

    def close(self) -> None:
        """Lets go of all claims. `Keeper.close` comes next, and writes what is still on its way."""
        if not self._closed:
            if not self._draining:
                self.drain()
            self._closed = True
            self._runner.close()

    @property
    def due(self) -> float:
        """When `tick` wants to be called, monotonic seconds."""
        return min(self._runner.due, self._waiters.due, self._upkeep.due)

    def tick(self, now: float) -> float:
        """Does what is due; returns when to be called again."""
        if self._upkeep.due <= now:
            self._upkeep.tick(now)
        if self._runner.due <= now:
            self._runner.tick(now)
        if self._waiters.due <= now:
            self._waiters.tick(now)
        return self.due

    # --- What comes back ------------------------------------------------------------------------------------------

    def _refusal(self, model: str) -> ForebayError | None:
        if self._draining:
            return Draining(DRAINING)
        if not self._keeper.healthy:
            return StoreUnavailable(NO_STORE)
        if self._pending.total + self._submitting >= self._config.max_pending:
            seconds = self._runner.seconds(model, self._pending.total / 100) or RETRY_LEAST
            retry = min(max(seconds, RETRY_LEAST), RETRY_MOST)
            return QueueFull("as many jobs wait as may", retry_after=retry)
        return None

    def _later(self, answer: Callable[[], None]) -> None:
        self._keeper.post(answer)

    def _submitted(self, done: Callable[[Job | ForebayError], None], outcome: Submitted | ForebayError) -> None:
        reach("submit.committed")
        self._submitting -= 1
        if isinstance(outcome, ForebayError):
            done(outcome)
            return
        job, created = outcome
        if created:
            self._pending.submitted(job, self._clock())
            self._runner.look()
        done(job)

    def _cancelled(self, done: Callable[[Job | ForebayError], None], outcome: Job | ForebayError) -> None:
        if isinstance(outcome, Job):
            if outcome.state is JobState.CANCELLED:
                self._ended[JobState.CANCELLED] += 1
            self._over(outcome, None)
        done(outcome)

    def _reaped(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job.state is JobState.EXPIRED:
                self._ended[JobState.EXPIRED] += 1
                self._over(job, self._expired)
            else:
                self._tell([job], [self._crashed if job.state is JobState.FAILED else None])

    def _over(self, job: Job, outcome: bytes | None) -> None:
        """A job was given its end by somebody else than its run, or had it already."""
        if job.state in (JobState.CANCELLED, JobState.EXPIRED) and not self._runner.ended_elsewhere(job):
            self._upkeep.count()  # It may have waited.
        self._waiters.tell(job, outcome)
        if job.state in FINAL:
            self._finished()

    def _tell(self, jobs: Sequence[Job], outcomes: Sequence[bytes | None]) -> None:
        """Jobs were changed by their runs, or by time."""
        if len(self._waiters):
            for job, outcome in zip(jobs, outcomes, strict=True):
                self._waiters.tell(job, outcome)
        ended = False
        for state, count in Counter([job.state for job in jobs]).items():
            if state in FINAL:
                self._ended[state] += count
                ended = True
        if ended:
            self._finished()

    def _counted(self, backlog: Sequence[Waiting]) -> None:
        self._pending.replace(backlog, self._clock())
        self._runner.look()

    def _changed(self, ids: Collection[str]) -> None:
        self._waiters.changed(ids)
        self._upkeep.count()

    def _recovered(self) -> None:
        """The store is back; what was told meanwhile may have been lost."""
        self._waiters.changed(())
        self._upkeep.count()
        self._runner.recovered()
