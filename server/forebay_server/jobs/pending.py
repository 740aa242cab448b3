"""What waits in the store, as far as this server knows: how many jobs of whom, and about how many are ahead of one.

The store is asked for its backlog now and then, and what passes through this server is added and taken off in between.
Outcomes come in the order in which the store did the work, so an answer to `Backlog` is exact at the moment at which it
is put in here; later it is exact as long as nobody else uses the store.

Pure: `now` is an argument. Used by the dispatcher.
"""

from collections.abc import Sequence
from math import inf

from forebay_server.jobs.ages import Ages
from forebay_server.jobs.store import SUSPECT_CRASHES, Flow, Job, Waiting


def flow_of(job: Job) -> Flow:
    """The flow in which a job waits."""
    return Flow(job.model, job.tenant, job.priority, job.crashes >= SUSPECT_CRASHES)


class _Line:
    """Jobs that wait one behind the other, or so it is supposed: the sequences of those of a flow, or of a priority."""

    __slots__ = ("first", "jobs", "last", "ready")

    def __init__(self, jobs: int, first: float, last: float, ready: float) -> None:
        self.jobs = jobs
        self.first = first
        self.last = last
        self.ready = ready
        """When some of them may be claimed, monotonic seconds (of flows)."""

    def add(self, sequence: int) -> None:
        """One more."""
        if self.jobs <= 0:
            self.jobs = 1
            self.first = self.last = sequence
            return
        self.jobs += 1
        self.first = min(self.first, sequence)
        self.last = max(self.last, sequence)

    def take(self, jobs: int) -> None:
        """So many of the first less."""
        if jobs >= self.jobs:
            self.jobs = 0
        else:
            self.first += jobs * (self.last - self.first + 1) / self.jobs
            self.jobs -= jobs

    def before(self, sequence: int) -> float:
        """About how many have a smaller sequence, supposing that they are spread evenly."""
        if self.jobs <= 0:
            return 0.0
        return self.jobs * min(1.0, max(0.0, (sequence - self.first) / (self.last - self.first + 1)))


class _Model:
    __slots__ = ("flows", "lines")

    def __init__(self) -> None:
        self.flows: dict[Flow, _Line] = {}
        self.lines: dict[int, _Line] = {}
        """By priority, suspects left out."""


class Pending:
    """The jobs that wait, counted."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self._ages = Ages()
        self.total = 0
        """Jobs that wait, of all models."""

    def replace(self, backlog: Sequence[Waiting], now: float) -> None:
        """The store has said what waits."""
        self._models.clear()
        self.total = 0
        self._ages.seen(max((each.last for each in backlog), default=0), now)
        for flow, jobs, first, last, ready in backlog:
            model = self._model(flow.model)
            model.flows[flow] = _Line(jobs, first, last, now + ready)
            self.total += jobs
            if flow.suspect:
                continue
            line = model.lines.get(flow.priority)
            if line is None:
                model.lines[flow.priority] = _Line(jobs, first, last, 0.0)
            else:
                line.jobs += jobs
                line.first = min(line.first, first)
                line.last = max(line.last, last)

    def submitted(self, job: Job, now: float) -> None:
        """A job was taken in."""
        self._ages.seen(job.sequence, now)
        self._add(job, -inf)

    def oldest(self, now: float) -> float:
        """Seconds for which the first of all jobs that wait, suspects left out, has done so at least; 0: none does."""
        firsts = [line.first for model in self._models.values() for line in model.lines.values() if line.jobs > 0]
        return self._ages.age(int(min(firsts)), now) if firsts else 0.0

    def released(self, job: Job, ready: float) -> None:
        """A job waits again, and may be claimed from `ready` on."""
        self._add(job, ready)

    def claimed(self, flow: Flow, asked: int, got: int) -> None:
        """A claim has brought `got` of the `asked` jobs: if they are fewer, nothing of the flow can be claimed now."""
        model = self._models.get(flow.model)
        line = None if model is None else model.flows.get(flow)
        if model is None or line is None:
            return
        if got < asked:
            line.ready = inf  # Until the store has said more: what is left has a delay, or has expired.
        self._take(model, flow, line, got)

    def ready(self, model: str, now: float) -> dict[Flow, int]:
        """How many jobs of each flow of a model can be claimed, at most."""
        known = self._models.get(model)
        if known is None:
            return {}
        return {flow: line.jobs for flow, line in known.flows.items() if line.ready <= now}

    def next_ready(self, model: str, now: float) -> float:
        """When a flow of a model that has none to claim now has some."""
        known = self._models.get(model)
        if known is None:
            return inf
        return min((line.ready for line in known.flows.values() if line.ready > now), default=inf)

    def ahead(self, job: Job) -> float:
        """About how many jobs of its model go before a job that waits.

        Those of equal or better priority with a smaller sequence. What it leaves out: the shares of tenants and
        priorities, deadlines, delays after a release, jobs that are claimed already, and what other servers do.
        """
        model = self._models.get(job.model)
        if model is None:
            return 0.0
        return sum(line.before(job.sequence) for priority, line in model.lines.items() if priority <= job.priority)

    def _model(self, name: str) -> _Model:
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = _Model()
        return model

    def _add(self, job: Job, ready: float) -> None:
        flow = flow_of(job)
        model = self._model(job.model)
        line = model.flows.get(flow)
        if line is None:
            line = model.flows[flow] = _Line(0, 0, 0, ready)
        line.ready = min(line.ready, ready) if line.jobs else ready
        line.add(job.sequence)
        self.total += 1
        if not flow.suspect:
            whole = model.lines.get(flow.priority)
            if whole is None:
                whole = model.lines[flow.priority] = _Line(0, 0, 0, 0.0)
            whole.add(job.sequence)

    def _take(self, model: _Model, flow: Flow, line: _Line, jobs: int) -> None:
        self.total = max(0, self.total - jobs)
        line.take(jobs)
        if line.jobs == 0:
            del model.flows[flow]
        whole = model.lines.get(flow.priority)
        if whole is not None and not flow.suspect:
            whole.take(jobs)
            if whole.jobs == 0:
                del model.lines[flow.priority]
        if not model.flows:
            del self._models[flow.model]
