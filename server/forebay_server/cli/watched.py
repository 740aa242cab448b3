"""What `forebay top` shows, worked out of the answers of a server. Pure: `now` is an argument, nothing is drawn.

A server tells what it has done since it started. Rates are differences between the last two answers, over the server's
own clock; durations, batches and reasons those of the last `WINDOW` seconds, which has enough of them for a 99th
percentile to mean something. A server that was started again begins anew.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from forebay_client import JobStatistics, Latency, ModelStatistics, ServerStatistics

WINDOW: Final = 10.0  # seconds
HISTORY: Final = 240  # rates that are kept
BINS: Final = 11  # batch sizes: 1, 2, 3-4, 5-8, ... 257-512, more
RESTARTED: Final = 10.0  # seconds for which a restart is told

Name = TypeVar("Name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """How long something took in the window, in seconds; None if there was nothing."""

    p50: float | None
    p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """A version of a model."""

    model: str
    version: int
    state: str
    engine: str
    instances: int
    usable_instances: int
    running_batches: int
    queued_rows: int
    held_bytes: int
    ok_rate: float | None
    """Requests a second; None until two answers can be compared, like the next two."""
    failed_rate: float | None
    """Requests a second that were refused or failed. Cancellations are their callers' choice and in neither."""
    busy: float | None
    """The share of time in which its instances were busy, 0 to 1."""
    request: Quantiles
    queue: Quantiles
    compute: Quantiles
    rows_per_batch: float | None
    batch_sizes: Sequence[int]
    """Batches in the window by rows: 1, 2, 3-4, 5-8, ..., and the last for all that are larger."""
    dispatches: Mapping[str, int]
    """Batches in the window by why they started."""
    errors: Mapping[str, int]
    """Requests in the window by why they were refused or failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that is to be seen at an instant."""

    address: str
    lost_for: float | None
    """Seconds since the server last answered; None if it does."""
    trouble: str
    """Why it does not answer."""
    restarted: bool
    """Another process answers than a moment ago."""
    release: str
    front_end: str
    uptime: float
    """Seconds; 0 if the server has never answered."""
    draining: bool
    ok_rate: float | None
    failed_rate: float | None
    request: Quantiles
    queued_rows: int
    held_bytes: int
    history: Sequence[float]
    """Requests a second that ended well, the oldest first."""
    models: Sequence[ModelView]
    jobs: "JobStatistics | None"


class Watch:
    """Takes in the answers of a server, and tells what they mean.

    Args:
        address: Of the server, to be shown.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._answers: deque[ServerStatistics] = deque()
        self._history: deque[float] = deque(maxlen=HISTORY)
        self._answered: float | None = None
        self._trouble = ""
        self._restarted = -RESTARTED

    def answered(self, statistics: "ServerStatistics", *, now: float) -> None:
        """The server has told its statistics."""
        answers = self._answers
        if answers and answers[-1].start_time != statistics.start_time:
            answers.clear()
            self._restarted = now
        answers.append(statistics)
        while len(answers) > 2 and answers[1].uptime <= statistics.uptime - WINDOW:
            answers.popleft()
        self._answered = now
        self._trouble = ""
        if len(answers) > 1:
            self._history.append(sum(filter(None, (model.ok_rate for model in self._models()))))

    def failed(self, trouble: str, *, now: float) -> None:
        """The server did not answer. What is known of it stays; rates are zero as far as anybody can tell."""
        if self._answered is None:
            self._answered = now  # It never has; so much is known since now.
        self._trouble = trouble
        self._history.append(0.0)

    def view(self, *, now: float) -> View:
        """What is to be seen now."""
        last = self._answers[-1] if self._answers else None
        models = self._models()
        first = self._answers[0] if self._answers else None
        return View(
            address=self._address,
            lost_for=max(0.0, now - self._answered) if self._trouble and self._answered is not None else None,
            trouble=self._trouble,
            restarted=now - self._restarted < RESTARTED,
            release=last.release if last else "",
            front_end=last.front_end if last else "",
            uptime=last.uptime if last else 0.0,
            draining=last.draining if last else False,
            ok_rate=_total(model.ok_rate for model in models),
            failed_rate=_total(model.failed_rate for model in models),
            request=_together(first, last),
            queued_rows=sum(model.queued_rows for model in models),
            held_bytes=last.held_bytes if last else 0,
            history=tuple(self._history),
            models=models,
            jobs=last.jobs if last else None,
        )

    def _models(self) -> list[ModelView]:
        if not self._answers:
            return []
        last = self._answers[-1]
        before = self._answers[-2] if len(self._answers) > 1 else None
        seconds = last.uptime - before.uptime if before else 0.0
        recent = {(one.model, one.version): one for one in before.models} if before else {}
        oldest = {(one.model, one.version): one for one in self._answers[0].models} if before else {}
        return [
            _model(one, recent.get((one.model, one.version)), oldest.get((one.model, one.version)), seconds)
            for one in last.models
        ]


def _model(
    now: "ModelStatistics", before: "ModelStatistics | None", oldest: "ModelStatistics | None", seconds: float
) -> ModelView:
    """A version at the last answer, compared with the one before (`seconds` ago) and the oldest in the window."""
    ok = failed = busy = None
    if before is not None and seconds > 0:
        ok = (_ok(now) - _ok(before)) / seconds
        failed = (sum(_errors(now).values()) - sum(_errors(before).values())) / seconds
        if now.instances:
            # Of a batch that runs, the time for copying is counted, too, and taken off when it has ended.
            busy = min(1.0, max(0.0, (now.busy - before.busy) / seconds / now.instances))
    sizes = _grown(now.batch_sizes, oldest.batch_sizes if oldest else {})
    batches = sum(sizes.values())
    return ModelView(
        model=now.model,
        version=now.version,
        state=now.state,
        engine=now.engine,
        instances=now.instances,
        usable_instances=now.usable_instances,
        running_batches=now.running_batches,
        queued_rows=now.queued_rows,
        held_bytes=now.held_bytes,
        ok_rate=ok,
        failed_rate=failed,
        busy=busy,
        request=_quantiles([(now.request_time, oldest.request_time if oldest else None)]),
        queue=_quantiles([(now.queue_time, oldest.queue_time if oldest else None)]),
        compute=_quantiles([(now.compute_time, oldest.compute_time if oldest else None)]),
        rows_per_batch=sum(rows * count for rows, count in sizes.items()) / batches if batches else None,
        batch_sizes=_binned(sizes),
        dispatches=_grown(_reasons(now), _reasons(oldest) if oldest else {}),
        errors=_grown(_errors(now), _errors(oldest) if oldest else {}),
    )


def _together(first: "ServerStatistics | None", last: "ServerStatistics | None") -> Quantiles:
    """How long requests to all models took in the window."""
    if first is None or last is None:
        return Quantiles(p50=None, p99=None)
    before = {(one.model, one.version): one.request_time for one in first.models} if first is not last else {}
    return _quantiles([(one.request_time, before.get((one.model, one.version))) for one in last.models])


def _ok(statistics: "ModelStatistics") -> int:
    return sum(outcome.requests for outcome in statistics.outcomes if outcome.code == "OK")


def _errors(statistics: "ModelStatistics") -> dict[str, int]:
    """Requests that were refused or failed, by reason."""
    return {
        outcome.reason or outcome.code: outcome.requests
        for outcome in statistics.outcomes
        if outcome.code not in {"OK", "CANCELLED"}
    }


def _reasons(statistics: "ModelStatistics") -> dict[str, int]:
    """Batches by why they started."""
    return {str(reason): batches for reason, batches in statistics.dispatches.items()}


def _total(rates: Iterable[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known else None


def _grown(now: Mapping[Name, int], before: Mapping[Name, int]) -> dict[Name, int]:
    """By how much counts have grown, without those that have not."""
    grown = {name: count - before.get(name, 0) for name, count in now.items()}
    return {name: count for name, count in grown.items() if count > 0}


def _binned(sizes: Mapping[int, int]) -> tuple[int, ...]:
    """Batches by powers of two of their rows."""
    bins = [0] * BINS
    for rows, count in sizes.items():
        bins[min(max(rows - 1, 0).bit_length(), BINS - 1)] += count
    return tuple(bins)


def _quantiles(pairs: "Iterable[tuple[Latency, Latency | None]]") -> Quantiles:
    """Quantiles of what histograms have gained, all together; each the geometric middle of its bucket."""
    gained: dict[float, int] = {}
    growth = 1.0
    for now, before in pairs:
        growth = max(growth, now.growth)
        for bound, count in _grown(now.buckets, before.buckets if before else {}).items():
            gained[bound] = gained.get(bound, 0) + count
    total = sum(gained.values())
    if not total:
        return Quantiles(p50=None, p99=None)
    found = []
    seen = 0
    bounds = iter(sorted(gained))
    bound = 0.0
    for fraction in (0.5, 0.99):
        while seen < fraction * total:
            bound = next(bounds)
            seen += gained[bound]
        found.append(bound / sqrt(growth))
    return Quantiles(p50=found[0], p99=found[1])
