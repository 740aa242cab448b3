"""An instance, as the core sees it: which batches it has, until when, and when that is too long.

Part of the books (`state`); no decisions here.
"""

from collections import deque
from math import inf
from typing import TYPE_CHECKING

from forebay_server.scheduling.queue import Lane
from forebay_server.scheduling.request import Batch

if TYPE_CHECKING:
    from forebay_server.scheduling.state import Model

EARLY = 0.25
"""The part of its predicted time that a batch has still to go when one that is not full is put behind it: late enough
to have most of what comes meanwhile in it, early enough to have it on the device in time."""

LEFT_OVER = 10.0
"""So many times as long a batch may take that gives way to others: beside a thread that always works, a tenth of a core
is left to its own."""


class Slot:
    """An instance, as the core sees it."""

    __slots__ = (
        "batch",
        "behind",
        "dead",
        "depth",
        "device",
        "for_jobs",
        "freed",
        "inline",
        "look_at",
        "model",
        "number",
        "stuck",
        "stuck_at",
        "until",
    )

    def __init__(
        self, number: int, model: "Model", *, inline: bool, depth: int, device: str, for_jobs: bool = False
    ) -> None:
        self.number = number
        self.model = model
        self.for_jobs = for_jobs
        """Runs batches of jobs alone, while others run: it has the time that these leave."""
        self.inline = inline
        """Runs in the dispatcher: nobody could notice that it is stuck (the wire's watchdog does)."""
        self.depth = depth
        """The most batches that it may have; it computes them one after the other."""
        self.device = device
        """What it runs on."""
        self.batch: Batch | None = None
        """The first of those that it has."""
        self.behind: deque[Batch] = deque()
        """Those after it, which are on their way to the device; at most `depth` less one."""
        self.until = 0.0
        """When all that it has should be done."""
        self.freed = 0.0
        """When it gave a batch back last, if it may have several: the next one was not begun before."""
        self.look_at = inf
        """When what waits may be put behind those that it has, though it is no full batch."""
        self.stuck_at = inf
        """When its first batch counts as stuck."""
        self.stuck = False
        self.dead = False

    def joins_at(self) -> float:
        """When a batch that is not full may be put behind those that it has, of which there are fewer than `depth`."""
        last = self.behind[-1] if self.behind else self.batch
        return self.until - EARLY * ((last.predicted if last is not None else None) or 0.0)

    def has_room(self) -> bool:
        """Whether it may have one batch more."""
        return self.batch is None or len(self.behind) + 1 < self.depth

    def patience(self, lane: Lane, rows: int) -> float:
        """Seconds after which a batch counts as stuck."""
        seconds = self.model.policy.max_execution or self.model.costs.patience(lane.bucket, rows)
        return seconds * LEFT_OVER if self.for_jobs else seconds


def start(slot: Slot, batch: Batch) -> Batch:
    """Notes that an instance has a batch, or one more."""
    if slot.batch is not None:
        slot.behind.append(batch)
        slot.look_at = inf
        slot.until = max(slot.until, batch.dispatched) + (batch.predicted or 0.0)
        return batch
    slot.batch = batch
    slot.until = batch.dispatched + (batch.predicted or 0.0)
    slot.stuck_at = inf if slot.inline else batch.dispatched + slot.patience(batch.lane, batch.padded_rows)
    return batch


def step(slot: Slot, batch: Batch, now: float) -> float:
    """Notes that an instance that may have several batches has given one back, and runs the next.

    They come back in their order, unless one could not even be begun.

    Returns:
        The engine seconds of the batch: what it spent behind the one before it is not its own.
    """
    seconds = batch.finished - max(batch.collated, slot.freed)
    slot.freed = max(slot.freed, batch.finished)
    if batch is not slot.batch:
        slot.behind.remove(batch)
        slot.until -= batch.predicted or 0.0
        return seconds
    slot.stuck_at = inf
    slot.batch = first = slot.behind.popleft() if slot.behind else None
    if first is not None:
        slot.until = now + (first.predicted or 0.0) + sum(later.predicted or 0.0 for later in slot.behind)
        if not slot.stuck:
            slot.stuck_at = now + slot.patience(first.lane, first.padded_rows)
    return seconds
