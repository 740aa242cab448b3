"""Runs jobs: claims them, has them decoded, puts them into the scheduler, and writes down what came of them.

A claimed job is a `Run`. It waits here until the dispatcher has a moment to decode it (`tick` does a bounded amount per
turn, so that online requests are not kept), then in the scheduler on the job level; its request calls `succeeded` or
`failed`, and the end is written to the store. The attempt was counted, durably, when the job was claimed.

A run that has ended is kept until its end is in the store (`ends`): then the job's end is visible, or the claim turns
out to be lost, and the job runs again, here or elsewhere.

Used by the dispatcher alone.
"""

from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Final, Protocol

import structlog

from forebay_server.errors import Draining, ForebayError, Internal, Unavailable
from forebay_server.jobs import claiming
from forebay_server.jobs.claiming import Claiming
from forebay_server.jobs.ends import Ends
from forebay_server.jobs.failpoints import reach
from forebay_server.jobs.keeper import Keeper
from forebay_server.jobs.lives import Lives, Owner
from forebay_server.jobs.pending import Pending
from forebay_server.jobs.runs import Course, Run
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import Claim, Claimed, ClaimLost, Finish, Flow, Job, Release
from forebay_server.jobs.verdicts import End, verdict
from forebay_server.scheduling.core import Pace
from forebay_server.scheduling.request import Request, State
from forebay_server.scheduling.runner import Runner as Scheduler

DECODE_SECONDS: Final = 0.0002
"""Time per turn for decoding what was claimed; at least one job is."""
PACE_KEPT: Final = 0.1
"""Seconds for which a model's speed is not looked up again."""
PACE_UNKNOWN: Final = 1.0
"""Seconds after which a model is looked at again whose speed is not known yet."""
LEARNING: Final = 0.2
"""The part by which a new observation moves what is known of round trips and rows per job."""
PAUSE_FIRST: Final = 0.1
PAUSE_MOST: Final = 30.0
"""Seconds for which a model is left alone that can't run jobs; doubled each time."""
LEAST_BYTES: Final = 1 << 20
"""No claim is worth it for less room."""

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
        tell: Told each change of a job that is made here, with its outcome if it has one.
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
        tell: Callable[[Job, bytes | None], None],
        unsure: Callable[[Job], None],
        count: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._keeper = keeper
        self._scheduler = scheduler
        self._decoder = decoder
        self._pending = pending
        self._max_attempts = max_attempts
        self._max_bytes = max_bytes
        self._encode_error = encode_error
        self._ends = Ends(keeper, most_bytes=max_bytes, encode_error=encode_error, ended=self._ended, clock=clock)
        self._tell = tell
        self._unsure = unsure
        self._count = count
        self._clock = clock
        self._lives = Lives(keeper, seconds=claim_s, lost=self._lost, begun=self.look, clock=clock)
        self._claiming = Claiming()
        self._courses: dict[str, Course] = {}
        self._runs: dict[str, Run] = {}
        """By job id, until the store knows their end."""
        self._undecoded: deque[Run] = deque()
        self._in_flight = 0
        """`held` and `asked` of all courses."""
        self._claims = 0
        self._bytes = 0
        """Payloads of what has not ended, and what claims on their way may bring."""
        self._round_trip = 0.0
        self._plan_at = 0.0
        self._draining = False
        self._due = 0.0

    # --- For the desk ---------------------------------------------------------------------------------------------

    def serve(self, model: str) -> None:
        """Claims jobs of this model from now on."""
        course = self._courses.get(model)
        if course is None:
            course = self._courses[model] = Course(model)
        course.served = True
        course.resume_at = course.pause = 0.0
        course.pace_at = -inf
        self.look()

    def unserve(self, model: str) -> None:
        """Claims no more jobs of this model."""
        course = self._courses.get(model)
        if course is not None:
            course.served = False

    def look(self) -> None:
        """There may be something to claim."""
        self._plan_at = 0.0
        self._due = 0.0

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

    def close(self) -> None:
        """Ends the lives of this process's owners: what it still holds is free for others."""
        self._draining = True
        self._lives.close()

    def in_flight(self) -> int:
        """Jobs that are claimed here, and whose end the store does not know."""
        return len(self._runs) + self._claims

    def running(self) -> int:
        """Jobs that are claimed here."""
        return len(self._runs)

    def seconds(self, model: str, jobs: float) -> float | None:
        """About how long so many jobs of a model take here, after those in flight; None if it is not served here."""
        course = self._courses.get(model)
        if course is None or not course.served:
            return None
        pace = self._pace(course, self._clock())
        if pace is None:
            return None
        return (jobs + course.held) * course.rows_per_job * pace.row_seconds / pace.instances

    @property
    def due(self) -> float:
        """When `tick` wants to be called."""
        return min(self._due, self._ends.due)

    def tick(self, now: float) -> None:
        """Decodes, claims, renews, tries again: what is due, and no more of it than the turn allows."""
        if self._lives.due <= now:
            self._lives.tick(now)
        if self._ends.due <= now:
            self._ends.tick(now)
        if self._undecoded:
            self._decode(now)
        if self._plan_at <= now:
            self._plan_at = self._claim(now)
        self._due = 0.0 if self._undecoded else min(self._lives.due, self._plan_at)

    # --- Claims ---------------------------------------------------------------------------------------------------

    def _claim(self, now: float) -> float:
        """Asks for what is wanted; returns when to look again though nothing happens."""
        owner = self._lives.current
        if self._draining or not owner.alive or not self._keeper.healthy:
            return inf
        room: dict[str, int] = {}
        waiting: dict[str, dict[Flow, int]] = {}
        again = inf
        for model, course in self._courses.items():
            if not course.served:
                continue
            free, later = self._room(course, now)
            again = min(again, later, self._pending.next_ready(model, now))
            flows = self._pending.ready(model, now) if free else {}
            if flows:
                room[model] = free
                waiting[model] = flows
        held = self._bytes + self._ends.nbytes
        left = self._max_bytes - held
        if not room or (left < LEAST_BYTES and held):
            return again  # The next end makes room.
        amounts = self._claiming.choose(waiting, room, in_flight=self._in_flight, now=now)
        claims = [(flow, jobs) for flow, amount in amounts for jobs in claiming.pieces(amount)]
        each = max(1, left // max(1, len(claims)))
        for flow, jobs in claims:
            self._ask(owner, flow, jobs, each, now)
        if self._claiming.suspects_at > now:
            again = min(again, self._claiming.suspects_at)
        return again

    def _room(self, course: Course, now: float) -> tuple[int, float]:
        """How many jobs of a model to ask for, and when to look again though nothing happens."""
        if course.resume_at > now:
            return 0, course.resume_at
        pace = self._pace(course, now)
        if pace is None:
            return 0, now + PACE_UNKNOWN
        wanted = claiming.wanted(pace, self._round_trip, course.rows_per_job)
        return claiming.room(wanted, course.held + course.asked), inf

    def _ask(self, owner: Owner, flow: Flow, jobs: int, nbytes: int, now: float) -> None:
        owner.held += 1
        self._claims += 1
        self._courses[flow.model].asked += jobs
        self._in_flight += jobs
        self._bytes += nbytes
        self._keeper.do(
            Claim(owner.name, flow, jobs, nbytes),
            lambda outcome: self._claimed(owner, flow, jobs, nbytes, now, outcome),
        )

    def _claimed(
        self, owner: Owner, flow: Flow, asked: int, nbytes: int, since: float, outcome: Sequence[Claimed] | Exception
    ) -> None:
        """A claim's outcome is there."""
        reach("claim.committed")
        now = self._clock()
        course = self._courses[flow.model]
        course.asked -= asked
        self._in_flight -= asked
        self._bytes -= nbytes
        self._claims -= 1
        self.look()
        got: Sequence[Claimed] = () if isinstance(outcome, Exception) else outcome
        if isinstance(outcome, Exception):
            self._lives.retire(owner)  # Perhaps it holds jobs that nobody knows of.
            self._count()
        else:
            self._round_trip += LEARNING * (now - since - self._round_trip)
            full = sum(len(payload) for _, payload in got) >= nbytes
            self._pending.claimed(flow, len(got) if full else asked, len(got))
            if len(got) < asked and not full:
                self._count()
        self._claiming.unserved(flow, asked - len(got))
        if flow.suspect and not got:
            self._claiming.suspect_done(now)
        for job, payload in got:
            if owner.ended:
                continue  # Somebody else takes it over.
            run = self._runs[job.id] = Run(self, course, owner, job, payload, now)
            owner.held += 1
            course.held += 1
            self._in_flight += 1
            self._bytes += len(payload)
            self._tell(job, None)
            if self._draining:
                self.failed(run, Draining("the server is shutting down"))
            else:
                self._undecoded.append(run)
        self._lives.let_go(owner)

    def _pace(self, course: Course, now: float) -> Pace | None:
        if now - course.pace_at >= PACE_KEPT:
            course.pace = self._scheduler.core.pace(course.model)
            course.pace_at = now
        return course.pace

    # --- Runs -----------------------------------------------------------------------------------------------------

    def _decode(self, now: float) -> None:
        """Puts claimed jobs into the scheduler, as long as the turn allows."""
        until = now + DECODE_SECONDS
        undecoded = self._undecoded
        while undecoded:
            run = undecoded.popleft()
            if run.ended:
                continue
            self._admit(run, now)
            now = self._clock()
            if now >= until:
                return

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
        self._bytes += request.nbytes - len(run.payload)
        run.payload = b""
        run.request = request
        course = run.course
        course.rows_per_job += LEARNING * (request.rows - course.rows_per_job)
        refusal = self._scheduler.admit(request, now)
        if refusal is None:
            reach("execute.admitted")
        else:
            self.failed(run, refusal)

    def succeeded(self, run: Run, response: bytes, version: int) -> None:
        """A run has its result."""
        if run.ended:
            return
        run.course.pause = 0.0
        self._finish(run, JobState.SUCCEEDED, response, version)

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
            self._finish(run, answer.state, self._encode_error(error), run.version)
            return
        if answer.blocked and course.resume_at <= now:
            course.resume_at = now + answer.delay
            if isinstance(error, Unavailable):
                course.pause = answer.delay
        self._release(run, answer.delay, refund=answer.refund)

    def _finish(self, run: Run, state: JobState, outcome: bytes, version: int) -> None:
        reach("execute.done")
        self._end(run)
        self._ends.finish(run, state, outcome, version)

    def _release(self, run: Run, delay: float, *, refund: bool) -> None:
        self._end(run)
        self._ends.release(run, delay, refund=refund)

    def _end(self, run: Run) -> None:
        """A run needs no engine any more."""
        run.ended = True
        run.course.held -= 1
        self._in_flight -= 1
        self._bytes -= len(run.payload) if run.request is None else run.request.nbytes
        run.payload = b""
        run.request = None
        if self._claiming.alone and run.alone:
            self._claiming.suspect_done(self._clock())
        self.look()

    def _drop(self, run: Run) -> None:
        """Nobody wants its result."""
        request = run.request
        self._end(run)
        if request is not None:
            self._scheduler.cancel(request, self._clock())
        self._forget(run)

    def _forget(self, run: Run) -> None:
        if self._runs.get(run.job.id) is run:
            del self._runs[run.job.id]
        self._lives.let_go(run.owner)

    def _lost(self, owner: Owner) -> None:
        """An owner's life has ended: others may have its jobs."""
        held = [run for run in self._runs.values() if run.owner is owner]
        _log.warning("job_claims_lost", jobs=len(held))
        for run in held:
            if not run.ended:
                self._drop(run)
        self._count()

    def _ended(self, run: Run, operation: Finish | Release, outcome: Job | Exception | None) -> None:
        """The store knows a run's end, or will never know it."""
        self._forget(run)
        self.look()
        if isinstance(outcome, Job):
            if isinstance(operation, Release) and outcome.state is JobState.PENDING:
                self._pending.released(outcome, self._clock() + operation.delay)
            self._tell(outcome, operation.outcome if isinstance(operation, Finish) else None)
        elif isinstance(outcome, ClaimLost):
            self._unsure(run.job)

    def _internal(self, fault: Exception, job: Job) -> Internal:
        error = Internal()
        _log.error("job_not_decoded", error_id=error.error_id, job=job.id, exc_info=fault)
        return error
