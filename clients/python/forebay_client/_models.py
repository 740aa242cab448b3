"""Models and their statistics as plain values, read from the messages of `ModelService`. Pure.

Times are seconds and instants `datetime` in UTC.
"""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from forebay.v1 import inference_pb2, model_pb2, tensor_pb2
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
    )


def _read_latency(message: model_pb2.LatencySummary) -> Latency:
    return Latency(
        count=message.count,
        total=message.sum_nanos / 1e9,
        p50=message.p50_nanos / 1e9,
        p90=message.p90_nanos / 1e9,
        p99=message.p99_nanos / 1e9,
    )
