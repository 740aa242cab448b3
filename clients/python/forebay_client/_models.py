"""Models and their statistics as plain values, read from the messages of `ModelService`. Pure.

Times are seconds and instants `datetime` in UTC.
"""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np

from forebay.v1 import inference_pb2, model_pb2, model_service_pb2, tensor_pb2
from forebay_client._jobs import JobState, read_state
from forebay_client._results import DispatchReason
from forebay_client._tensors import DTYPES

State = Literal["unspecified", "loading", "warming", "ready", "failed", "unloading", "unloaded"]
RunMode = Literal["unspecified", "inline", "worker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """What a model expects of an input, or promises of an output."""

    name: str
    dtype: np.dtype[np.generic]
    """The numpy dtype; object for BYTES."""
    data_type: str
    """The contract's name of the type, such as `FP32`."""
    shape: tuple[int, ...]
    """Outermost first, the batch dimension included; -1 where any length is accepted."""
    batched: bool
    """Whether dimension 0 is the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One version of a model."""

    version: int
    state: State
    state_message: str
    engine: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    """The most rows in a batch; 1 if the model is not batched."""
    best_batch_size: int
    """Rows at which throughput is within 5 % of its best; 0 if not measured."""
    max_delay: float
    """How long an idle engine waits for a fuller batch, in seconds."""
    unbatched_because: str
    instances: int
    run_mode: RunMode
    ready_time: dt.datetime | None
    """When it became ready; None if it never has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model: its versions, newest first, and its labels."""

    name: str
    versions: tuple[ModelVersion, ...]
    labels: Mapping[str, int]
    default_version: int
    """The version that a request without one gets; 0 if none is ready."""

    def find(self, version: str = "") -> ModelVersion | None:
        """The version with this number or label; empty: the default one. None if there is no such version."""
        number = self.default_version if not version else self.labels.get(version)
        if number is None and version.isdecimal():
            number = int(version)
        return next((found for found in self.versions if found.version == number), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long something took, in seconds. Quantiles are exact to within 10 %."""

    count: int
    total: float
    p50: float
    p90: float
    p99: float
    buckets: Mapping[float, int] = field(default_factory=dict)
    """How many took at most so many seconds, and more than `growth` times less; empty unless it was asked for."""
    growth: float = 1.0
    """By how much each bound of a bucket is larger than the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A count of requests by what came of them."""

    code: str
    reason: str
    """The reason of an error; empty for success and cancellation."""
    requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCost:
    """A measured point of the cost model."""

    bucket: str
    rows: int
    predicted: float
    """Seconds in the engine."""
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatistics:
    """What a version of a model has done since the server started, and what it does now."""

    model: str
    version: int
    outcomes: tuple[Outcome, ...]
    batch_sizes: Mapping[int, int]
    """Batches by their rows."""
    dispatches: Mapping[DispatchReason, int]
    """Batches by why they started."""
    padded_rows: int
    queue_time: Latency
    compute_time: Latency
    """Per batch."""
    request_time: Latency
    costs: tuple[BatchCost, ...]
    queued_rows: int
    """Waiting now."""
    held_bytes: int
    """Of waiting and running requests, now."""
    wait_margin: float
    """How much longer batches wait than was predicted, as a factor."""
    state: State
    engine: str
    instances: int
    """Engine instances; 0 if none was made yet."""
    usable_instances: int
    """Those that are neither stuck nor lost."""
    running_batches: int
    busy: float
    """For how many seconds instances have been busy, all together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatistics:
    """The durable jobs that a server knows of, over all tenants."""

    store: str
    """`sqlite`, `postgresql` or `memory`."""
    available: bool
    """Whether the store answers."""
    states: Mapping[JobState, int]
    """What waits in the store, what this server has claimed, and what has ended through it since it started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatistics:
    """What a server and its models have done since it started, and what they do now."""

    start_time: dt.datetime
    """If it differs between two answers, they are from two processes, and counts began at zero in between."""
    uptime: float
    """Seconds, by a clock that nobody sets: rates are differences of counts over differences of this."""
    release: str
    front_end: str
    """`native` or `grpc.aio`."""
    draining: bool
    held_bytes: int
    """Held for requests now, over all models."""
    jobs: JobStatistics | None
    """None if the server takes no jobs."""
    models: tuple[ModelStatistics, ...]
    """Each version of each model, by name and newest version first."""


def dispatch_reason(number: int) -> DispatchReason:
    """The name of a dispatch reason; `unspecified` for one that this client does not know."""
    return cast("DispatchReason", _enum_name(inference_pb2.DispatchReason, number, "DISPATCH_REASON_"))


def read_model(message: model_pb2.Model) -> Model:
    """A model from its message."""
    return Model(
        name=message.name,
        versions=tuple(_read_version(version) for version in message.versions),
        labels=dict(message.labels),
        default_version=message.default_version,
    )


def _read_version(message: model_pb2.ModelVersion) -> ModelVersion:
    return ModelVersion(
        version=message.version,
        state=cast("State", _enum_name(model_pb2.ModelState, message.state, "MODEL_STATE_")),
        state_message=message.state_message,
        engine=message.engine,
        inputs=tuple(_read_spec(spec) for spec in message.inputs),
        outputs=tuple(_read_spec(spec) for spec in message.outputs),
        max_batch_size=message.batching.max_batch_size,
        best_batch_size=message.batching.best_batch_size,
        max_delay=message.batching.max_delay.ToNanoseconds() / 1e9,
        unbatched_because=message.batching.unbatched_because,
        instances=message.instances,
        run_mode=cast("RunMode", _enum_name(model_pb2.RunMode, message.run_mode, "RUN_MODE_")),
        ready_time=message.ready_time.ToDatetime(dt.UTC) if message.HasField("ready_time") else None,
    )


def _read_spec(message: tensor_pb2.TensorSpec) -> TensorSpec:
    return TensorSpec(
        name=message.name,
        dtype=DTYPES.get(message.data_type, np.dtype(np.object_)),
        data_type=_enum_name(tensor_pb2.DataType, message.data_type, "DATA_TYPE_").upper(),
        shape=tuple(message.shape),
        batched=message.batch_dimension == 0,
    )


def _enum_name(enum: object, number: int, prefix: str) -> str:
    """The short name of an enum's value in lower case; `unspecified` for one that this client does not know."""
    descriptor = enum.DESCRIPTOR.values_by_number.get(number)  # type: ignore[attr-defined]  # all generated enums have it
    return str(descriptor.name).removeprefix(prefix).lower() if descriptor is not None else "unspecified"


def read_statistics(message: model_pb2.ModelStatistics) -> ModelStatistics:
    """Statistics from their message."""
    return ModelStatistics(
        model=message.model,
        version=message.version,
        outcomes=tuple(
            Outcome(code=count.code, reason=count.reason, requests=count.requests) for count in message.outcomes
        ),
        batch_sizes={count.rows: count.batches for count in message.batch_sizes},
        dispatches={dispatch_reason(count.reason): count.batches for count in message.dispatches},
        padded_rows=message.padded_rows,
        queue_time=_read_latency(message.queue_time),
        compute_time=_read_latency(message.compute_time),
        request_time=_read_latency(message.request_time),
        costs=tuple(
            BatchCost(bucket=cost.bucket, rows=cost.rows, predicted=cost.predicted_nanos / 1e9, samples=cost.samples)
            for cost in message.costs
        ),
        queued_rows=message.queued_rows,
        held_bytes=message.held_bytes,
        wait_margin=message.wait_margin,
        state=cast("State", _enum_name(model_pb2.ModelState, message.state, "MODEL_STATE_")),
        engine=message.engine,
        instances=message.instances,
        usable_instances=message.usable_instances,
        running_batches=message.running_batches,
        busy=message.busy_nanos / 1e9,
    )


def read_server(message: model_service_pb2.GetStatisticsResponse) -> ServerStatistics:
    """Statistics of a server from the response that has them."""
    server = message.server
    jobs = None
    if server.HasField("jobs"):
        jobs = JobStatistics(
            store=server.jobs.store,
            available=server.jobs.available,
            states={read_state(count.state): count.jobs for count in server.jobs.states},
        )
    return ServerStatistics(
        start_time=server.start_time.ToDatetime(dt.UTC),
        uptime=server.uptime_nanos / 1e9,
        release=server.release,
        front_end=server.front_end,
        draining=server.draining,
        held_bytes=server.held_bytes,
        jobs=jobs,
        models=tuple(map(read_statistics, message.statistics)),
    )


def _read_latency(message: model_pb2.LatencySummary) -> Latency:
    buckets = message.buckets
    smallest = buckets.smallest_nanos / 1e9
    # Each bound is worked out alone: it is a key, and has to be the same in every answer.
    counts = {
        smallest * buckets.growth**place: count for place, count in enumerate(buckets.counts, buckets.first) if count
    }
    return Latency(
        buckets=counts,
        growth=buckets.growth or 1.0,
        count=message.count,
        total=message.sum_nanos / 1e9,
        p50=message.p50_nanos / 1e9,
        p90=message.p90_nanos / 1e9,
        p99=message.p99_nanos / 1e9,
    )
