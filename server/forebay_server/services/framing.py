"""Stream messages as bytes: items are cut out of them, and results are put together, without parsing or building any.

The ids and lengths around items and results differ from one to the next, so they are handled here; everything else is
passed on as it is. Messages of many items that are alike, as most streams send them, are compared and cut as a table
with a row for each, at a third of the cost (`bench/micro_codec.py`). The tests read and write the same with protobuf.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

import numpy as np
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError, Message

from forebay.v1 import inference_pb2
from forebay_server.varint import SMALL, VARINTS, varint

MAX_FRAMES: Final = 1024
"""Distinct beginnings of responses for which what is around them is remembered."""


def _tag(message: type[Message], field: str) -> bytes:
    """The tag of a field: its number and how it is written (2: length and bytes, 0: an integer)."""
    descriptor = message.DESCRIPTOR.fields_by_name[field]
    length_delimited = descriptor.type in (descriptor.TYPE_MESSAGE, descriptor.TYPE_BYTES, descriptor.TYPE_STRING)
    return varint(descriptor.number << 3 | (2 if length_delimited else 0))


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
(_ITEM_CONTEXT,) = _tag(inference_pb2.StreamItem, "traceparent")

MAX_TIMEOUTS: Final = 4096
"""Distinct timeouts of items that are remembered."""
_TIMEOUTS: dict[bytes, float] = {}


def result_part(item: int, response: bytes) -> bytes:
    """The part of a `StreamPredictResponse` that says that an item succeeded.

    Args:
        item: Its id.
        response: A serialized `PredictResponse`.
    """
    ident = VARINTS[item] if item < SMALL else varint(item)
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
    after = _RESPONSE + varint(size)
    return _RESULTS + varint(len(_ID) + id_length + len(after) + size) + _ID, after


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
        ident = VARINTS[number] if number < SMALL else varint(number)
        start, after = frames[len(ident)]
        parts.append(start + ident + after + whole[row * size : (row + 1) * size])
    return parts


@lru_cache(MAX_FRAMES)
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
) -> list[tuple[int, bytes, float | None, str]] | None:
    """The ids, serialized requests, timeouts in seconds and trace contexts of a `StreamPredictRequest` of only items.

    None if it holds anything else or more than so many; then it has to be parsed. The requests are not looked at: they
    may be anything.
    """
    items: list[tuple[int, bytes, float | None, str]] = []
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
            timeout, context = None, ""
            if request_end != stop:
                # Both are short: a timeout is a message of at most 17 bytes, a context has 55 characters.
                rest = request_end
                if body[rest] == _ITEM_TIMEOUT:
                    rest += 2 + body[rest + 1]
                    timeout = _timeout(body[request_end + 2 : rest])
                if rest != stop:
                    if body[rest] != _ITEM_CONTEXT or body[rest + 1] > 0x7F or rest + 2 + body[rest + 1] != stop:
                        return None
                    context = body[rest + 2 : stop].decode()
            if len(items) == most:
                return None
            items.append((ident, body[position:request_end], timeout, context))
            position = stop
    except (IndexError, DecodeError, UnicodeDecodeError):
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
