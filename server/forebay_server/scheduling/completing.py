"""Who has a result, once a batch went well, and what it tells about costs.

A request that ran in one batch has it at once, one that ran in several when the last of them is done. A result that is
there after the deadline is nobody's. (`bisection` sees to batches that failed.)
"""

from typing import Any

from forebay_server.errors import DeadlineExpired
from forebay_server.scheduling.events import DONE, OK, SERVED
from forebay_server.scheduling.queue import Split
from forebay_server.scheduling.request import Batch, Part, Request, State
from forebay_server.scheduling.slots import Slot
from forebay_server.scheduling.state import Books

Piece = tuple[int, Any, int, int]
"""(first row of the request, outputs of its batch, first row in them, rows)."""
Completion = tuple[Request, int, list[Piece] | None]
"""A request that has its result: the row of the batch's outputs at which it begins; or, if it ran in parts, them."""

RUNNING = State.RUNNING
SUCCEEDED = State.SUCCEEDED


def learn(slot: Slot, batch: Batch, seconds: float, now: float) -> None:
    """Notes what a batch has cost, in the engine and on its way to a worker and back."""
    model = slot.model
    model.confirmed = now
    model.costs.observe(batch.lane.bucket, batch.padded_rows, seconds)
    if slot.depth == 1 and not slot.inline:
        model.learn_handling(now - batch.dispatched - seconds)


def completions(books: Books, batch: Batch, outputs: Any, now: float) -> list[Completion]:
    """Ends the requests of a batch that have all their rows now."""
    arrivals: tuple[list[float], ...] = ([], [], [])  # by method
    done: list[Completion] = []
    nbytes = 0
    row = 0
    for part in batch.parts:
        request = part.request
        if request.scheduled is not None:
            if _is_last(books, batch, part, outputs, row, now):
                done.append((request, 0, request.scheduled.pieces))
            books.give_back(part)
        else:
            nbytes += request.nbytes
            if request.state is RUNNING:
                if request.deadline < now:
                    _late(books, request, now)
                else:
                    request.state = SUCCEEDED
                    done.append((request, row, None))
                    arrivals[request.method].append(request.arrival)
        row += part.rows
    for method, those in enumerate(arrivals):
        if those:
            books.events.append((SERVED, batch.lane.key, method, batch.dispatched, now, those))
    books.held_bytes -= nbytes
    batch.lane.model.held_bytes -= nbytes
    return done


def _is_last(books: Books, batch: Batch, part: Part, outputs: Any, row: int, now: float) -> bool:
    """Keeps the result of a part; whether its request now has all."""
    request = part.request
    if request.state not in (State.WAITING, RUNNING):
        return False
    if request.deadline < now:
        _late(books, request, now)
        return False
    split: Split = request.scheduled
    split.pieces.append((part.start, outputs, row, part.rows))
    split.finished += part.rows
    if split.finished < request.rows:
        return False
    split.pieces.sort(key=lambda piece: piece[0])
    request.state = SUCCEEDED
    arrival = request.arrival
    books.events.append((DONE, request.lane.key, request.method, OK, batch.dispatched - arrival, now - arrival))
    return True


def _late(books: Books, request: Request, now: float) -> None:
    """The result is there, but after the deadline: nobody may get it."""
    books.fail(request, DeadlineExpired("the deadline passed while the request ran"), State.EXPIRED, now)
