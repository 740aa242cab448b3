"""What waits in each flow of an SQLite store, counted as it changes instead of each time that somebody asks.

The count and the delays are kept here. So are the first and the last sequence, until the job that has it leaves; then
the database is asked, which has an index for it. What a group has changed can be taken back.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import copy

from forebay_server.jobs.store import Flow, Waiting

FlowKey = tuple[str, str, int, bool | int]
"""Equal to the `Flow` of the same values, and quicker to make."""


class _Line:
    """A flow that has something waiting."""

    __slots__ = ("delays", "first", "jobs", "last")

    def __init__(self, jobs: int, first: int, last: int) -> None:
        self.jobs = jobs
        self.first: int | None = first
        """None: the database knows."""
        self.last: int | None = last
        self.delays: dict[int, float] = {}
        """From when those that were released with a delay may be claimed, by sequence."""


class Lines:
    """All flows that have something waiting.

    Args:
        end: The sequence of the first (False) or last (True) job that waits in a flow.
    """

    def __init__(self, end: Callable[[FlowKey, bool], int]) -> None:
        self._end = end
        self._lines: dict[FlowKey, _Line] = {}
        self._before: dict[FlowKey, _Line | None] = {}
        """Copies of what the group has changed; None: was not there."""

    def load(
        self, lines: Iterable[tuple[FlowKey, int, int, int]], delays: Iterable[tuple[FlowKey, int, float]]
    ) -> None:
        """Begins with (flow, jobs, first, last) of each flow, and (flow, sequence, ready) of each delayed job."""
        self._lines = {flow: _Line(jobs, first, last) for flow, jobs, first, last in lines}
        for flow, sequence, ready in delays:
            self._lines[flow].delays[sequence] = ready

    def begin(self) -> None:
        """From here on changes can be taken back."""
        self._before.clear()

    def take_back(self) -> None:
        """Everything is as it was at `begin`."""
        for flow, line in self._before.items():
            if line:
                self._lines[flow] = line
            else:
                self._lines.pop(flow, None)
        self._before.clear()

    def _touch(self, flow: FlowKey) -> _Line | None:
        line = self._lines.get(flow)
        if flow not in self._before:
            if line is None:
                self._before[flow] = None
            else:
                kept = self._before[flow] = copy(line)
                kept.delays = line.delays.copy()
        return line

    def add(self, flow: FlowKey, sequence: int, ready: float = 0.0) -> None:
        """A job waits; if `ready` is not 0, until then."""
        line = self._touch(flow)
        if line is None:
            line = self._lines[flow] = _Line(1, sequence, sequence)
        else:
            line.jobs += 1
            if line.first is not None and sequence < line.first:
                line.first = sequence
            if line.last is not None and sequence > line.last:
                line.last = sequence
        if ready:
            line.delays[sequence] = ready

    def remove(self, flow: FlowKey, sequences: Sequence[int]) -> None:
        """Jobs wait no more."""
        line = self._touch(flow)
        assert line is not None, f"{flow} has nothing waiting"  # noqa: S101  # the books would be wrong
        line.jobs -= len(sequences)
        if not line.jobs:
            del self._lines[flow]
            return
        if line.first in sequences:
            line.first = None
        if line.last in sequences:
            line.last = None
        if line.delays:
            for sequence in sequences:
                line.delays.pop(sequence, None)

    def waiting(self, now: float) -> list[Waiting]:
        """What waits, sorted by flow."""
        found = []
        for flow, line in sorted(self._lines.items()):
            if line.first is None:
                line.first = self._end(flow, False)
            if line.last is None:
                line.last = self._end(flow, True)
            delayed = line.jobs == len(line.delays)
            ready = max(0.0, min(line.delays.values()) - now) if delayed else 0.0
            model, tenant, priority, suspect = flow
            found.append(Waiting(Flow(model, tenant, priority, bool(suspect)), line.jobs, line.first, line.last, ready))
        return found
