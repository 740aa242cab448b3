"""Claims jobs: looks what is wanted (`claiming`), asks the store for it under an owner's name (`lives`), keeps count.

What claims have brought is the runner's; it says when a job needs no engine any more, which is when others are wanted.

Used by the dispatcher alone.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import Final

from forebay_server.jobs import claiming
from forebay_server.jobs.claiming import Claiming
from forebay_server.jobs.failpoints import reach
from forebay_server.jobs.keeper import Keeper
from forebay_server.jobs.lives import Lives, Owner
from forebay_server.jobs.pending import Pending
from forebay_server.jobs.runs import Course
from forebay_server.jobs.store import Claim, Claimed, Flow
from forebay_server.scheduling.core import Core
from forebay_server.scheduling.figures import Pace

PACE_KEPT: Final = 0.1
"""Seconds for which a model's speed is not looked up again."""
PACE_UNKNOWN: Final = 1.0
"""Seconds after which a model is looked at again whose speed is not known yet."""
LEARNING: Final = 0.2
"""The part by which a new observation moves what is known of round trips and rows per job."""
LEAST_BYTES: Final = 1 << 20
"""No claim is worth it for less room."""

Came = Callable[[Course, Owner, Sequence[Claimed], float], None]
"""Told of a model's jobs that an owner has claimed, and when that became known."""


class Claimant:
    """Claims jobs, and knows how many are.

    Args:
        keeper: The way to the store.
        core: Knows the models' speeds, and whether online requests come.
        pending: What waits; claims are counted in it.
        claim_s: See `JobsConfig`.
        max_bytes: Payloads and outcomes that are held here at most, but for one job.
        outcomes: How many bytes of outcomes are held.
        came: Told what claims have brought.
        lost: Told of an owner whose life has ended: others may have its jobs.
        count: Called when `pending` is not to be trusted.
        clock: Monotonic seconds.

    Attributes:
        asking: Claims on their way.
    """

    def __init__(
        self,
        keeper: Keeper,
        *,
        core: Core,
        pending: Pending,
        claim_s: float,
        max_bytes: int,
        outcomes: Callable[[], int],
        came: Came,
        lost: Callable[[Owner], None],
        count: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._keeper = keeper
        self._core = core
        self._pending = pending
        self._max_bytes = max_bytes
        self._outcomes = outcomes
        self._came = came
        self._count = count
        self._clock = clock
        self._lives = Lives(keeper, seconds=claim_s, lost=lost, begun=self.look, clock=clock)
        self._claiming = Claiming()
        self._courses: dict[str, Course] = {}
        self._in_flight = 0
        """`held` and `asked` of all courses."""
        self._bytes = 0
        """Payloads of what has not ended, and what claims on their way may bring."""
        self._round_trip = 0.0
        self._plan_at = 0.0
        self._rests_until = 0.0
        """Nothing is claimed before, as long as online requests come."""
        self._stopped = False
        self.asking = 0

    # --- For the runner -------------------------------------------------------------------------------------------

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

    def recovered(self) -> None:
        """The store is back, perhaps without the last that it had confirmed."""
        self._lives.retire(self._lives.current)
        self.look()

    def stop(self) -> None:
        """Claims no more."""
        self._stopped = True

    def close(self) -> None:
        """Ends the lives of this process's owners: what they still hold is free for others."""
        self._stopped = True
        self._lives.close()

    def resized(self, course: Course, nbytes: int, rows: float) -> None:
        """Jobs were decoded: they hold so many bytes more, and have so many rows each."""
        self._bytes += nbytes
        course.rows_per_job += LEARNING * (rows - course.rows_per_job)

    def ended(self, course: Course, jobs: int, nbytes: int, *, alone: bool) -> None:
        """So many jobs need no engine any more, nor the bytes that they had. `alone`: it is the suspect."""
        course.held -= jobs
        self._in_flight -= jobs
        self._bytes -= nbytes
        if alone and self._claiming.alone:
            self._claiming.suspect_done(self._clock())
        self.look()

    def let_go(self, owner: Owner, jobs: int) -> None:
        """The store knows the ends of so many jobs, or will never know them."""
        self._lives.let_go(owner, jobs)
        self.look()

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
        return min(self._lives.due, self._plan_at)

    def tick(self, now: float) -> None:
        """Renews and claims: what is due."""
        if self._lives.due <= now:
            self._lives.tick(now)
        if self._plan_at <= now:
            self._plan_at = self._claim(now)

    # --- Claims ---------------------------------------------------------------------------------------------------

    def _claim(self, now: float) -> float:
        """Asks for what is wanted; returns when to look again though nothing happens."""
        owner = self._lives.current
        if self._stopped or not owner.alive or not self._keeper.healthy:
            return inf
        online = self._core.online(now)
        if online and now < self._rests_until:
            return self._rests_until
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
        held = self._bytes + self._outcomes()
        left = self._max_bytes - held
        if not room or (left < LEAST_BYTES and held):
            return again  # The next end makes room.
        most = claiming.most_at_once(online=online)
        if online:
            room = {model: min(free, most) for model, free in room.items()}
            self._rests_until = now
        amounts = self._claiming.choose(waiting, room, in_flight=self._in_flight, now=now)
        claims = [(flow, jobs) for flow, amount in amounts for jobs in claiming.pieces(amount, most)]
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
        self.asking += 1
        self._courses[flow.model].asked += jobs
        self._in_flight += jobs
        self._bytes += nbytes
        pace = self._courses[flow.model].pace
        if pace is not None:
            rows = self._courses[flow.model].rows_per_job
            self._rests_until += claiming.rest(jobs, pace, rows, self._core.online_share(now))
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
        self.asking -= 1
        self.look()
        got: Sequence[Claimed] = () if isinstance(outcome, Exception) else outcome
        size = sum(len(payload) for _, payload in got)
        if isinstance(outcome, Exception):
            self._lives.retire(owner)  # Perhaps it holds jobs that nobody knows of.
            self._count()
        else:
            self._round_trip += LEARNING * (now - since - self._round_trip)
            full = size >= nbytes
            self._pending.claimed(flow, len(got) if full else asked, len(got))
            if len(got) < asked and not full:
                self._count()
        self._claiming.unserved(flow, asked - len(got))
        if flow.suspect and not got:
            self._claiming.suspect_done(now)
        if got and not owner.ended:  # Else somebody takes them over.
            owner.held += len(got)
            course.held += len(got)
            self._in_flight += len(got)
            self._bytes += size
            self._came(course, owner, got, now)
        self._lives.let_go(owner)

    def _pace(self, course: Course, now: float) -> Pace | None:
        if now - course.pace_at >= PACE_KEPT:
            course.pace = self._core.pace(course.model)
            course.pace_at = now
        return course.pace
