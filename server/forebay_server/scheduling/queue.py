"""Where requests wait: lanes, in each lane a queue per flow, in each queue the earliest deadline first.

Most callers use one timeout, so deadlines arrive almost in order: a queue is a deque of those that are not earlier than
its tail, and a small heap for the others. The common case costs an append and a popleft.

A request that is cancelled, expired or shed while it waits is only marked (its state is no longer WAITING); the mark is
skipped when it surfaces, and a queue that is more than half marks is rebuilt. The counts are corrected by the caller at
once. Nothing here knows why a request goes; the modules around the core do.
"""

from collections import deque
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any

from forebay_server.scheduling.policy import Bucket, ModelKey
from forebay_server.scheduling.request import Level, Request, State
from forebay_server.scheduling.shares import Share

if TYPE_CHECKING:
    from forebay_server.scheduling.state import Model

WAITING = State.WAITING
_MARKS_KEPT = 32
"""Below so many marks a rebuild is not worth it."""
_SWEEP_AT = 64
next_serial = count().__next__
"""Breaks ties in heaps by order of arrival."""


class Split:
    """The book-keeping of a request that runs in several parts."""

    __slots__ = ("finished", "outstanding", "pieces", "taken")

    def __init__(self, taken: int = 0, outstanding: int = 0) -> None:
        self.taken = taken
        """Rows that batches have been given; the rest waits."""
        self.outstanding = outstanding
        """Parts that are in batches, or are to run again."""
        self.finished = 0
        """Rows whose results are there."""
        self.pieces: list[tuple[int, Any, int, int]] = []
        """(first row of the request, outputs, first row in the outputs, rows)."""


class Queue:
    """What one flow has waiting in one lane."""

    __slots__ = ("active", "alarm", "early", "lane", "line", "marks", "rows", "share", "tier")

    def __init__(self, lane: "Lane", tier: "Tier", share: Share) -> None:
        self.lane = lane
        self.tier = tier
        self.share = share
        self.line: deque[Request] = deque()
        self.early: list[tuple[float, int, Request]] = []
        self.rows = 0
        """Rows that wait, marks not counted."""
        self.marks = 0
        self.active = False
        """Whether it stands in its tier's order."""
        self.alarm = inf
        """When the core will look whether its head has expired; never later than the head's deadline."""

    def push(self, request: Request) -> None:
        """Puts a request in its place."""
        line = self.line
        if not line or request.deadline >= line[-1].deadline:
            line.append(request)
        else:
            heappush(self.early, (request.deadline, next_serial(), request))

    def head(self) -> Request | None:
        """The waiting request with the earliest deadline; drops the marks before it."""
        line, early = self.line, self.early
        while True:
            if early and (not line or early[0][0] < line[0].deadline):
                request = early[0][2]
                if request.state is WAITING:
                    return request
                heappop(early)
            elif line:
                request = line[0]
                if request.state is WAITING:
                    return request
                line.popleft()
            else:
                return None
            self.marks -= 1

    def pop(self, head: Request) -> None:
        """Removes what `head` has just returned."""
        if self.early and self.early[0][2] is head:
            heappop(self.early)
        else:
            self.line.popleft()

    def newest(self) -> Request | None:
        """The waiting request with the latest deadline, which came last (or nearly)."""
        line = self.line
        while line:
            if line[-1].state is WAITING:
                return line[-1]
            line.pop()
            self.marks -= 1
        waiting = [entry for entry in self.early if entry[2].state is WAITING]
        return max(waiting)[2] if waiting else None

    def mark(self) -> None:
        """One of its requests is no longer WAITING."""
        self.marks += 1
        if self.marks > _MARKS_KEPT and self.marks * 2 > len(self.line) + len(self.early):
            waiting = [request for request in self.line if request.state is WAITING]
            self.line.clear()  # In place: `forming` may be walking through it.
            self.line.extend(waiting)
            self.early[:] = [entry for entry in self.early if entry[2].state is WAITING]
            heapify(self.early)
            self.marks = 0


class Tier:
    """The queues of one level in a lane, in the order of their flows' tags."""

    __slots__ = ("heap", "level", "queues", "rows", "since", "sweep_at", "tightest")

    def __init__(self, level: Level) -> None:
        self.level = level
        self.queues: dict[tuple[str, int], Queue] = {}
        """By tenant and priority."""
        self.heap: list[tuple[float, int, Queue]] = []
        """(a tag that is not later than the share's, order of arrival, queue). Tags only grow, so an entry that is too
        early is put right when it surfaces."""
        self.rows = 0
        self.since = inf
        """When the oldest that waits arrived (kept for models with a delay)."""
        self.tightest = inf
        """No deadline that waits is earlier (kept for models with a delay)."""
        self.sweep_at = _SWEEP_AT

    def enter(self, queue: Queue) -> None:
        """A queue has something again."""
        queue.active = True
        heappush(self.heap, (queue.share.tag, next_serial(), queue))

    def first(self) -> Queue | None:
        """The queue with the smallest tag that has something."""
        heap = self.heap
        while heap:
            tag, serial, queue = heap[0]
            if queue.rows == 0:
                heappop(heap)
                queue.active = False
            elif tag < queue.share.tag:
                heapreplace(heap, (queue.share.tag, serial, queue))
            else:
                return queue
        return None

    def sweep(self) -> None:
        """Forgets queues that are empty, once there are many."""
        if len(self.queues) >= self.sweep_at:
            self.queues = {key: queue for key, queue in self.queues.items() if queue.active}
            self.sweep_at = 2 * len(self.queues) + _SWEEP_AT


class Lane:
    """The requests of one model that may share a batch: equal bucket, equal parameters."""

    __slots__ = (
        "batches",
        "bucket",
        "cap",
        "cap_seconds",
        "dropped",
        "good",
        "key",
        "memory_cap",
        "model",
        "one_seconds",
        "parameters",
        "row_cost",
        "tiers",
    )

    def __init__(self, model: "Model", key: ModelKey, bucket: Bucket, parameters: Any) -> None:
        self.model = model
        self.key = key
        self.bucket = bucket
        self.parameters = parameters
        self.tiers = (Tier(Level.ONLINE), Tier(Level.JOB))
        self.dropped = False
        """Idle, and forgotten by its model; `admit` finds or makes another."""
        self.memory_cap = 0
        """Rows that fit the device's memory, learned from failures; 0: no failure known."""
        self.good = 0
        """Batches since the last change of `memory_cap`."""
        self.batches = 0
        self.cap = 1
        """The most rows in a batch now. This and the next three are worked out by `state.reckon`."""
        self.cap_seconds = 0.0
        """Predicted seconds of such a batch; 0 if unknown."""
        self.one_seconds = 0.0
        """Predicted seconds of a batch of one row."""
        self.row_cost = 0.0
        """Engine seconds that a row adds to a batch of the best size."""
