"""Who is let in: limits first, then whether the deadline can be met. Everything O(1) in what waits.

*Limits*: bytes held by the server (what the front end holds included), the model's queued rows, the tenant's queued
rows (of online requests). When the model's queue is full, the flow that is most over its share gives way, its latest
request first; the newcomer is refused only if that is its own flow, or none is further over its share than it would be.
Jobs give way to online requests, never the other way round.

*Feasibility*: the wait is what the running batches still need, and the whole batches of equal or better standing, over
the instances. By the rules of the fair share (`shares`), before a request with `a` seconds of its own flow ahead of it,
of weight w, about (a + half its own cost) x W / w - half its own cost are served, W being the weight of all busy flows;
and never more than all that waits. The request is refused if now + wait x margin + its own batch's time is after its
deadline. Its own batch is taken to be a full one (if it took a smaller one for granted, those that are let in would
arrive at the head with no time left for anything but small batches), or one of half the time that is left if a full one
is too long for such deadlines. The margin, between 1 and 4, follows the ratio of real to predicted waits (`forming`
measures it).
"""

from collections.abc import Sequence
from heapq import heappush
from math import inf

from forebay_server.errors import (
    BytesLimit,
    DeadlineExpired,
    DeadlineUnreachable,
    Draining,
    EngineUnavailable,
    ForebayError,
    MessageTooLarge,
    ModelFailed,
    QueueFull,
    TenantQuota,
)
from forebay_server.scheduling.events import REFUSED
from forebay_server.scheduling.queue import Lane, Queue, next_serial
from forebay_server.scheduling.request import Request, State
from forebay_server.scheduling.shares import Share
from forebay_server.scheduling.state import DOUBT, NOISE, TRUST, Books, Model, seconds_of

RETRY_LEAST = 0.010
RETRY_MOST = 30.0
RETRY_JITTER = 0.2

ROUNDING = 1.0 + 1e-9
LESS_ROUNDING = 1.0 + 0.5e-9
"""For what must be within `ROUNDING` however the same is added up."""

WAITING = State.WAITING
EXPIRED_ON_ARRIVAL = "the deadline had passed when the request came"


def admit(  # noqa: C901, PLR0912, PLR0915  # each request passes here: a call per step would be felt
    books: Books, request: Request, now: float
) -> ForebayError | None:
    """Queues a request whose lane is in use by its model, or says why not."""
    lane = request.lane
    model = lane.model
    if books.draining or not model.usable:
        return refuse(books, request, _closed(books, model))
    level = request.level
    tier = lane.tiers[level]
    queue = tier.queues.get((request.tenant, request.priority))
    if queue is None:
        queue = _open(books, request)
    share = queue.share
    tenant = share.tenant
    rows = request.rows
    nbytes = request.nbytes
    policy = model.policy

    if books.held_bytes + nbytes + books.external_bytes > books.policy.max_held_bytes:
        return refuse(books, request, _too_many_bytes(books, model, nbytes))
    if tenant.max_rows and level == 0 and tenant.rows + rows > tenant.max_rows:
        return refuse(books, request, _over_quota(books, lane, share, rows))

    cost = rows * lane.row_cost
    deadline = request.deadline
    half = 0.5 * cost
    weight = share.weight
    own = share.cost
    due = now + tier.horizon
    if deadline < due:  # noqa: PLR1730  # `min` would be felt
        due = deadline
    if own:
        line = queue.line
        if line and due < line[-1].due:
            own *= _part_before(queue, due)
        wait = (own + half) * model.busy_weight / weight - half
    else:
        wait = half * model.busy_weight / weight
    wait = min(wait, model.cost)
    usable = model.usable
    alone = lane.one_seconds if rows == 1 else _alone(lane, rows)
    running = inf
    for slot in usable:
        if slot.batch is None:
            running = 0.0
            break
        running = min(running, slot.until)
    full = lane.cap_seconds
    with_it = wait + cost if rows <= lane.cap else wait
    if running or with_it > full * ROUNDING:
        # Whole batches run before its own, which will be as large as such deadlines allow.
        if running:
            running = max(0.0, running - now)
        wait = running + (with_it / ROUNDING // full * full if full else wait) / len(usable)
        alone = max(alone, min(full * NOISE, 0.5 * (deadline - now)))
    else:
        # It will run at once, with those that came with it.
        alone = min(wait + alone, full)
        wait = 0.0
    if now - model.confirmed > TRUST:
        alone *= DOUBT
    if deadline <= now or (full and now + wait * model.margin + alone > deadline):
        return refuse(books, request, _unreachable(deadline, now))

    if model.rows + rows > policy.max_queued_rows and not _make_room(books, lane, share, rows, now):
        return refuse(books, request, _queue_full(books, lane, rows))

    request.state = WAITING
    request.cost = cost
    request.expected = wait
    request.queue = queue
    request.due = due
    line = queue.line
    if not line or due >= line[-1].due:
        line.append(request)
    else:
        queue.push(request)
    if due < queue.alarm:
        books.arm(queue, due)
    if share.rows == 0:
        share.wake(model.virtual[level])
        if level == 0:
            model.busy_weight += weight
    if tier.rows == 0:
        model.busy[level][lane] = None
        tier.since = request.arrival
        tier.tightest = deadline
    elif deadline < tier.tightest:
        tier.tightest = deadline
    if not queue.active:
        queue.active = True
        heappush(tier.heap, (share.tag, next_serial(), queue))
    queue.rows += rows
    tier.rows += rows
    share.rows += rows
    share.cost += cost
    if level == 0:
        tenant.rows += rows
    model.rows += rows
    model.cost += cost
    model.held_bytes += nbytes
    books.held_bytes += nbytes
    return None


def admit_alike(  # noqa: C901, PLR0915  # as `admit`
    books: Books, requests: Sequence[Request], now: float
) -> int:
    """Queues requests that differ in their data only, up to one that needs a closer look; `admit` sees to that.

    One like them has just been admitted at this instant, so there is nothing to open or to wake. What it leaves is the
    same, to the last bit, as after `admit` for one after the other: it repeats that for what differs.

    Returns:
        How many are queued.
    """
    first = requests[0]
    lane, deadline, rows, nbytes = first.lane, first.deadline, first.rows, first.nbytes
    model = lane.model
    tier = lane.tiers[first.level]
    queue = tier.queues.get((first.tenant, first.priority))
    due = min(deadline, now + tier.horizon)
    if queue is None or not queue.line or due < queue.line[-1].due:
        return 0
    share = queue.share
    tenant = share.tenant
    room = (model.policy.max_queued_rows - model.rows) // rows
    if tenant.max_rows and first.level == 0:
        room = min(room, (tenant.max_rows - tenant.rows) // rows)
    if nbytes:
        room = min(room, (books.policy.max_held_bytes - books.held_bytes - books.external_bytes) // nbytes)
    if room < len(requests):
        requests = requests[: max(0, room)]

    cost = rows * lane.row_cost
    half = 0.5 * cost
    busy_weight, weight = model.busy_weight, share.weight
    own, total = share.cost, model.cost
    full = lane.cap_seconds
    alone = lane.one_seconds if rows == 1 else _alone(lane, rows)
    usable = len(model.usable)
    until = min(0.0 if slot.batch is None else slot.until for slot in model.usable)
    running = max(0.0, until - now) if until else 0.0
    rides = cost if rows <= lane.cap else 0.0
    later = max(alone, min(full * NOISE, 0.5 * (deadline - now)))
    trust = DOUBT if now - model.confirmed > TRUST else 1.0
    margin = model.margin
    last = (own + (len(requests) - 1) * cost + half) * busy_weight / weight - half
    # Whether even the last one will run at once, and in time: then none has to be looked at.
    all_at_once = not until and last + rides <= full * LESS_ROUNDING and now + full * trust <= deadline
    taken = 0
    wait = 0.0
    for request in requests:
        if not all_at_once:
            wait = (own + half) * busy_weight / weight - half
            if wait > total:  # noqa: PLR1730  # `min` would be felt
                wait = total
            with_it = wait + rides
            if until or with_it > full * ROUNDING:
                wait = running + (with_it / ROUNDING // full * full if full else wait) / usable
                seconds = later
            else:
                seconds = min(wait + alone, full)
                wait = 0.0
            if full and now + wait * margin + seconds * trust > deadline:
                break
        request.state = WAITING
        request.cost = cost
        request.expected = wait
        request.queue = queue
        request.due = due
        own += cost
        total += cost
        taken += 1
    queue.line.extend(requests if taken == len(requests) else requests[:taken])
    taken_rows, taken_bytes = taken * rows, taken * nbytes
    queue.rows += taken_rows
    tier.rows += taken_rows
    share.rows += taken_rows
    share.cost = own
    if first.level == 0:
        tenant.rows += taken_rows
    model.rows += taken_rows
    model.cost = total
    model.held_bytes += taken_bytes
    books.held_bytes += taken_bytes
    return taken


def refuse(books: Books, request: Request, error: ForebayError) -> ForebayError:
    """Ends a request at the door."""
    request.state = State.REFUSED
    books.events.append((REFUSED, request.lane.key, request.method, error.reason, request.tenant))
    return error


def retry_after(books: Books, seconds: float) -> float:
    """The delay to tell a caller for an excess that drains in so many seconds: jittered, within bounds."""
    jittered = seconds * (1.0 - RETRY_JITTER + 2.0 * RETRY_JITTER * books.random())
    return min(max(jittered, RETRY_LEAST), RETRY_MOST)


def no_instance(books: Books, model: Model) -> ForebayError:
    """Why a model without a usable instance serves nobody."""
    if any(slot.stuck for slot in model.slots):
        return EngineUnavailable("the model's engine does not answer")
    for slot in model.slots:
        if slot.device in books.dead_devices:
            return EngineUnavailable(f"the device {slot.device} of the model's engine has failed")
    return EngineUnavailable("the model's engine has failed")


def _closed(books: Books, model: Model) -> ForebayError:
    if books.draining:
        return Draining("the server is shutting down")
    if model.removed:
        return ModelFailed("the model is unloaded")
    return no_instance(books, model)


def _open(books: Books, request: Request) -> Queue:
    """A place for a flow in a lane where it had none."""
    lane = request.lane
    tier = lane.tiers[request.level]
    tier.sweep()
    share = books.share(lane.model, request.tenant, request.priority, request.level)
    queue = tier.queues[request.tenant, request.priority] = Queue(lane, tier, share)
    return queue


def _part_before(queue: Queue, due: float) -> float:
    """Which part of a queue is due earlier, supposing that they are spread evenly."""
    first, last = queue.line[0].due, queue.line[-1].due
    if due <= first:
        return 0.0
    return (due - first) / (last - first)


def _alone(lane: Lane, rows: int) -> float:
    """Seconds that a request takes by itself, in as many batches as it needs."""
    cap = lane.cap
    if rows <= cap:
        return seconds_of(lane, rows)
    whole, rest = divmod(rows, cap)
    instances = min(len(lane.model.usable), whole + (rest > 0))
    return (whole * lane.cap_seconds + (seconds_of(lane, rest) if rest else 0.0)) / instances


def _unreachable(deadline: float, now: float) -> ForebayError:
    if deadline <= now:
        return DeadlineExpired(EXPIRED_ON_ARRIVAL)
    return DeadlineUnreachable("by the measured speed of the model and the work ahead, the deadline can't be met")


def _too_many_bytes(books: Books, model: Model, nbytes: int) -> ForebayError:
    most = books.policy.max_held_bytes
    if nbytes > most:
        return MessageTooLarge(f"the request holds {nbytes} bytes, the server at most {most}")
    held = books.held_bytes + books.external_bytes
    waiting = sum(other.cost / max(1, len(other.usable)) for other in books.models.values())
    seconds = max(waiting, model.cost) * (held + nbytes - most) / max(held, 1)
    return BytesLimit("the server holds as many bytes as it may", retry_after=retry_after(books, seconds))


def _over_quota(books: Books, lane: Lane, share: Share, rows: int) -> ForebayError:
    tenant, model = share.tenant, lane.model
    if rows > tenant.max_rows:
        return MessageTooLarge(f"the request has {rows} rows, its tenant may have {tenant.max_rows} waiting")
    excess = (tenant.rows + rows - tenant.max_rows) * lane.row_cost
    slowed = max(1.0, model.busy_weight / share.weight)
    seconds = min(excess * slowed, max(model.cost, excess)) / len(model.usable)
    return TenantQuota("the tenant's part of the queue is full", retry_after=retry_after(books, seconds))


def _queue_full(books: Books, lane: Lane, rows: int) -> ForebayError:
    model = lane.model
    most = model.policy.max_queued_rows
    if rows > most:
        return MessageTooLarge(f"the request has {rows} rows, the model's queue holds at most {most}")
    return shed_error(books, lane, model.rows + rows - most)


def shed_error(books: Books, lane: Lane, excess: int) -> QueueFull:
    """Tells somebody that the queue has so many rows too many."""
    seconds = excess * lane.row_cost / max(1, len(lane.model.usable))
    return QueueFull("the model's queue is full", retry_after=retry_after(books, seconds))


def _make_room(books: Books, lane: Lane, share: Share, rows: int, now: float) -> bool:
    """Sheds from the flow that is most over its share; False if that would not be fair, or not be enough."""
    model = lane.model
    excess = model.rows + rows - model.policy.max_queued_rows
    standing = share.over(rows)
    victim = _fattest(model)
    if victim is None or victim is share or victim.rows < excess or victim.over() <= standing:
        return False
    goal = victim.rows - excess
    flow = victim.flow
    while victim.rows > goal:
        queues = (
            [
                queue
                for other in model.lanes.values()
                for queue in other.tiers[flow.level].queues.values()
                if queue.share is victim and queue.rows
            ]
            if len(model.lanes) > 1
            else [lane.tiers[flow.level].queues[flow.place]]
        )
        queue = max(queues, key=lambda queue: queue.rows)
        newest = queue.newest()
        if newest is None:
            return False
        books.fail(newest, shed_error(books, lane, excess), State.FAILED, now)
    return True


def _fattest(model: Model) -> Share | None:
    """The share that is most over its part of the queue.

    All shares are looked at once per so many calls as there are shares; in between the last answer stands as long as
    it has something waiting. So the cost of shedding does not depend on the number of flows.
    """
    model.sheds += 1
    fattest = model.fattest
    if fattest is None or fattest.rows == 0 or model.sheds > len(model.shares):
        model.sheds = 0
        fattest = model.fattest = max(model.shares.values(), key=Share.over, default=None)
    return fattest
