"""What both clients share: how a request is built and a response read. Pure: no channel, no thread, no clock."""

import math
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

from forebay.v1 import inference_pb2
from forebay_client._exceptions import BadResponse, NotFound
from forebay_client._models import Model, dispatch_reason
from forebay_client._results import Prediction, Timings
from forebay_client._tensors import Array, TensorLike, decode, encode, tensor_size

DEADLINE = 30.0  # seconds

Priority = Literal["high", "normal", "low"]
ParameterValue = bool | int | float | str
NamedInputs = Mapping[str, TensorLike]
Inputs = NamedInputs | TensorLike
"""Arrays by input name; for a model with one input, just the array. Anything that numpy makes an array of will do, and
arrays of other libraries that speak DLPack, such as torch's."""

_PRIORITIES: dict[str, inference_pb2.Priority.ValueType] = {
    "high": inference_pb2.PRIORITY_HIGH,
    "normal": inference_pb2.PRIORITY_UNSPECIFIED,  # means the same, and costs no byte
    "low": inference_pb2.PRIORITY_LOW,
}


LONGEST_DEADLINE: Final = 1e9
"""Seconds. More than these thirty years is cut to them: gRPC takes some larger numbers for times that are over."""


def check_deadline(deadline: float) -> float:
    """The time span that a call has. What is no time span is refused: every call has a deadline.

    Raises:
        ValueError: It is not a positive, finite number of seconds.
    """
    if not 0 < deadline < math.inf:
        raise ValueError(f"a deadline is a positive number of seconds, not {deadline}")
    return min(deadline, LONGEST_DEADLINE)


def new_key() -> str:
    """An idempotency key that nobody else has: 128 random bits."""
    return secrets.token_hex(16)


class RequestBuilder:
    """Builds requests that differ in their inputs only: one, or all those of a stream.

    Args:
        model: The model's name.
        version: A number or a label; empty: the model's default.
        outputs: The outputs wanted; None: all.
        priority: The weight among requests of the same tenant.
        parameters: Values for the engine.
        request_id: The caller's own id.
        timings: Whether to ask for timings.

    Raises:
        ValueError: The priority is unknown.
        TypeError: A parameter has a type that can't be sent.
    """

    __slots__ = ("_common", "model", "version")

    def __init__(
        self,
        model: str,
        *,
        version: str | int = "",
        outputs: Iterable[str] | None = None,
        priority: Priority = "normal",
        parameters: Mapping[str, ParameterValue] | None = None,
        request_id: str = "",
        timings: bool = False,
    ) -> None:
        if priority not in _PRIORITIES:
            raise ValueError(f"priority {priority!r} is none of {', '.join(_PRIORITIES)}")
        self.model = model
        self.version = str(version)
        self._common: dict[str, Any] = {"model": model}
        if self.version:
            self._common["version"] = self.version
        if outputs is not None:
            self._common["outputs"] = list(outputs)
        if priority != "normal":
            self._common["priority"] = _PRIORITIES[priority]
        if parameters:
            self._common["parameters"] = {name: _parameter(name, value) for name, value in parameters.items()}
        if request_id:
            self._common["request_id"] = request_id
        if timings:
            self._common["report_timings"] = True

    def build(self, inputs: NamedInputs) -> inference_pb2.PredictRequest:
        """The request for these inputs.

        Raises:
            TypeError: An input can't be sent.
        """
        return inference_pb2.PredictRequest(
            inputs=[encode(name, value) for name, value in inputs.items()], **self._common
        )


def size_of(request: inference_pb2.PredictRequest) -> int:
    """Bytes of the inputs of a request that a `RequestBuilder` has made."""
    return sum(map(tensor_size, request.inputs))


def _parameter(name: str, value: ParameterValue) -> inference_pb2.Parameter:
    match value:
        case bool():
            return inference_pb2.Parameter(bool_value=value)
        case int():
            return inference_pb2.Parameter(int_value=value)
        case float():
            return inference_pb2.Parameter(double_value=value)
        case str():
            return inference_pb2.Parameter(string_value=value)
    raise TypeError(f"parameter {name!r} must be a bool, int, float or str, not {type(value).__name__}")


def read_prediction(response: inference_pb2.PredictResponse, *, index: int | None = None) -> Prediction:
    """The prediction in a response.

    Raises:
        BadResponse: It is not as the contract says.
    """
    try:
        outputs: dict[str, Array] = {tensor.name: decode(tensor) for tensor in response.outputs}
    except ValueError as exc:
        raise BadResponse(f"the response can't be read: {exc}", index=index) from exc
    return Prediction(
        outputs,
        model=response.model,
        version=response.version,
        request_id=response.request_id,
        timings=_read_timings(response.timings) if response.HasField("timings") else None,
        index=index,
    )


def _read_timings(message: inference_pb2.Timings) -> Timings:
    return Timings(
        queue=message.queue_nanos / 1e9,
        collate=message.collate_nanos / 1e9,
        compute=message.compute_nanos / 1e9,
        encode=message.encode_nanos / 1e9,
        batch_rows=message.batch_rows,
        batch_requests=message.batch_requests,
        padded_rows=message.padded_rows,
        dispatch_reason=dispatch_reason(message.dispatch_reason),
    )


def only_input(model: Model, version: str) -> str:
    """The name of a model's only input, for callers that give an array without a name.

    Raises:
        ValueError: The model has several inputs.
        NotFound: It has no such version.
    """
    found = model.find(version)
    if found is None:
        raise NotFound(f"model {model.name!r} has no version {version!r} that is ready")
    if len(found.inputs) != 1:
        names = ", ".join(spec.name for spec in found.inputs)
        raise ValueError(f"model {model.name!r} has the inputs {names}: give them by name")
    return found.inputs[0].name
