"""Unsigned integers and fields as protobuf writes them, for those who put messages together as bytes."""

from typing import Final


def varint(number: int) -> bytes:
    """An unsigned integer as protobuf writes it."""
    if number < SMALL:
        return VARINTS[number]
    if 0x3FFF < number < 0x200000:  # lengths of large tensors
        return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14))
    return _varint(number)


def tag(field: int, kind: int) -> bytes:
    """What begins a field: its number and how it is written (0: an integer, 1: eight bytes, 2: a `piece`, 5: four)."""
    return varint(field << 3 | kind)


def piece(field: int, body: bytes) -> bytes:
    """A field that is a text, bytes or a message."""
    return varint(field << 3 | 2) + varint(len(body)) + body


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


SMALL: Final = 4096
VARINTS: Final = [_varint(number) for number in range(SMALL)]
"""The small ones, for those who save the call."""
