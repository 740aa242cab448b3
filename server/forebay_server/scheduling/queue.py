"""Where requests wait: lanes, in each lane a queue per flow, in each queue the order of what is *due*.

An online request is due at its deadline, or HORIZON after it was admitted if that is earlier; what is due first goes
first. So a deadline counts while it is near, and far ones leave in order of arrival. Nobody starves by the deadlines of
others: what is admitted when a request is due, or later, is due after it, so a request is overtaken only by what its
flow admits within HORIZON after it, and then waits for nothing but what stands before it. By the bare deadline all that
comes with an earlier one would go first for as long as it keeps coming: of two busy streams, whose items have the
deadline of their stream, the older would be served alone. Jobs are due at their deadline, those without one after all
others in order of arrival. Refusals and expiry go by the deadline itself.

Most callers use one timeout, so requests come almost in the order in which they are due: a queue is a deque of those
that are not due before its tail, and a small heap for the others (which are due at their deadline: with one that is
beyond the horizon they would have been due after all that is there). The common case costs an append and a popleft.

The head need not be the one that expires first. But nobody expires before it is due, so an alarm at the first `due` is
early enough; requests that still wait when it rings are *watched*, in a heap by deadline. That costs something only
those that have waited for a whole horizon.

A request that is cancelled, expired or shed while it waits is only marked (its state is no longer WAITING); the mark is
skipped when it surfaces, and a queue that is more than half marks is rebuilt. The counts are corrected by the caller at
once. Nothing here knows why a request goes; the modules around the core do.
"""

from bisect import bisect_right
from collections import deque
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from forebay_server.scheduling.policy import Bucket, ModelKey
from forebay_server.scheduling.request import Level, Request, State
from forebay_server.scheduling.shares import Share

if TYPE_CHECKING:
    from forebay_server.scheduling.state import Model

WAITING = State.WAITING
HORIZON = 1.0
"""Seconds. Long beside what callers wait who care for their place, short beside what the others would starve."""
_MARKS_KEPT = 32
"""Below so many marks a rebuild is not worth it."""
_SWEEP_AT = 64
_DUE = attrgetter("due")
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

    __slots__ = ("active", "alarm", "early", "lane", "line", "looked", "marks", "rows", "share", "tier", "watch")

    def __init__(self, lane: "Lane", tier: "Tier", share: Share) -> None:
        self.lane = lane
        self.tier = tier
        self.share = share
        self.line: deque[Request] = deque()
        self.early: list[tuple[float, int, Request]] = []
        """(due, order of arrival, request); they are due at their deadline."""
        self.watch: list[tuple[float, int, Request]] = []
        """(deadline, order, request) of those in the line that were due by `looked`; some are gone."""
        self.looked = 0.0
        """When its alarm last rang."""
        self.rows = 0
        """Rows that wait, marks not counted."""
        self.marks = 0
        """Entries of `line` and `early` that no longer wait."""
        self.active = False
        """Whether it stands in its tier's order."""
        self.alarm = inf
        """When the core will look for expired ones; never later than any deadline that waits."""

    def push(self, request: Request) -> None:
        """Puts a request in its place."""
        line = self.line
        if not line or request.due >= line[-1].due:
            line.append(request)
        else:
            heappush(self.early, (request.due, next_serial(), request))

    def head(self) -> Request | None:
        """The waiting request that is due first; drops the marks before it."""
        line, early = self.line, self.early
        while True:
            if early and (not line or early[0][0] < line[0].due):
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
        """The waiting request that is due last, which came last (or nearly)."""
        line = self.line
        while line:
            if line[-1].state is WAITING:
                return line[-1]
            line.pop()
            self.marks -= 1
        waiting = [entry for entry in self.early if entry[2].state is WAITING]
        return max(waiting)[2] if waiting else None

    def waiting(self) -> list[Request]:
        """All that wait, in no order."""
        waiting = [request for request in self.line if request.state is WAITING]
        waiting += [entry[2] for entry in self.early if entry[2].state is WAITING]
        return waiting

    def mark(self) -> None:
        """One of its requests is no longer WAITING."""
        self.marks += 1
        entries = len(self.line) + len(self.early)
        if self.marks > _MARKS_KEPT and self.marks * 2 > entries:
            waiting = [request for request in self.line if request.state is WAITING]
            self.line.clear()  # In place: `forming` may be walking through it.
            self.line.extend(waiting)
            self.early[:] = [entry for entry in self.early if entry[2].state is WAITING]
            heapify(self.early)
            self.marks -= entries - len(self.line) - len(self.early)

    def expired(self, now: float) -> list[Request]:
        """The waiting requests whose deadline has come, for the caller to withdraw; those that are due are watched."""
        line, early, watch = self.line, self.early, self.watch
        late: list[Request] = []
        while early and early[0][0] <= now:
            request = heappop(early)[2]
            self.marks -= 1  # A mark, or will be one when it is withdrawn.
            if request.state is WAITING:
                late.append(request)
        for index in range(self._first_after(self.looked), len(line)):
            request = line[index]
            if request.due > now:
                break
            if request.state is WAITING:
                if request.deadline <= now:
                    late.append(request)
                else:
                    heappush(watch, (request.deadline, next_serial(), request))
        self.looked = now
        while watch and watch[0][0] <= now:
            request = heappop(watch)[2]
            if request.state is WAITING:
                late.append(request)
        if len(watch) > 2 * (len(line) + len(early)):
            watch[:] = [entry for entry in watch if entry[2].state is WAITING]
            heapify(watch)
        return late

    def next_alarm(self) -> float:
        """When to look for expired ones again, after `expired`; infinity: never, while nothing is pushed."""
        at = self.early[0][0] if self.early else inf
        first = self._first_after(self.looked)
        if first < len(self.line):
            at = min(at, self.line[first].due)
        if self.watch:
            # At the latest after a horizon: those that are gone must not be kept for as long as their deadline is far.
            at = min(at, self.watch[0][0], self.looked + HORIZON)
        return at

    def _first_after(self, instant: float) -> int:
        """The index of the first in the line that is due after an instant."""
        line = self.line
        if not line or line[0].due > instant:
            return 0
        return bisect_right(line, instant, key=_DUE)


class Tier:
    """The queues of one level in a lane, in the order of their flows' tags."""

    __slots__ = ("heap", "horizon", "level", "queues", "rows", "since", "sweep_at", "tightest")

    def __init__(self, level: Level) -> None:
        self.level = level
        self.horizon = HORIZON if level is Level.ONLINE else inf
        """Seconds after which a request is due, however far its deadline is."""
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
        "backlog_cap",
        "backlog_trial_cap",
        "batches",
        "bucket",
        "cap",
        "cap_seconds",
        "dropped",
        "good",
        "job_cap",
        "key",
        "memory_cap",
        "model",
        "one_seconds",
        "parameters",
        "row_cost",
        "tiers",
        "trial_cap",
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
        """The most rows in a batch now. This and the next seven are worked out by `state.reckon`."""
        self.backlog_cap = 1
        """The most rows in a batch of jobs while nobody else comes; not less than `cap`."""
        self.trial_cap = 1
        """The most rows in a batch that is to show whether a larger cap were better; not less than `cap`."""
        self.backlog_trial_cap = 1
        """Likewise of jobs while nobody else comes."""
        self.job_cap = 1
        """The most rows in a batch of jobs while online requests come, too."""
        self.cap_seconds = 0.0
        """Predicted seconds of such a batch; 0 if unknown."""
        self.one_seconds = 0.0
        """Predicted seconds of a batch of one row."""
        self.row_cost = 0.0
        """Engine seconds that a row adds to a batch of the best size."""
