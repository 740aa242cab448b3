"""Stream messages as bytes: items are cut out of them, and results are put together, without parsing or building any.

The ids and lengths around items and results differ from one to the next, so they are handled here; everything else is
passed on as it is. The tests read and write the same with protobuf. `services.alike` has a shorter way for messages of
many items that are alike.
"""

from functools import lru_cache
from typing import Final

from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError, Message

from forebay.v1 import inference_pb2
from forebay_server.varint import SMALL, VARINTS, varint

AROUND: Final = 64
"""Bytes that are enough for what is around a response in a message."""
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

(ITEMS,) = _tag(inference_pb2.StreamPredictRequest, "items")
(ITEM_ID,) = _tag(inference_pb2.StreamItem, "id")
(ITEM_REQUEST,) = _tag(inference_pb2.StreamItem, "request")
(ITEM_TIMEOUT,) = _tag(inference_pb2.StreamItem, "timeout")
(_ITEM_CONTEXT,) = _tag(inference_pb2.StreamItem, "traceparent")

MAX_SECONDS: Final = 315_576_000_000
"""About 10,000 years: no `Duration` may be longer."""
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


def row_parts(ids: list[int], rows: list[int], before: bytes, whole: bytes, size: int) -> list[bytes]:
    """`result_part` for many items, by what `Encoder.rows` gives; one after the other, they are these parts joined.

    Args:
        ids: Of the items.
        rows: Theirs.
        before: What comes before the data of a row.
        whole: The data of all rows.
        size: The bytes in a row.

    Returns:
        Four parts for each item.
    """
    frames = _row_frames(before, size)
    idents = [VARINTS[item] if item < SMALL else varint(item) for item in ids]
    lengths = set(map(len, idents))
    if len(lengths) == 1:
        start, after = frames[lengths.pop()]
        parts = [start, b"", after, b""] * len(ids)
    else:
        parts = [
            part for ident in idents for start, after in (frames[len(ident)],) for part in (start, b"", after, b"")
        ]
    parts[1::4] = idents
    parts[3::4] = [whole[row * size : (row + 1) * size] for row in rows]
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


def split_items(  # noqa: C901, PLR0911, PLR0912  # short integers are read without a call
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
            if body[position] != ITEMS:
                return None
            length = body[position + 1]  # one byte, or two: what most lengths take, without a call
            position += 2
            if length > 0x7F:
                if body[position] > 0x7F:
                    length, position = read_varint(body, position - 1)
                else:
                    length = length & 0x7F | body[position] << 7
                    position += 1
            stop = position + length
            if stop > end or body[position] != ITEM_ID:
                return None
            ident = body[position + 1]
            position += 2
            if ident > 0x7F:
                ident, position = read_varint(body, position - 1)
            if body[position] != ITEM_REQUEST:
                return None
            length = body[position + 1]
            position += 2
            if length > 0x7F:
                length, position = read_varint(body, position - 1)
            request_end = position + length
            timeout, context = None, ""
            if request_end != stop:
                # Both are short: a timeout is a message of at most 17 bytes, a context has 55 characters.
                rest = request_end
                if body[rest] == ITEM_TIMEOUT:
                    rest += 2 + body[rest + 1]
                    timeout = timeout_of(body[request_end + 2 : rest])
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


def timeout_of(serialized: bytes) -> float:
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
    return (length, position + 1) if length <= 0x7F else read_varint(body, position)


def read_varint(body: bytes, position: int) -> tuple[int, int]:
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
