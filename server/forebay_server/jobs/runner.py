"""Runs claimed jobs: has them decoded, puts them into the scheduler, and writes down what came of them.

A claimed job is a `Run`. It waits here until the dispatcher has a moment to decode it (`tick` does a bounded amount per
turn, so that online requests are not kept), then in the scheduler on the job level; its request calls `succeeded` or
`failed`, and the end is written to the store. The attempt was counted, durably, when the job was claimed.

A run that has ended is kept until its end is in the store (`ends`): then the job's end is visible, or the claim turns
out to be lost, and the job runs again, here or elsewhere.

Most jobs of a claim differ in their data only, and most batches go well. Such jobs are decoded, admitted and ended many
at a time, at a fraction of the cost of doing it for each.

Used by the dispatcher alone.
"""

from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Final, Protocol

import structlog

from forebay_server.errors import Draining, ForebayError, Internal, Unavailable
from forebay_server.jobs import ends
from forebay_server.jobs.claimant import Claimant
from forebay_server.jobs.ends import Ends
from forebay_server.jobs.failpoints import reach
from forebay_server.jobs.keeper import Keeper
from forebay_server.jobs.lives import Owner
from forebay_server.jobs.pending import Pending
from forebay_server.jobs.runs import Course, Lot, Run
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import Claimed, ClaimLost, Finish, Job
from forebay_server.jobs.verdicts import End, verdict
from forebay_server.scheduling.request import Request, State
from forebay_server.scheduling.runner import Runner as Scheduler

DECODE_SECONDS: Final = 0.0002
DECODE_BESIDE: Final = 0.00005
"""Time per turn for decoding what was claimed, and while online requests come; at least one portion is."""
PORTION: Final = 64
PORTION_BESIDE: Final = 16
"""Jobs that are decoded at a time, and while online requests come."""
PAUSE_FIRST: Final = 0.1
PAUSE_MOST: Final = 30.0
"""Seconds for which a model is left alone that can't run jobs; doubled each time."""

_log = structlog.get_logger(__name__)


class Decoder(Protocol):
    """Makes requests of payloads; implemented by the services, which know protobuf."""

    def decode(self, payload: bytes, tenant: str, deadline: float, now: float, run: Run) -> Request | bytes:
        """Makes a request of level JOB.

        Args:
            payload: A serialized `PredictRequest`.
            tenant: Whose it is.
            deadline: Absolute monotonic seconds; infinity: none.
            now: Monotonic seconds.
            run: What the request's `succeed` and `fail` call: `run.succeeded` or `run.failed`, one of them, once.

        Returns:
            The request; or, for one without rows, the serialized response at once, with `run.version` set.

        Raises:
            ForebayError: It can't be run.
        """

    def decode_all(self, runs: Sequence[Run], tenant: str, now: float) -> Sequence[Request]:
        """Makes requests of as many of the first of some payloads as are equal, in length too, but for their data.

        Args:
            runs: None of them has a deadline.
            tenant: Whose all are.
            now: Monotonic seconds.

        Returns:
            As `decode` would for each. Perhaps none: then they have to be decoded one by one.
        """


class Runner:
    """Runs jobs.

    Args:
        keeper: The way to the store.
        scheduler: Who runs requests.
        decoder: Who makes requests of payloads.
        pending: What waits; claims and releases are counted in it.
        claim_s: See `JobsConfig`.
        max_attempts: See `JobsConfig`.
        max_bytes: Payloads and outcomes that are held here at most, but for one job.
        encode_error: A serialized `google.rpc.Status` for an error.
        tell: Told jobs that were changed here, each with its outcome if it has one.
        unsure: Told of a job that is no longer ours: somebody else has changed it.
        count: Called when `pending` is not to be trusted.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        keeper: Keeper,
        *,
        scheduler: Scheduler,
        decoder: Decoder,
        pending: Pending,
        claim_s: float,
        max_attempts: int,
        max_bytes: int,
        encode_error: Callable[[ForebayError], bytes],
        tell: Callable[[Sequence[Job], Sequence[bytes | None]], None],
        unsure: Callable[[Job], None],
        count: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._scheduler = scheduler
        self._decoder = decoder
        self._pending = pending
        self._max_attempts = max_attempts
        self._encode_error = encode_error
        self._tell = tell
        self._unsure = unsure
        self._count = count
        self._clock = clock
        self._ends = Ends(keeper, most_bytes=max_bytes, encode_error=encode_error, ended=self._written, clock=clock)
        self._claimant = Claimant(
            keeper,
            core=scheduler.core,
            pending=pending,
            claim_s=claim_s,
            max_bytes=max_bytes,
            outcomes=lambda: self._ends.nbytes,
            came=self._came,
            lost=self._lost,
            count=count,
            clock=clock,
        )
        self._runs: dict[str, Run] = {}
        """By job id, until the store knows their end."""
        self._undecoded: deque[Lot] = deque()
        self._draining = False
        self.serve = self._claimant.serve
        self.unserve = self._claimant.unserve
        self.look = self._claimant.look
        self.recovered = self._claimant.recovered
        self.seconds = self._claimant.seconds
        self.close = self._claimant.close

    # --- For the desk ---------------------------------------------------------------------------------------------

    def ended_elsewhere(self, job: Job) -> bool:
        """A job was cancelled, or has expired: if it is in flight here it is dropped. Whether it was."""
        run = self._runs.get(job.id)
        if run is None:
            return False
        if not run.ended:
            self._drop(run)
        return True

    def drain(self) -> None:
        """Claims no more, and gives back what does not run yet."""
        self._draining = True
        self._claimant.stop()
        now = self._clock()
        for run in list(self._runs.values()):
            if run.ended:
                continue
            request = run.request
            if request is None:
                self.failed(run, Draining("the server is shutting down"))
            elif request.state is State.WAITING:
                begun = request.scheduled is not None  # Some of its rows have run.
                if self._scheduler.cancel(request, now):
                    self._release(run, 0.0, refund=not begun)

    def in_flight(self) -> int:
        """Jobs that are claimed here, and whose end the store does not know; and claims on their way."""
        return len(self._runs) + self._claimant.asking

    def running(self) -> int:
        """Jobs that are claimed here."""
        return len(self._runs)

    @property
    def due(self) -> float:
        """When `tick` wants to be called."""
        return 0.0 if self._undecoded else min(self._claimant.due, self._ends.due)

    def tick(self, now: float) -> None:
        """Decodes, claims, renews, tries again: what is due, and no more of it than the turn allows."""
        if self._ends.due <= now:
            self._ends.tick(now)
        if self._undecoded:
            self._decode(now)
        self._claimant.tick(now)

    # --- From claims to the scheduler -----------------------------------------------------------------------------

    def _came(self, course: Course, owner: Owner, claimed: Sequence[Claimed], now: float) -> None:
        """A claim has brought jobs."""
        runs = [Run(self, course, owner, job, payload, now) for job, payload in claimed]
        for run in runs:
            self._runs[run.job.id] = run
        self._tell([run.job for run in runs], [None] * len(runs))
        if self._draining:
            for run in runs:
                self.failed(run, Draining("the server is shutting down"))
        else:
            self._undecoded.append(Lot(course, runs))

    def _decode(self, now: float) -> None:
        """Puts claimed jobs into the scheduler, as long as the turn allows."""
        online = self._scheduler.core.online(now)
        until = now + (DECODE_BESIDE if online else DECODE_SECONDS)
        most = PORTION_BESIDE if online else PORTION
        undecoded = self._undecoded
        while undecoded:
            lot = undecoded[0]
            portion = [run for run in lot.runs[lot.next : lot.next + most] if not run.ended]
            lot.next += most
            if lot.next >= len(lot.runs):
                undecoded.popleft()
            while portion:
                portion = portion[self._admit_first(lot, portion, now) :]
            now = self._clock()
            if now >= until:
                return

    def _admit_first(self, lot: Lot, runs: Sequence[Run], now: float) -> int:
        """Puts the first of some runs into the scheduler, and those after it that are like it. How many they were."""
        plain = 0
        if not runs[0].alone:
            plain = next((place for place, run in enumerate(runs) if run.job.expires is not None), len(runs))
        if plain > 1:
            admitted = self._admit_all(lot, runs[:plain], now)
            if admitted:
                return admitted
        self._admit(runs[0], now)
        return 1

    def _admit_all(self, lot: Lot, runs: Sequence[Run], now: float) -> int:
        try:
            requests = self._decoder.decode_all(runs, lot.tenant, now)
        except Exception:  # noqa: BLE001  # one by one it will turn out whose fault it is
            _log.exception("jobs_not_decoded", model=lot.course.model)
            return 0
        if not requests:
            return 0
        like, count = requests[0], len(requests)
        self._claimant.resized(lot.course, (like.nbytes - len(runs[0].payload)) * count, like.rows)
        for run, request in zip(runs, requests, strict=False):
            run.payload = b""
            run.request = request
        refused = dict(self._scheduler.admit_alike(requests, now))
        reach("execute.admitted")
        if refused:
            for run, request in zip(runs, requests, strict=False):
                if request in refused:
                    self.failed(run, refused[request])
        return count

    def _admit(self, run: Run, now: float) -> None:
        job = run.job
        deadline = inf
        if job.expires is not None and job.started is not None:
            deadline = run.claimed + (job.expires - job.started)  # Both by the store's clock.
        try:
            request = self._decoder.decode(run.payload, job.tenant, deadline, now, run)
            if isinstance(request, bytes):
                self.succeeded(run, request, run.version)
                return
            if run.alone:
                request.lane = self._scheduler.core.apart(request.lane)
        except ForebayError as error:
            self.failed(run, error)
            return
        except Exception as fault:  # noqa: BLE001  # nothing that one job does may stop the others
            self.failed(run, self._internal(fault, job))
            return
        self._claimant.resized(run.course, request.nbytes - len(run.payload), request.rows)
        run.payload = b""
        run.request = request
        refusal = self._scheduler.admit(request, now)
        if refusal is None:
            reach("execute.admitted")
        else:
            self.failed(run, refusal)

    # --- What comes of them ---------------------------------------------------------------------------------------

    def succeeded(self, run: Run, response: bytes, version: int) -> None:
        """A run has its result."""
        self.succeeded_all([run], [response], version)

    def succeeded_all(self, runs: Sequence[Run], responses: Sequence[bytes], version: int) -> None:
        """Runs of one model have their results."""
        if any(run.ended for run in runs):
            alive = [(run, response) for run, response in zip(runs, responses, strict=True) if not run.ended]
            if not alive:
                return
            runs, responses = zip(*alive, strict=True)
        runs[0].course.pause = 0.0
        reach("execute.done")
        self._end(runs)
        self._ends.finish(runs, JobState.SUCCEEDED, responses, version)

    def failed(self, run: Run, error: ForebayError) -> None:
        """A run has no result: the job has its end, or is tried again."""
        if run.ended:
            return
        course = run.course
        now = self._clock()
        pause = course.resume_at - now
        if pause <= 0.0:
            pause = min(max(2.0 * course.pause, PAUSE_FIRST), PAUSE_MOST)
        if self._draining:
            pause = 0.0
        answer = verdict(error, attempt=run.job.attempt, max_attempts=self._max_attempts, pause=pause)
        if isinstance(answer, End):
            _log.warning(
                "job_failed",
                job=run.job.id,
                model=run.job.model,
                state=answer.state.name,
                reason=error.reason,
                error_id=getattr(error, "error_id", ""),
            )
            reach("execute.done")
            self._end([run])
            self._ends.finish([run], answer.state, [self._encode_error(error)], run.version)
            return
        if answer.blocked and course.resume_at <= now:
            course.resume_at = now + answer.delay
            if isinstance(error, Unavailable):
                course.pause = answer.delay
        self._release(run, answer.delay, refund=answer.refund)

    def _release(self, run: Run, delay: float, *, refund: bool) -> None:
        self._end([run])
        self._ends.release(run, delay, refund=refund)

    def _end(self, runs: Sequence[Run]) -> None:
        """Runs of one model need no engine any more."""
        nbytes = 0
        for run in runs:
            nbytes += run.nbytes
            run.ended = True
            run.payload = b""
            run.request = None
        alone = len(runs) == 1 and runs[0].alone  # A suspect shares no batch.
        self._claimant.ended(runs[0].course, len(runs), nbytes, alone=alone)

    def _drop(self, run: Run) -> None:
        """Nobody wants its result."""
        request = run.request
        self._end([run])
        if request is not None:
            self._scheduler.cancel(request, self._clock())
        self._forget([run])

    def _forget(self, runs: Sequence[Run]) -> None:
        """Nothing is left to be done for some runs. Most have the same owner."""
        known = self._runs
        owner, held = runs[0].owner, 0
        for run in runs:
            if known.get(run.job.id) is run:
                del known[run.job.id]
            if run.owner is not owner:
                self._claimant.let_go(owner, held)
                owner, held = run.owner, 0
            held += 1
        self._claimant.let_go(owner, held)

    def _lost(self, owner: Owner) -> None:
        """An owner's life has ended: others may have its jobs."""
        held = [run for run in self._runs.values() if run.owner is owner]
        _log.warning("job_claims_lost", jobs=len(held))
        for run in held:
            if not run.ended:
                self._drop(run)
        self._count()

    def _written(
        self, runs: Sequence[Run], written: Sequence[ends.End], outcomes: Sequence[Job | Exception | None]
    ) -> None:
        """The store knows some runs' ends, or will never know them."""
        self._forget(runs)
        jobs: list[Job] = []
        told: list[bytes | None] = []
        for run, end, outcome in zip(runs, written, outcomes, strict=True):
            if isinstance(outcome, Job):
                jobs.append(outcome)
                if isinstance(end, Finish):
                    told.append(end.outcome)
                    continue
                told.append(None)
                if outcome.state is JobState.PENDING:
                    self._pending.released(outcome, self._clock() + end.delay)
            elif isinstance(outcome, ClaimLost):
                self._unsure(run.job)
        if jobs:
            self._tell(jobs, told)

    def _internal(self, fault: Exception, job: Job) -> Internal:
        error = Internal()
        _log.error("job_not_decoded", error_id=error.error_id, job=job.id, exc_info=fault)
        return error
