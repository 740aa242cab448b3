"""What goes back: responses as bytes, and the parameters of a request as plain values.

Nearly everything in a response is the same for all requests with the same outputs and shapes. A serialized protobuf
message may be put together from serialized parts of it, so the constant parts are made once, by protobuf itself, and a
response is these and the engine's bytes, joined: 0.2 microseconds, where mutating and serializing one message takes 0.5
and building one 1.3 (`bench/micro_codec.py`, for one small output). The tests parse every kind of
response back with the generated messages. What is around the responses of a stream is written by `services.framing`.

It does not look at requests' tensors (`services.validation` does) and keeps no request.
"""

import sys
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
from google.protobuf.message import Message

from forebay.v1 import inference_pb2, tensor_pb2
from forebay_server.engines.base import ParameterValue
from forebay_server.errors import InvalidRequest
from forebay_server.scheduling.request import Batch
from forebay_server.services.elements import MAX_READABLE, product
from forebay_server.tensors import FREE, ITEM_SIZES, NUMPY_DTYPES, DataType, ModelSpec, decode_bytes_elements

LENGTH_SIZE: Final = 4
"""Bytes of the length before each element of a BYTES tensor."""
MAX_HEADS: Final = 1024
"""Distinct shapes of one output whose constant part is remembered."""


class Outputs(Protocol):
    """What an engine gave for a batch; `engines.collate.BatchOutputs`."""

    def data(
        self, index: int, start: int, rows: int, shapes: Sequence[tuple[int, ...]] | None = None
    ) -> tuple[bytes, tuple[int, ...]]:
        """The little-endian bytes and the shape of some rows of one output."""

    def small(self, index: int) -> tuple[bytes, int, tuple[int, ...]] | None:
        """An output as bytes, the bytes in a row, and the shape of a batch of one row; None if `data` must be asked."""


def parameters_of(message: inference_pb2.PredictRequest) -> dict[str, ParameterValue] | None:
    """The parameters of a validated request; None if there are none."""
    if not message.parameters:
        return None
    values: dict[str, ParameterValue] = {}
    for name, parameter in message.parameters.items():
        values[name] = getattr(parameter, str(parameter.WhichOneof("value")))
    return values


def request_id_part(request_id: str) -> bytes:
    """The part of a response that echoes the caller's id."""
    return _serialized(inference_pb2.PredictResponse(request_id=request_id)) if request_id else b""


def echoed_id_part(body: bytes, start: int) -> bytes:
    """The same, from a serialized request whose last field, at `start`, is its request id."""
    return _ECHO + body[start + 1 :]


def timings_part(batch: Batch, *, arrival: float, now: float) -> bytes:
    """The part of a response that says where the time went.

    Args:
        batch: The batch that ran last for the request.
        arrival: When its message was taken, monotonic seconds.
        now: When the response is made, monotonic seconds.
    """
    return _serialized(
        inference_pb2.PredictResponse(
            timings=inference_pb2.Timings(
                queue_nanos=_nanos(batch.dispatched - arrival),
                collate_nanos=_nanos(batch.collated - batch.dispatched),
                compute_nanos=_nanos(batch.finished - batch.collated),
                encode_nanos=_nanos(now - batch.finished),
                batch_rows=batch.rows,
                batch_requests=len({id(part.request) for part in batch.parts}),
                padded_rows=max(0, batch.padded_rows - batch.rows),
                dispatch_reason=int(batch.reason),  # type: ignore[arg-type]  # the contract's number
            )
        )
    )


_ECHO: Final = inference_pb2.PredictResponse(request_id="x").SerializeToString()[:1]


class _Output:
    """One output of a response, and the constant parts in front of its data, by shape."""

    __slots__ = ("data_type", "heads", "index", "name", "shape")

    def __init__(self, index: int, name: str, data_type: DataType, shape: tuple[int, ...]) -> None:
        self.index = index
        self.name = name
        self.data_type = data_type
        self.shape = shape
        self.heads: dict[tuple[int, ...], bytes] = {}

    def whole(self, data: bytes, shape: tuple[int, ...]) -> bytes:
        """The output as a part of a response, data included."""
        tensor = tensor_pb2.Tensor(name=self.name, data_type=int(self.data_type), shape=shape, data=data)  # type: ignore[arg-type]  # the contract's number
        return _serialized(inference_pb2.PredictResponse(outputs=[tensor]))

    def head(self, data: bytes, shape: tuple[int, ...]) -> bytes:
        """What comes before the data; in a serialized message that has nothing after them."""
        whole = self.whole(data, shape)
        head = whole[: len(whole) - len(data)]
        if self.data_type != DataType.BYTES:  # of these the length isn't known by the shape
            if len(self.heads) >= MAX_HEADS:
                self.heads.clear()
            self.heads[shape] = head
        return head


class Encoder:
    """Writes the responses of one version of a model, with one choice of outputs. Used by the dispatcher only."""

    __slots__ = ("_base", "_batched", "_only", "_outputs", "_readable", "most_rows")

    def __init__(
        self,
        name: str,
        version: int,
        spec: ModelSpec,
        wanted: Sequence[int] | None = None,
        *,
        readable: bool = False,
        max_bytes: int = sys.maxsize,
    ) -> None:
        self._base = _serialized(inference_pb2.PredictResponse(model=name, version=version))
        self._batched = spec.batched
        self._readable = readable
        self._outputs = tuple(
            _Output(index, spec.outputs[index].name, spec.outputs[index].data_type, spec.outputs[index].shape)
            for index in (range(len(spec.outputs)) if wanted is None else wanted)
        )
        self._only = self._outputs[0] if len(self._outputs) == 1 and not readable else None
        """The one output of most models, which takes a shorter way."""
        self.most_rows = max_bytes // max(1, sum(map(self._least_bytes, self._outputs)))
        """With more rows the response is larger than `max_bytes`, whatever comes out."""

    def _least_bytes(self, output: _Output) -> int:
        """What one row of an output takes at least; of a model that is not batched, the output as a whole."""
        if self._readable:  # it is counted in elements
            return 0
        row = output.shape[1:] if self._batched else output.shape
        return 0 if FREE in row else product(row) * ITEM_SIZES.get(output.data_type, LENGTH_SIZE)

    def encode(
        self,
        outputs: Outputs,
        start: int,
        rows: int,
        shapes: Sequence[tuple[int, ...]] | None = None,
        tail: bytes = b"",
    ) -> bytes:
        """A serialized `PredictResponse`.

        Args:
            outputs: What the engine gave.
            start: The request's first row in it.
            rows: The request's rows.
            shapes: The request's shapes as sent, if they were padded.
            tail: Further parts of the response (`request_id_part`, `timings_part`).

        Raises:
            InvalidRequest: The outputs were wanted in readable form, and one is too large for it.
        """
        only = self._only
        if only is not None:
            data, shape = outputs.data(only.index, start, rows, shapes)
            head = only.heads.get(shape)
            if head is not None:
                return self._base + head + data + tail
        parts = [self._base]
        for output in self._outputs:
            data, shape = outputs.data(output.index, start, rows, shapes)
            if self._readable:
                parts.append(_readable(output, data, shape))
            else:
                head = output.heads.get(shape)
                parts.append(output.head(data, shape) if head is None else head)
                parts.append(data)
        parts.append(tail)
        return b"".join(parts)

    def rows(self, outputs: Outputs) -> tuple[bytes, bytes, int] | None:
        """What the responses to requests of one row, without padding or tail, are made of; None if `encode` must do it.

        Returns:
            What comes before the data; the data of all rows; the bytes in a row.
        """
        only = self._only
        small = None if only is None else outputs.small(only.index)
        if only is None or small is None:
            return None
        whole, size, shape = small
        head = only.heads.get(shape)
        return None if head is None else (self._base + head, whole, size)

    def empty(self, tail: bytes = b"") -> bytes:
        """The response to a request of no rows: every output without elements, its free dimensions 0."""
        parts = [self._base]
        for output in self._outputs:
            row = tuple(0 if length == FREE else length for length in output.shape[1:])
            parts.append(output.whole(b"", (0, *row)))
        parts.append(tail)
        return b"".join(parts)


def _readable(output: _Output, data: bytes, shape: tuple[int, ...]) -> bytes:
    """An output as numbers or texts. Integers beyond 2^53 become the nearest double, bytes that are no UTF-8 a sign."""
    tensor = tensor_pb2.Tensor(name=output.name, data_type=int(output.data_type), shape=shape)  # type: ignore[arg-type]  # the contract's number
    count = 1
    for length in shape:
        count *= length
    if count > MAX_READABLE:
        sentence = f"the output {output.name!r} has {count} elements, more than {MAX_READABLE}"
        raise InvalidRequest([("readable", sentence)])
    if output.data_type == DataType.BYTES:
        tensor.strings.extend(element.decode("utf-8", "replace") for element in decode_bytes_elements(data, count))
    else:
        numbers = np.frombuffer(data, NUMPY_DTYPES[output.data_type]).astype(np.float64)
        tensor.numbers.extend(numbers.tolist())
    return _serialized(inference_pb2.PredictResponse(outputs=[tensor]))


def _serialized(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def _nanos(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
