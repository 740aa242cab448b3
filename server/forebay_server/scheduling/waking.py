"""What only the passing of time brings, and when to look for it.

Requests expire, batches turn out to be stuck, delayed ones become due, and the next may be put behind one that runs.
"""

from math import inf

from forebay_server.errors import EngineUnavailable
from forebay_server.scheduling.bisection import fail_all
from forebay_server.scheduling.request import Level, State
from forebay_server.scheduling.slots import Slot
from forebay_server.scheduling.state import TRUST, Books

_NEAR_END = 0.9
"""The part of its predicted time after which a batch may be done at any moment."""


def tick(books: Books, now: float) -> None:
    """Expires the requests, and finds the stuck batches, whose time has come."""
    while books.alarms and books.alarms[0][0] <= now:
        books.ring(now)
    for slot in books.slots.values():
        if slot.stuck_at <= now:
            _stuck(books, slot, now)


def _stuck(books: Books, slot: Slot, now: float) -> None:
    """The batch of an instance has taken too long: nobody waits for it any more."""
    model = slot.model
    slot.stuck = True
    slot.stuck_at = inf
    books.retire(slot)
    error = EngineUnavailable("the model's engine does not answer", ran=True)
    for batch in (slot.batch, *slot.behind):
        for part in batch.parts if batch is not None else ():
            if part.request.state in (State.WAITING, State.RUNNING):
                books.fail(part.request, error, State.FAILED, now)
    if not model.usable:
        fail_all(books, model, EngineUnavailable(error.message), now)


def next_wakeup(books: Books) -> float:
    """When to look again even if nothing else happens; infinity: never."""
    at = books.alarms[0][0] if books.alarms else inf
    for slot in books.slots.values():
        model = slot.model
        if slot.batch is not None:
            at = min(at, slot.stuck_at)
            if slot.depth > 1 and model.rows and slot.has_room() and slot in model.usable:
                at = min(at, slot.look_at, model.start_at)
        elif model.start_at < at and slot in model.peers(slot):
            at = model.start_at
    return at


def busy_until(books: Books, now: float) -> float:
    """Until when nothing that comes could run; 0 if it could now.

    That is so while all instances run as many batches as they may and have a full one of online requests waiting,
    until shortly before the first of these batches should end: what comes by then takes its place among those that
    wait. Models that have run nothing for a second do not count.
    """
    until = inf
    for slot in books.slots.values():
        batch, model = slot.batch, slot.model
        if slot.for_jobs:
            continue
        if batch is None:
            if now - model.confirmed < TRUST and not slot.dead:
                return 0.0
        elif batch.lane.tiers[Level.ONLINE].rows < batch.lane.cap:
            return 0.0
        elif slot.depth == 1:
            until = min(until, batch.dispatched + _NEAR_END * (slot.until - batch.dispatched))
        elif slot.has_room():
            return 0.0
        else:
            ends = slot.until - sum(later.predicted or 0.0 for later in slot.behind)
            until = min(until, batch.dispatched + _NEAR_END * (ends - batch.dispatched))
    return 0.0 if until == inf else until
