"""What happens to the requests of a batch that failed.

*The engine names the rows it refuses*: those requests fail, the others run again together.
*A fault*: the batch is cut into halves that run again, and so on; a request that fails alone is the culprit. For k
culprits among n requests that takes at most 2 k ceil(log2 n) further runs. Their time is charged to the culprits'
flows, and a tenant with more than a few culprits a minute is kept apart for a while: it can hurt only itself.
*Out of memory*: the lane's cap is halved, and the halves run, cut through a request if need be. The cap grows by one
row per hundred good batches.
*The engine is dead*: what it ran fails; what waits stays if another instance lives. If its device is dead, so are all
instances there.

Requests that were cancelled or have expired meanwhile do not run again.
"""

from forebay_server.errors import EngineRestarted, EngineUnavailable, ForebayError, InputRejected
from forebay_server.scheduling.outcomes import Died, Faulted, NoMemory, Rejected
from forebay_server.scheduling.queue import Lane, Split
from forebay_server.scheduling.request import Batch, Part, Reason, State
from forebay_server.scheduling.slots import Slot, start
from forebay_server.scheduling.state import Books, Model, reckon

MEMORY_RECOVERY = 100
"""Good batches for one row more."""


class Inquest:
    """The search for the culprits of one batch."""

    __slots__ = ("extra",)

    def __init__(self) -> None:
        self.extra = 0.0
        """Engine seconds of further runs that nobody has been charged for yet."""


class Rerun:
    """Parts that are to run again, together."""

    __slots__ = ("inquest", "lane", "parts")

    def __init__(self, lane: Lane, parts: list[Part], inquest: Inquest) -> None:
        self.lane = lane
        self.parts = parts
        self.inquest = inquest


def rerun(books: Books, slot: Slot, now: float) -> Batch | None:
    """Takes what is to run again next; None if nothing of it is still wanted."""
    model = slot.model
    again = model.reruns.popleft()
    parts = _wanted(books, again.parts, now)
    if not parts:
        return None
    rows = sum(part.rows for part in parts)
    padded = model.policy.padded(rows)
    predicted = model.costs.predict(again.lane.bucket, padded)
    batch = Batch(slot.number, again.lane, parts, rows, padded, Reason.IDLE, predicted, now)
    batch.scheduled = again.inquest
    again.inquest.extra += predicted or 0.0
    return start(slot, batch)


def failed(books: Books, slot: Slot, batch: Batch, outcome: Faulted | Rejected | NoMemory | Died, now: float) -> None:
    """Decides what becomes of the parts of a batch that failed. The slot is free already."""
    model = slot.model
    if isinstance(outcome, Died):
        died(books, slot, batch, outcome, now)
        return
    lane = batch.lane
    inquest: Inquest = batch.scheduled or Inquest()
    if isinstance(outcome, NoMemory):
        _halve(books, model, batch, inquest, now)
        return
    guilty: list[Part] = []
    if isinstance(outcome, Rejected):
        error: ForebayError = InputRejected(outcome.message)
        if outcome.rows is not None:
            guilty = _owners(batch.parts, outcome.rows)
    else:
        error = outcome.error
    if not guilty and len(batch.parts) == 1:
        guilty = batch.parts
    if guilty:
        for part in guilty:
            _convict(books, part, error, inquest, now)
        others = _wanted(books, [part for part in batch.parts if part not in guilty], now)
        if others:
            model.reruns.append(Rerun(lane, others, inquest))
        return
    parts = _wanted(books, batch.parts, now)
    half = (len(parts) + 1) // 2
    model.reruns.extend(Rerun(lane, piece, inquest) for piece in (parts[:half], parts[half:]) if piece)


def died(books: Books, slot: Slot, batch: Batch | None, outcome: Died, now: float) -> None:
    """An instance is lost for good, with what it ran, and with all others on its device if that is lost."""
    device = outcome.device
    if device and device not in books.dead_devices:
        books.dead_devices.add(device)
        books.lost_devices.append(device)
    lost = [other for other in books.slots.values() if other is slot or (device and other.device == device)]
    for other in lost:
        if not other.dead:
            other.dead = True
            books.retire(other)
    message = f"the device {device} of the model's engine has failed" if device else "the model's engine has failed"
    error: ForebayError
    if slot.model.usable:
        error = EngineRestarted("the engine failed while it ran the request")
    else:
        error = EngineUnavailable(message, ran=True)
    for part in batch.parts if batch is not None else ():
        abandon(books, part, error, now)
    for other in lost:
        if not other.model.usable:
            fail_all(books, other.model, EngineUnavailable(message), now)


def abandon(books: Books, part: Part, error: ForebayError, now: float) -> None:
    """Fails the request of a part that has left its batch, if it has not ended already."""
    if part.request.state in (State.WAITING, State.RUNNING):
        books.fail(part.request, error, State.FAILED, now)
    books.give_back(part)


def fail_all(books: Books, model: Model, error: ForebayError, now: float) -> None:
    """Fails everything of a model that waits, or is to run again."""
    while model.reruns:
        for part in model.reruns.popleft().parts:
            abandon(books, part, error, now)
    for level in (0, 1):
        for lane in model.busy[level]:
            for queue in lane.tiers[level].queues.values():
                while (request := queue.head()) is not None:
                    books.fail(request, error, State.FAILED, now)
        model.busy[level].clear()


def recover(lane: Lane) -> None:
    """A batch went well: perhaps there is memory for one row more."""
    lane.good += 1
    if lane.good >= MEMORY_RECOVERY:
        lane.good = 0
        lane.memory_cap += 1
        if lane.memory_cap >= lane.model.policy.max_batch_size:
            lane.memory_cap = 0
        reckon(lane)


def _wanted(books: Books, parts: list[Part], now: float) -> list[Part]:
    """Those parts whose requests have neither ended nor expired."""
    wanted: list[Part] = []
    for part in parts:
        request = part.request
        if request.state in (State.WAITING, State.RUNNING):
            if request.deadline > now:
                wanted.append(part)
                continue
            books.expire(request, now)
        books.give_back(part)
    return wanted


def _owners(parts: list[Part], rows: list[int]) -> list[Part]:
    """The parts that the refused rows belong to; none if a row is not one of the batch."""
    owners: list[Part] = []
    refused = set(rows)
    start = 0
    for part in parts:
        mine = {row for row in refused if start <= row < start + part.rows}
        if mine:
            owners.append(part)
            refused -= mine
        start += part.rows
    return [] if refused else owners


def _convict(books: Books, part: Part, error: ForebayError, inquest: Inquest, now: float) -> None:
    """A part made its batch fail."""
    share = part.request.queue.share
    share.tenant.strike(now)
    share.tag += inquest.extra / share.weight
    inquest.extra = 0.0
    abandon(books, part, error, now)


def _halve(books: Books, model: Model, batch: Batch, inquest: Inquest, now: float) -> None:
    """Lowers the lane's cap to half of what did not fit, and runs the halves."""
    lane = batch.lane
    lane.memory_cap = max(1, min(batch.rows // 2, lane.memory_cap or batch.rows))
    lane.good = 0
    reckon(lane)
    parts = _wanted(books, batch.parts, now)
    rows = sum(part.rows for part in parts)
    if batch.rows == 1:
        for part in parts:
            abandon(books, part, EngineUnavailable("the device has no memory for the request", ran=True), now)
        return
    first: list[Part] = []
    second: list[Part] = []
    room = (rows + 1) // 2
    for part in parts:
        if part.rows <= room:
            first.append(part)
        elif room == 0:
            second.append(part)
        else:
            first.append(Part(part.request, part.start, room))
            second.append(Part(part.request, part.start + room, part.rows - room))
            split: Split | None = part.request.scheduled
            if split is None:
                split = part.request.scheduled = Split(part.request.rows, 1)
            split.outstanding += 1
        room = max(0, room - part.rows)
    model.reruns.extend(Rerun(lane, piece, inquest) for piece in (first, second) if piece)
