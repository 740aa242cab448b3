"""Messages of many items that are alike, as most streams send them: compared and cut as a table with a row for each.

Items of a message are *alike* if their bytes differ in their ids and in some data only, all of one length. A `Layout`
says where these are and what all other bytes are. It is made of one item and holds for all messages of such items; to
cut these costs a third of cutting them item by item (`bench/micro_codec.py`). What the data means is not known here;
the templates know it: see `services.uptake`.
"""

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from forebay_server.services.framing import ITEM_ID, ITEM_REQUEST, ITEM_TIMEOUT, ITEMS, read_varint, timeout_of


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
    """The first item of a `StreamPredictRequest`; None if `framing.split_items` would not know it."""
    try:
        if body[0] != ITEMS:
            return None
        length, position = read_varint(body, 1)
        stop = position + length
        if stop > len(body) or body[position] != ITEM_ID:
            return None
        _, id_end = read_varint(body, position + 1)
        if body[id_end] != ITEM_REQUEST:
            return None
        length, start = read_varint(body, id_end + 1)
        end = start + length
        timeout = None
        if end != stop:
            if body[end] != ITEM_TIMEOUT or end + 2 + body[end + 1] != stop:
                return None
            timeout = timeout_of(body[end + 2 : stop])
    except (IndexError, DecodeError):
        return None
    return FirstItem(position + 1, id_end, start, end, stop, timeout)


class Layout:
    """What items that are alike have in common.

    Args:
        body: A `StreamPredictRequest`.
        first: Its first item.
        data_start: The bytes of this that may be others in other items.
        data_end: Where they end.
    """

    __slots__ = ("_cut", "_fixed", "_id_places", "_stride", "timeout")

    def __init__(self, body: bytes, first: FirstItem, data_start: int, data_end: int) -> None:
        self.timeout = first.timeout
        self._stride = first.stop
        fixed = (0, first.id_start), (first.id_end, data_start), (data_end, first.stop)
        self._fixed = tuple((start, end, body[start:end]) for start, end in fixed if start != end)
        self._id_places = range(first.id_end - 1, first.id_start - 1, -1)
        self._cut = Struct(f"{data_start}x{data_end - data_start}s{first.stop - data_end}x")

    def ids(self, body: bytes) -> list[int] | None:
        """The ids of the items of a message; None if they are not all alike."""
        stride = self._stride
        count, rest = divmod(len(body), stride)
        if rest or not count:
            return None
        table = np.frombuffer(body, np.uint8).reshape(count, stride)
        for start, end, fixed in self._fixed:
            if table[:, start:end].tobytes() != fixed * count:
                return None
        # The digits of all ids, the last one first: it is below 128, the others are not.
        last, *others = self._id_places
        digits = body[last::stride]
        if not digits.isascii():
            return None
        ids = list(digits)
        for place in others:
            digits = body[place::stride]
            if min(digits) < 0x80:
                return None
            ids = [number << 7 | digit & 0x7F for number, digit in zip(ids, digits, strict=True)]
        return ids

    def data(self, body: bytes) -> Iterator[tuple[bytes]]:
        """The data of each item of a message for which `ids` finds some."""
        return self._cut.iter_unpack(body)
