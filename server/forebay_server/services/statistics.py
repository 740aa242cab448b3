"""Figures as messages of the contract: what `ModelService.GetStatistics` tells.

It adds nothing up. `telemetry.statistics` knows what was done, `scheduling.core` what is going on, the app how the
server fares as a whole. Runs in the dispatcher, so 50 models must not take longer than a few milliseconds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from forebay.v1 import job_pb2, model_pb2, statistics_pb2
from forebay_server.services.status import CODE_NAMES

ModelKey = tuple[str, int]


class ServedModel(Protocol):
    """One version of a model; `models.served.Served`."""

    name: str
    version: int
    key: ModelKey
    state: Any
    """Numbered as in the contract."""
    engine_name: str
    instances: int


class CostPoint(Protocol):
    """A measured point of a cost model; `scheduling.latency.Point`."""

    @property
    def bucket(self) -> Sequence[Sequence[int]]:
        """The shapes of a row."""

    @property
    def rows(self) -> int:
        """Rows in the batch."""

    @property
    def seconds(self) -> float:
        """Time in the engine."""

    @property
    def corrections(self) -> int:
        """Batches that have corrected it."""


class Figures(Protocol):
    """What a model version is doing now; `scheduling.figures.ModelFigures`."""

    @property
    def queued_rows(self) -> int:
        """Rows that wait."""

    @property
    def held_bytes(self) -> int:
        """Bytes of requests that wait or run."""

    @property
    def usable_instances(self) -> int:
        """Instances that are neither stuck nor lost."""

    @property
    def wait_margin(self) -> float:
        """How much longer batches wait than predicted, as a factor."""

    @property
    def running_batches(self) -> int:
        """Batches that instances have."""

    @property
    def running_since(self) -> Sequence[float]:
        """When each instance that runs a batch began with it, monotonic seconds."""


class Durations(Protocol):
    """A histogram; `telemetry.histogram.Histogram`."""

    count: int
    sum: float

    @property
    def counts(self) -> Sequence[int]:
        """How many fell into each bucket."""

    def quantiles(self, fractions: Iterable[float]) -> list[float]:
        """Seconds for each fraction."""


class Done(Protocol):
    """What a model version has done; `telemetry.statistics.ModelFigures`."""

    @property
    def outcomes(self) -> Mapping[str, int]:
        """Requests by outcome."""

    @property
    def batch_sizes(self) -> Mapping[int, int]:
        """Batches by rows."""

    @property
    def dispatches(self) -> Mapping[int, int]:
        """Batches by the reason of their start."""

    @property
    def padded_rows(self) -> int:
        """Rows of padding."""

    @property
    def queue_time(self) -> Durations:
        """In the queue."""

    @property
    def compute_time(self) -> Durations:
        """In the engine, per batch."""

    @property
    def request_time(self) -> Durations:
        """From arrival to outcome."""


class Statistics(Protocol):
    """Who adds up; `telemetry.statistics.Statistics`."""

    smallest: float
    """Seconds; the upper bound of the first bucket of its histograms."""
    growth: float
    """By how much each bound is larger than the one before."""

    def of(self, key: ModelKey) -> Done:
        """The figures of a model version."""

    def code(self, outcome: str) -> str:
        """The canonical name of the status code of an outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFigures:
    """How the jobs of a server fare."""

    store: str
    """`sqlite`, `postgresql` or `memory`."""
    available: bool
    """Whether the store answers."""
    states: Mapping[int, int]
    """Jobs by state, numbered as in the contract, which says what is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFigures:
    """How a server fares as a whole."""

    started: float
    """Seconds since 1970."""
    uptime: float
    """Seconds."""
    release: str
    front_end: str
    draining: bool
    held_bytes: int
    jobs: JobFigures | None
    """None if it takes none."""


class Accounts:
    """Writes what model versions have done and do.

    Args:
        figures: Gives what a model version is doing now; KeyError if the scheduler doesn't know it.
        costs: Gives its cost model; KeyError if there is none.
        statistics: What the models have done.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        figures: Callable[[ModelKey], Figures],
        costs: Callable[[ModelKey], Iterable[CostPoint]],
        statistics: Statistics,
        clock: Callable[[], float],
    ) -> None:
        self._figures = figures
        self._costs = costs
        self._statistics = statistics
        self._clock = clock

    def of(self, served: ServedModel, *, buckets: bool) -> model_pb2.ModelStatistics:
        """The statistics of a version.

        Args:
            served: The version.
            buckets: Whether durations are told bucket by bucket, too.
        """
        done = self._statistics.of(served.key)
        message = model_pb2.ModelStatistics(
            model=served.name,
            version=served.version,
            outcomes=[self._outcome(outcome, count) for outcome, count in sorted(done.outcomes.items())],
            batch_sizes=[
                model_pb2.BatchSizeCount(rows=rows, batches=count) for rows, count in sorted(done.batch_sizes.items())
            ],
            dispatches=[
                model_pb2.DispatchCount(reason=reason, batches=count)  # type: ignore[arg-type]  # the contract's number
                for reason, count in sorted(done.dispatches.items())
            ],
            padded_rows=done.padded_rows,
            queue_time=self._summary(done.queue_time, buckets=buckets),
            compute_time=self._summary(done.compute_time, buckets=buckets),
            request_time=self._summary(done.request_time, buckets=buckets),
            wait_margin=1.0,
            state=int(served.state),  # type: ignore[arg-type]  # the contract's number
            engine=served.engine_name,
            instances=served.instances,
            busy_nanos=round(done.compute_time.sum * 1e9),
        )
        with suppress(KeyError):
            now = self._figures(served.key)
            message.queued_rows = now.queued_rows
            message.held_bytes = now.held_bytes
            message.wait_margin = now.wait_margin
            message.usable_instances = now.usable_instances
            message.running_batches = now.running_batches
            at = self._clock()
            message.busy_nanos += round(sum(max(0.0, at - since) for since in now.running_since) * 1e9)
        with suppress(KeyError):
            for point in self._costs(served.key):
                message.costs.add(
                    bucket=_bucket(point.bucket),
                    rows=point.rows,
                    predicted_nanos=round(point.seconds * 1e9),
                    samples=point.corrections,
                )
        return message

    def _outcome(self, outcome: str, count: int) -> model_pb2.OutcomeCount:
        code = self._statistics.code(outcome)
        return model_pb2.OutcomeCount(code=code, reason=outcome if outcome in CODE_NAMES else "", requests=count)

    def _summary(self, durations: Durations, *, buckets: bool) -> model_pb2.LatencySummary:
        p50, p90, p99 = durations.quantiles((0.5, 0.9, 0.99))
        message = model_pb2.LatencySummary(
            count=durations.count,
            sum_nanos=round(durations.sum * 1e9),
            p50_nanos=round(p50 * 1e9),
            p90_nanos=round(p90 * 1e9),
            p99_nanos=round(p99 * 1e9),
        )
        if buckets:
            used = [place for place, count in enumerate(durations.counts) if count]
            first, last = (used[0], used[-1] + 1) if used else (0, 0)
            message.buckets.smallest_nanos = self._statistics.smallest * 1e9
            message.buckets.growth = self._statistics.growth
            message.buckets.first = first
            message.buckets.counts.extend(durations.counts[first:last])
        return message


def server_statistics(figures: ServerFigures) -> statistics_pb2.ServerStatistics:
    """How the server fares as a whole."""
    message = statistics_pb2.ServerStatistics(
        uptime_nanos=round(figures.uptime * 1e9),
        release=figures.release,
        front_end=figures.front_end,
        draining=figures.draining,
        held_bytes=figures.held_bytes,
    )
    message.start_time.FromNanoseconds(round(figures.started * 1e9))
    if figures.jobs is not None:
        message.jobs.store = figures.jobs.store
        message.jobs.available = figures.jobs.available
        for state, count in sorted(figures.jobs.states.items()):
            message.jobs.states.append(
                statistics_pb2.JobStateCount(state=job_pb2.JobState.Name(state), jobs=count)  # type: ignore[arg-type]  # the contract's number
            )
    return message


def _bucket(bucket: Sequence[Sequence[int]]) -> str:
    """`3x224x224`; several inputs are separated by commas."""
    return ",".join("x".join(map(str, shape)) for shape in bucket)
