"""Which requests an idle instance runs next.

1. What must run again after a failure goes first (`bisection`).
2. Of the lanes with online requests, the one whose first flow has the smallest tag; among equals, the one whose head is
   due first. Only if no online request waits at all, the same among the lanes with jobs.
3. The batch is filled from that lane in the order of the fair share, up to the cap: the smallest of the model's limit,
   the cost model's best size, what memory allows, and the largest size whose predicted time still meets the tightest
   deadline in the batch, whosever it is; one that can't go along any more is left for the next batch. A request with
   more rows than the cap is cut; others never are.
4. A request that could not meet its deadline even alone is expired, not run. So is, while more than a full batch waits,
   one that would make the batch so small that the engine is wasted, and one whose batch must not take a little longer
   than predicted: another will be in time for certain.
5. Slots between the batch and the size that it is padded to are free: jobs get them. While online requests come, a
   batch of jobs alone is no larger than its throughput needs, and not much longer than one of a single row
   (`Lane.job_cap`): who comes then waits for it. Otherwise it may be larger than others (`Lane.backlog_cap`), because
   a batch costs the dispatcher something, too.
6. With a delay, a lane that is not full yet is left until its oldest request has waited that long, and not if that
   would cost a deadline.
7. An instance of some depth gets a batch behind the one that it runs: at once if that will be full, else when the one
   that runs is nearly done (`slots.EARLY`), because until then it may still grow and can't begin. Deadlines and waits
   count from when it should begin.
8. If a model has instances for jobs alone, these run the batches of jobs, and the others online requests only (and
   jobs in the slots of rule 5).

A tenant that is kept apart (`shares.Tenant.strike`) has batches of its own.
"""

from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf

from forebay_server.scheduling.bisection import rerun
from forebay_server.scheduling.queue import Lane, Queue, Split, Tier
from forebay_server.scheduling.request import Batch, Level, Part, Reason, Request, State
from forebay_server.scheduling.slots import Slot, start
from forebay_server.scheduling.state import DOUBT, NOISE, TRUST, Books, Model, largest_within, leave, seconds_of

WAITING = State.WAITING
RUNNING = State.RUNNING
ALL = (Level.ONLINE, Level.JOB)
REQUESTS = (Level.ONLINE,)
JOBS = (Level.JOB,)
MARGIN_RISE = 0.25
MARGIN_FALL = 0.05
"""The margin goes up faster than it comes down, so it is nearer to the longer waits than to their mean: at the mean,
every second request under overload would be let in only to be late."""
EXCESS_MOST = 1.0
"""No wait counts for more than so much over the margin: one alone says little."""
MARGIN_MOST = 4.0
MARGIN_GRAIN = 0.001
"""Seconds added to both waits before they are compared: what is shorter than a turn of the dispatcher says nothing."""
DEAR = 0.9
"""With a backlog no deadline may cost more than a tenth of the throughput."""
BATCH_WORK = 110e-6
REQUEST_WORK = 9e-6
"""Seconds that a batch, and each request in it, takes of the dispatcher's core besides the engine's time, front end and
system included (about, by CPU times of the small model of the bench)."""
RECENT = 2.0
"""Seconds in which two batches of online requests say that more will come. One alone, as of a probe, does not."""
TRIAL_EVERY = 32
"""One batch in so many may be larger than is thought best."""
DELAY_SLACK = 0.001
"""Seconds that a delayed batch starts before it would cost a deadline."""


def next_batch(books: Books, slot: Slot, now: float) -> Batch | None:
    """The batch that an idle, usable instance runs now, or one with room next; None if there is none."""
    model = slot.model
    if not slot.has_room() or slot.stuck or slot.dead:
        return None
    full_only = False
    if slot.batch is not None:
        joins_at = slot.joins_at()
        full_only = now < joins_at
        slot.look_at = joins_at if full_only else inf
    if slot.for_jobs:
        return _best(books, slot, JOBS, now, full_only=False)
    while model.reruns:
        again = rerun(books, slot, now)
        if again is not None:
            return again
    model.start_at = inf
    return _best(books, slot, REQUESTS if model.usable_for_jobs else ALL, now, full_only=full_only)


def _best(books: Books, slot: Slot, levels: Sequence[Level], now: float, *, full_only: bool) -> Batch | None:
    """The batch of the best of the lanes, of the first of these levels that has one."""
    model = slot.model
    for level in levels:
        while model.busy[level]:
            chosen = _choose(books, model, level, now, full_only=full_only)
            if chosen is None:
                break
            lane, reason = chosen
            batch = _form(books, slot, lane, level, reason, now)
            if batch is not None:
                return batch
        if model.busy[level]:
            return None  # Online requests are being delayed: no job goes before them.
    return None


def _choose(books: Books, model: Model, level: Level, now: float, *, full_only: bool) -> tuple[Lane, Reason] | None:
    """The lane to serve, and why now; None if all that have something are being delayed, or it has to be full."""
    best: Lane | None = None
    best_reason = Reason.IDLE
    best_standing = (inf, inf)
    empty: list[Lane] = []
    busy = model.busy[level]
    for lane in busy:
        tier = lane.tiers[level]
        queue = tier.first()
        head = None if queue is None else queue.head()
        if queue is None or head is None:
            empty.append(lane)
            continue
        reason = Reason.IDLE
        if model.policy.max_delay > 0.0 or books.draining:
            ready = _ready(books, model, lane, tier, now)
            if ready is None:
                continue
            reason = ready
        standing = (queue.share.tag, head.due)
        if best is None or standing < best_standing:
            best, best_reason, best_standing = lane, reason, standing
    for lane in empty:
        del busy[lane]
    if best is None or (full_only and best.tiers[level].rows < best.cap):
        return None
    return best, best_reason


def _ready(books: Books, model: Model, lane: Lane, tier: Tier, now: float) -> Reason | None:
    """Why a lane of a model with a delay starts now; None if it waits on."""
    if tier.rows >= lane.cap:
        return Reason.FULL
    if books.draining:
        return Reason.DRAIN
    delayed = tier.since + model.policy.max_delay
    urgent = tier.tightest - lane.cap_seconds * model.margin - DELAY_SLACK
    if now >= delayed:
        return Reason.DELAY
    if now >= urgent:
        return Reason.DEADLINE
    model.start_at = min(model.start_at, delayed, urgent)
    return None


def _form(books: Books, slot: Slot, lane: Lane, level: Level, reason: Reason, now: float) -> Batch | None:
    """Fills a batch from a lane; None if all that would have gone into it had expired."""
    model = slot.model
    policy = model.policy
    tier = lane.tiers[level]
    parts: list[Part] = []
    if level is Level.ONLINE:
        books.online_at, books.online_before = now, books.online_at
        cap = _tried(lane, tier, lane.cap, lane.trial_cap)
    elif online(books, now):
        cap = _job_cap(lane, tier)
    else:
        cap = _tried(lane, tier, lane.backlog_cap, lane.backlog_trial_cap)
    begins = now if slot.batch is None else max(now, slot.until)
    rows, full = _fill(books, tier, parts, 0, cap, now, begins)
    if not rows:
        return None
    padded = policy.padded(rows)
    if padded > rows and level is Level.ONLINE and lane.tiers[Level.JOB].rows and not _apart(parts, now):
        rows, _ = _fill(books, lane.tiers[Level.JOB], parts, rows, padded, now, begins)
    if level is Level.ONLINE:  # How long jobs wait for a gap says nothing of the others.
        first = parts[0].request
        ratio = (begins - first.arrival + MARGIN_GRAIN) / (first.expected + MARGIN_GRAIN)
        excess = min(ratio - model.margin, EXCESS_MOST)
        margin = model.margin + excess * (MARGIN_RISE if excess > 0.0 else MARGIN_FALL)
        model.margin = min(max(margin, 1.0), MARGIN_MOST)
    if policy.max_delay > 0.0 and tier.rows:
        _look_again(tier, lane.cap)
    predicted = lane.cap_seconds if padded == lane.cap else model.costs.predict(lane.bucket, padded)
    if level is Level.ONLINE:
        work = BATCH_WORK + REQUEST_WORK * len(parts)
        books.online_load.add(work + (predicted or 0.0) if slot.inline else work, now)
    if full:
        reason = Reason.FULL
    return start(slot, Batch(slot.number, lane, parts, rows, padded, reason, predicted or None, now))


def _tried(lane: Lane, tier: Tier, cap: int, trial: int) -> int:
    """The most rows in this batch: now and then more than the cap, if so many wait, to learn whether that is better."""
    return trial if cap < trial <= tier.rows and lane.batches % TRIAL_EVERY == 0 else cap


def online(books: Books, now: float) -> bool:
    """Whether online requests come."""
    return now - books.online_before < RECENT


def _job_cap(lane: Lane, tier: Tier) -> int:
    """The most rows in a batch of jobs that online requests may have to wait for."""
    queue = tier.first()
    head = None if queue is None else queue.head()
    return lane.job_cap if head is None else min(lane.cap, max(lane.job_cap, head.rows))


def _apart(parts: list[Part], now: float) -> bool:
    """Whether a batch belongs to a tenant that is kept apart."""
    return parts[0].request.queue.share.tenant.apart_until > now


def _look_again(tier: Tier, cap: int) -> None:
    """Finds the oldest and the tightest of what a batch has left.

    If that fills another batch nobody will be delayed for now, and it is enough to know it near enough, and not too
    late: by the heads of all flows.
    """
    if tier.rows >= cap:
        heads = [head for _, _, queue in tier.heap if (head := queue.head()) is not None]
        tier.since = min((head.arrival for head in heads), default=inf)
        tier.tightest = min((head.due for head in heads), default=inf)
        return
    left = [request for _, _, queue in tier.heap for request in queue.waiting()]
    tier.since = min((request.arrival for request in left), default=inf)
    tier.tightest = min((request.deadline for request in left), default=inf)


def _fill(
    books: Books, tier: Tier, parts: list[Part], rows: int, cap: int, now: float, begins: float
) -> tuple[int, bool]:
    """Takes requests from a tier into `parts` until there are `cap` rows, for a batch that begins at an instant.

    Returns:
        The rows of the batch, and whether it is as full as it may be.
    """
    aside: list[tuple[float, int, Queue]] = []
    heap = tier.heap
    full = False
    while rows < cap and not full:
        queue = tier.first()
        if queue is None:
            break
        apart = queue.share.tenant.apart_until > now
        if apart and parts:
            aside.append(heappop(heap))  # Its turn comes with a batch of its own.
            continue
        if len(heap) == 1 or apart:
            until = inf
        else:
            until = heap[1][0] if len(heap) == 2 or heap[1][0] <= heap[2][0] else heap[2][0]
        rows, cap, full = _serve(books, queue, parts, rows, cap, until, now, begins)
        if apart and rows:
            full = full or rows >= cap
            break
    for entry in aside:
        heappush(heap, entry)
    return rows, full or rows >= cap


def _serve(  # noqa: C901, PLR0912, PLR0915  # each request passes here: a call per step would be felt
    books: Books, queue: Queue, parts: list[Part], rows: int, cap: int, until: float, now: float, begins: float
) -> tuple[int, int, bool]:
    """Takes requests from one queue until its flow's tag is over `until`.

    Returns:
        The rows of the batch, its cap (lower if a deadline wants that), and whether nothing more may go in.
    """
    lane = queue.lane
    model = lane.model
    share = queue.share
    line, early = queue.line, queue.early
    tier_rows = queue.tier.rows
    row_cost = lane.row_cost
    per_row = row_cost / share.weight
    tag = virtual = share.tag
    noise = NOISE if tier_rows > lane.cap else 1.0
    safe = begins + noise * (lane.cap_seconds if cap == lane.cap else seconds_of(lane, cap))
    full = False
    taken = 0
    waiting_cost = 0.0
    new = Part.__new__
    while rows < cap:
        if early:
            head = queue.head()
            if head is None:
                break
            request = head
        elif line:
            request = line[0]
            if request.state is not WAITING:
                line.popleft()
                queue.marks -= 1
                continue
        else:
            break
        n = request.rows
        if request.deadline < safe:
            fits = _fits(lane, request, min(cap, lane.cap), noise, now, begins)
            if fits == 0 or (tier_rows >= lane.cap and _too_dear(queue, fits, min(cap, lane.cap), now)):
                books.expire(request, now)
                continue
            if fits < rows + min(n, lane.cap) and rows:
                full = True
                break
            if fits < cap:
                cap = fits
                safe = begins + noise * seconds_of(lane, cap)
        if n > lane.cap or request.scheduled is not None:
            n, cost = _cut(queue, request, parts, cap - rows)
        elif rows + n > cap:
            full = True
            break
        else:
            if early:
                queue.pop(request)
            else:
                line.popleft()
            request.state = RUNNING
            part = new(Part)  # a call of the class takes twice as long
            part.request = request
            part.start = 0
            part.rows = n
            parts.append(part)
            cost = request.cost
        rows += n
        taken += n
        waiting_cost += cost
        virtual = tag
        tag += n * per_row
        if tag > until:
            break
    if taken:
        share.tag = tag
        share.charge(taken * row_cost)
        leave(queue, taken, waiting_cost)
        if model.rows == 0:
            virtual = share.tag  # A new busy period begins even for all.
        level = share.level
        model.virtual[level] = max(model.virtual[level], virtual)
    return rows, cap, full


def _fits(lane: Lane, request: Request, cap: int, noise: float, now: float, begins: float) -> int:
    """The largest batch of at most `cap` rows that meets a deadline; 0 if the request would miss it even alone.

    Batches are taken to need `noise` times what is predicted.
    """
    left = (request.deadline - begins) / noise
    if left <= 0.0:
        return 0
    least = min(request.rows, cap)
    trusted = now - lane.model.confirmed <= TRUST
    if seconds_of(lane, least) * (1.0 if trusted else DOUBT) > left:
        return 0
    return largest_within(lane, least, cap, left)


def _too_dear(queue: Queue, fits: int, cap: int, now: float) -> bool:
    """Whether a batch as small as a deadline wants it would waste the engine while more than a full one waits.

    Under overload those at the head are the ones that are almost late. To make batches small for them makes all others
    late too, and so on until only small batches run. What the newest has left tells which size the callers' deadlines
    allow at all: one that takes half of that, so that a request may wait for a batch and run in the next.
    """
    lane = queue.lane
    newest = queue.line[-1] if queue.line else queue.early[0][2]
    usual = largest_within(lane, 1, cap, 0.5 * (newest.deadline - now))
    if fits >= usual:
        return False
    return fits * seconds_of(lane, usual) < DEAR * usual * seconds_of(lane, fits)


def _cut(queue: Queue, request: Request, parts: list[Part], room: int) -> tuple[int, float]:
    """Takes as many rows of a request as there is room for; the others stay at the head of the queue.

    Returns:
        The rows, and their part of the request's cost.
    """
    split: Split | None = request.scheduled
    if split is None:
        split = request.scheduled = Split()
    left = request.rows - split.taken
    rows = min(left, room)
    parts.append(Part(request, split.taken, rows))
    split.taken += rows
    split.outstanding += 1
    cost = request.cost * rows / left
    request.cost -= cost
    if rows == left:
        queue.pop(request)
        request.state = RUNNING
    return rows, cost
