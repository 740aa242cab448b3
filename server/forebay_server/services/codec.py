"""What goes back: responses and stream results as bytes, and the parameters of a request as plain values.

Nearly everything in a response is the same for all requests with the same outputs and shapes. A serialized protobuf
message may be put together from serialized parts of it, so the constant parts are made once, by protobuf itself, and a
response is these and the engine's bytes, joined: 0.2 microseconds, where mutating and serializing one message takes 0.5
and building one 1.3 (`bench/micro_codec.py`, for one small output). The tests parse every kind of
response back with the generated messages.

It does not look at requests' tensors (`services.validation` does) and keeps no request.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

import numpy as np
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError, Message

from forebay.v1 import inference_pb2, tensor_pb2
from forebay_server.engines.base import ParameterValue
from forebay_server.errors import InvalidRequest
from forebay_server.scheduling.request import Batch
from forebay_server.services.elements import MAX_READABLE
from forebay_server.tensors import FREE, NUMPY_DTYPES, DataType, ModelSpec, decode_bytes_elements

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

    __slots__ = ("_base", "_batched", "_only", "_outputs", "_readable")

    def __init__(
        self, name: str, version: int, spec: ModelSpec, wanted: Sequence[int] | None = None, *, readable: bool = False
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


# --- Streams: the ids and lengths around items and results differ from one to the next, so they are handled here. -----


def varint(number: int) -> bytes:
    """An unsigned integer as protobuf writes it."""
    if number < _SMALL:
        return _VARINTS[number]
    if 0x3FFF < number < 0x200000:
        return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14))
    return _varint(number)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_SMALL: Final = 4096
_VARINTS: Final = [_varint(number) for number in range(_SMALL)]


def _tag(message: type[Message], field: str) -> bytes:
    """The tag of a field: its number and how it is written (2: length and bytes, 0: an integer)."""
    descriptor = message.DESCRIPTOR.fields_by_name[field]
    length_delimited = descriptor.type in (descriptor.TYPE_MESSAGE, descriptor.TYPE_BYTES, descriptor.TYPE_STRING)
    return _varint(descriptor.number << 3 | (2 if length_delimited else 0))


_RESULTS = _tag(inference_pb2.StreamPredictResponse, "results")
_ID = _tag(inference_pb2.StreamResult, "id")
_RESPONSE = _tag(inference_pb2.StreamResult, "response")
_ERROR = _tag(inference_pb2.StreamResult, "error")

_ID_MOST: Final = 10
"""Bytes of an id."""
_SMALL_RESPONSE: Final = 1024
"""Bytes; what is around a smaller response is remembered, by its length and that of the id."""
_FRAMES: dict[int, tuple[bytes, bytes]] = {}

(_ITEMS,) = _tag(inference_pb2.StreamPredictRequest, "items")
(_ITEM_ID,) = _tag(inference_pb2.StreamItem, "id")
(_ITEM_REQUEST,) = _tag(inference_pb2.StreamItem, "request")
(_ITEM_TIMEOUT,) = _tag(inference_pb2.StreamItem, "timeout")

MAX_TIMEOUTS: Final = 4096
"""Distinct timeouts of items that are remembered."""
_TIMEOUTS: dict[bytes, float] = {}


def result_part(item: int, response: bytes) -> bytes:
    """The part of a `StreamPredictResponse` that says that an item succeeded.

    Args:
        item: Its id.
        response: A serialized `PredictResponse`.
    """
    ident = _VARINTS[item] if item < _SMALL else varint(item)
    size = len(response)
    if size >= _SMALL_RESPONSE:
        before, after = _frame(len(ident), size)
        return before + ident + after + response
    place = size * 16 + len(ident)
    frame = _FRAMES.get(place)
    if frame is None:
        frame = _FRAMES[place] = _frame(len(ident), size)
    return frame[0] + ident + frame[1] + response


def _frame(id_length: int, size: int) -> tuple[bytes, bytes]:
    """What comes before the id of a result, and between that and the response, by the lengths of both."""
    after = _RESPONSE + _varint(size)
    return _RESULTS + _varint(len(_ID) + id_length + len(after) + size) + _ID, after


class Identified(Protocol):
    """Something with the id of an item."""

    ident: int


def row_parts(items: Iterable[tuple[Identified, int]], before: bytes, whole: bytes, size: int) -> list[bytes]:
    """`result_part` for many items, by what `Encoder.rows` gives.

    Args:
        items: Each item, and its row.
        before: What comes before the data of a row.
        whole: The data of all rows.
        size: The bytes in a row.
    """
    frames = _row_frames(before, size)
    parts: list[bytes] = []
    for item, row in items:
        number = item.ident
        ident = _VARINTS[number] if number < _SMALL else varint(number)
        start, after = frames[len(ident)]
        parts.append(start + ident + after + whole[row * size : (row + 1) * size])
    return parts


@lru_cache(MAX_HEADS)
def _row_frames(before: bytes, size: int) -> list[tuple[bytes, bytes]]:
    """By the length of an id, what comes before it, and between it and the data of a row."""
    frames = [_frame(id_length, len(before) + size) for id_length in range(_ID_MOST + 1)]
    return [(start, after + before) for start, after in frames]


def error_part(item: int, status: bytes) -> bytes:
    """The part of a `StreamPredictResponse` that says that an item failed.

    Args:
        item: Its id.
        status: A serialized `google.rpc.Status`.
    """
    inner = _ID + varint(item) + _ERROR + varint(len(status))
    return _RESULTS + varint(len(inner) + len(status)) + inner + status


def split_items(  # noqa: C901, PLR0911, PLR0912 - short integers are read without a call
    body: bytes, most: int
) -> list[tuple[int, bytes, float | None]] | None:
    """The ids, serialized requests and timeouts in seconds of a `StreamPredictRequest` that holds only such items.

    None if it holds anything else or more than so many; then it has to be parsed. The requests are not looked at: they
    may be anything.
    """
    items: list[tuple[int, bytes, float | None]] = []
    position, end = 0, len(body)
    try:
        while position < end:
            if body[position] != _ITEMS:
                return None
            length = body[position + 1]  # one byte, or two: what most lengths take, without a call
            position += 2
            if length > 0x7F:
                if body[position] > 0x7F:
                    length, position = _read_varint(body, position - 1)
                else:
                    length = length & 0x7F | body[position] << 7
                    position += 1
            stop = position + length
            if stop > end or body[position] != _ITEM_ID:
                return None
            ident = body[position + 1]
            position += 2
            if ident > 0x7F:
                ident, position = _read_varint(body, position - 1)
            if body[position] != _ITEM_REQUEST:
                return None
            length = body[position + 1]
            position += 2
            if length > 0x7F:
                length, position = _read_varint(body, position - 1)
            request_end = position + length
            timeout = None
            if request_end != stop:
                # A timeout is a message of at most 17 bytes, and the last of the item.
                if body[request_end] != _ITEM_TIMEOUT or request_end + 2 + body[request_end + 1] != stop:
                    return None
                timeout = _timeout(body[request_end + 2 : stop])
            if len(items) == most:
                return None
            items.append((ident, body[position:request_end], timeout))
            position = stop
    except (IndexError, DecodeError):
        return None
    return items


class FirstItem(NamedTuple):
    """The first item of a `StreamPredictRequest`, by its places in the message."""

    id_start: int
    id_end: int
    start: int
    """Where its request begins."""
    end: int
    stop: int
    """Where the item ends."""
    timeout: float | None


def first_item(body: bytes) -> FirstItem | None:
    """The first item of a `StreamPredictRequest`; None if `split_items` would not know it."""
    try:
        if body[0] != _ITEMS:
            return None
        length, position = _read_varint(body, 1)
        stop = position + length
        if stop > len(body) or body[position] != _ITEM_ID:
            return None
        _, id_end = _read_varint(body, position + 1)
        if body[id_end] != _ITEM_REQUEST:
            return None
        length, start = _read_varint(body, id_end + 1)
        end = start + length
        timeout = None
        if end != stop:
            if body[end] != _ITEM_TIMEOUT or end + 2 + body[end + 1] != stop:
                return None
            timeout = _timeout(body[end + 2 : stop])
    except (IndexError, DecodeError):
        return None
    return FirstItem(position + 1, id_end, start, end, stop, timeout)


def ids_of_alike(body: bytes, first: FirstItem, data_start: int, data_end: int) -> list[int] | None:
    """The ids of items that differ in their ids and in some bytes only; None if they differ in more.

    Args:
        body: A `StreamPredictRequest` whose length is a multiple of its first item's.
        first: That.
        data_start: The bytes of the first item that may be others in the others.
        data_end: Where they end.
    """
    stride = first.stop
    count = len(body) // stride
    table = np.frombuffer(body, np.uint8).reshape(count, stride)
    for start, end in ((0, first.id_start), (first.id_end, data_start), (data_end, stride)):
        if table[:, start:end].tobytes() != body[start:end] * count:
            return None
    # The digits of all ids, the last one first: it is below 128, the others are not.
    digits = body[first.id_end - 1 :: stride]
    if not digits.isascii():
        return None
    ids = list(digits)
    for place in range(first.id_end - 2, first.id_start - 1, -1):
        digits = body[place::stride]
        if min(digits) < 0x80:
            return None
        ids = [number << 7 | digit & 0x7F for number, digit in zip(ids, digits, strict=True)]
    return ids


def _timeout(serialized: bytes) -> float:
    """The seconds of a serialized `Duration`; most items of all callers have one of a few."""
    seconds = _TIMEOUTS.get(serialized)
    if seconds is None:
        if len(_TIMEOUTS) >= MAX_TIMEOUTS:
            _TIMEOUTS.clear()
        seconds = _TIMEOUTS[serialized] = seconds_of(duration_pb2.Duration.FromString(serialized))
    return seconds


def seconds_of(duration: duration_pb2.Duration) -> float:
    """A duration as seconds."""
    return duration.seconds + duration.nanos * 1e-9


def length_at(body: bytes, position: int) -> tuple[int, int]:
    """A length in a serialized message, and the position after it. Raises IndexError if it is none, or cut off."""
    length = body[position]
    return (length, position + 1) if length <= 0x7F else _read_varint(body, position)


def _read_varint(body: bytes, position: int) -> tuple[int, int]:
    """An integer of at most 63 bits, and the position after it. Raises IndexError if it is longer, or cut off."""
    byte = body[position]
    number = byte & 0x7F
    shift = 7
    while byte & 0x80:
        if shift > 56:
            raise IndexError
        position += 1
        byte = body[position]
        number |= (byte & 0x7F) << shift
        shift += 7
    return number, position + 1


def _serialized(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def _nanos(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
