"""Which jobs to claim: how many of a model, and from whom.

*How many.* The scheduler shall always have `BATCHES` full batches of job rows per instance, so that an instance that
becomes idle finds a full one; and on top what the engine gets through while a claim is on its way to the store and
back, so that it does not run dry meanwhile. Never more: claimed jobs hold memory, and what one server has claimed no
other runs.

*How fast.* At once, while nobody else comes. While online requests come, a few at a time, with a rest after each claim
(`rest`), so that jobs take what the others leave of the dispatcher's core but for `SPARE`, and `SHARE_LEAST` of it at
the least: so many of the requests meet what is done for jobs, and each only a short stretch.

*From whom.* Flows share by start-time fair queueing, as in `scheduling.shares`, in units of jobs: a claimed job adds
1 / weight to its flow's tag, the smallest tag is next, and a flow that comes (again) begins at the tag last served. So
each flow that waits gets its part by the weight of its priority, tenants of one priority the same, and none starves.

*Suspects* (jobs that were running when several owners went away) may bring the server down, so nothing else of worth
may be lost with them: one at a time in the whole process, claimed only when no other job is in flight here. If other
jobs wait too, suspects get their turn `SUSPECT_PAUSE` seconds after the one before, or as long after it as that one
took; the others are not claimed meanwhile.

Pure: `now` is an argument.
"""

from collections.abc import Mapping
from heapq import heapify, heapreplace
from math import ceil
from typing import Final

from forebay_server.jobs.store import Flow
from forebay_server.scheduling.figures import Pace
from forebay_server.scheduling.request import PRIORITY_WEIGHTS

BATCHES: Final = 2
MOST_JOBS: Final = 2048
"""Jobs of one model that are in flight here at most."""
MOST_AT_ONCE: Final = 512
MOST_BESIDE: Final = 16
"""Jobs in one claim, and in one while online requests come: what a claim brings is taken up in one go, and keeps the
dispatcher from answering meanwhile."""
SHARE_LEAST: Final = 0.1
"""The part of the time that is for jobs beside any load of online requests."""
SPARE: Final = 0.1
"""The part of the time that is kept free, while online requests come."""
HANDLING: Final = 70e-6
"""Seconds that a job takes of a core besides its batch, in all threads, in claims of so few (about, by CPU times)."""
SUSPECT_PAUSE: Final = 1.0
"""Seconds."""
_TAGS_KEPT: Final = 1024

Amount = tuple[Flow, int]
"""A flow, and how many of its jobs to claim."""


def wanted(pace: Pace, round_trip: float, rows_per_job: float) -> int:
    """How many jobs of a model should be in flight here.

    Args:
        pace: The model's speed.
        round_trip: Seconds from asking for jobs until they are there.
        rows_per_job: As seen of late.
    """
    rows = BATCHES * pace.rows * pace.instances + round_trip * pace.instances / pace.row_seconds
    return min(MOST_JOBS, ceil(rows / max(1.0, rows_per_job)))


def room(wanted: int, in_flight: int) -> int:
    """How many jobs to claim now; 0 until a quarter is missing, because a few at a time cost the store most."""
    missing = wanted - in_flight
    return missing if missing * 4 >= wanted else 0


def rest(jobs: int, pace: Pace, rows_per_job: float, online_share: float) -> float:
    """Seconds after a claim of so many jobs until the next one, while online requests take such a part of the core."""
    batch = pace.row_seconds * rows_per_job if pace.inline else 0.0
    return jobs * (HANDLING + batch) / max(SHARE_LEAST, 1.0 - SPARE - online_share)


def most_at_once(*, online: bool) -> int:
    """How many jobs a claim may be for; `online`: while online requests come."""
    return MOST_BESIDE if online else MOST_AT_ONCE


def pieces(jobs: int, most: int) -> list[int]:
    """Such an amount as claims of at most so many, as few as possible and about as large as each other."""
    claims = -(-jobs // most)
    return [jobs * (number + 1) // claims - jobs * number // claims for number in range(claims)]


class Claiming:
    """Shares out what is claimed."""

    def __init__(self) -> None:
        self._tags: dict[Flow, float] = {}
        self._virtual: dict[str, float] = {}
        self._alone_since: float | None = None
        self.suspects_at = 0.0
        """When suspects have their turn again, though other jobs wait."""

    @property
    def alone(self) -> bool:
        """Whether a suspect is claimed."""
        return self._alone_since is not None

    def choose(
        self, waiting: Mapping[str, Mapping[Flow, int]], room: Mapping[str, int], *, in_flight: int, now: float
    ) -> list[Amount]:
        """Which claims to make.

        Args:
            waiting: By model, how many jobs of each flow could be claimed now.
            room: By model, how many jobs are wanted; models that are not in it get none, not even suspects.
            in_flight: Jobs of all models that are claimed here, or asked for.
            now: Monotonic seconds.
        """
        if self.alone:
            return []
        normal: dict[str, dict[Flow, int]] = {}
        suspects: list[Flow] = []
        for model in room:
            flows = normal[model] = {}
            for flow, jobs in waiting.get(model, {}).items():
                if jobs > 0 and flow.suspect:
                    suspects.append(flow)
                elif jobs > 0:
                    flows[flow] = jobs
        if suspects and (now >= self.suspects_at or (in_flight == 0 and not any(normal.values()))):
            if in_flight:
                return []  # What is in flight runs dry.
            flow = min(suspects, key=self._tag)
            self._charge(flow, self._tag(flow), 1)
            self._alone_since = now
            return [(flow, 1)]
        return [amount for model, flows in normal.items() for amount in self._share_out(flows, room[model])]

    def suspect_done(self, now: float) -> None:
        """The suspect is no longer in flight, or there was none."""
        if self._alone_since is not None:
            self.suspects_at = now + max(SUSPECT_PAUSE, now - self._alone_since)
            self._alone_since = None

    def unserved(self, flow: Flow, jobs: int) -> None:
        """A claim brought so many jobs less than were asked for."""
        if flow in self._tags:
            self._tags[flow] -= jobs / weight(flow)

    def _share_out(self, flows: Mapping[Flow, int], room: int) -> list[Amount]:
        if len(flows) == 1:
            ((flow, jobs),) = flows.items()
            jobs = min(jobs, room)
            if jobs > 0:
                self._charge(flow, self._tag(flow), jobs)
            return [(flow, jobs)] if jobs > 0 else []
        heap = [(self._tag(flow), place, flow) for place, flow in enumerate(flows)]
        heapify(heap)
        amounts: dict[Flow, int] = {}
        end = (float("inf"), -1)
        while room > 0 and heap and heap[0][0] < end[0]:
            tag, place, flow = heap[0]
            jobs = amounts[flow] = amounts.get(flow, 0) + 1
            after = self._charge(flow, tag, 1)
            heapreplace(heap, (after if jobs < flows[flow] else end[0], place, flow))
            room -= 1
        return list(amounts.items())

    def _tag(self, flow: Flow) -> float:
        virtual = self._virtual.get(flow.model, 0.0)
        return max(self._tags.get(flow, virtual), virtual)

    def _charge(self, flow: Flow, tag: float, jobs: int) -> float:
        """Counts claimed jobs; the tag after that."""
        each = 1.0 / weight(flow)
        if not flow.suspect:
            self._virtual[flow.model] = tag + (jobs - 1) * each
        if len(self._tags) >= _TAGS_KEPT and flow not in self._tags:
            self._tags = {other: kept for other, kept in self._tags.items() if kept > self._virtual.get(other.model, 0)}
        after = self._tags[flow] = tag + jobs * each
        return after


def weight(flow: Flow) -> float:
    """A flow's part, compared with others."""
    return PRIORITY_WEIGHTS.get(flow.priority, 2.0)
