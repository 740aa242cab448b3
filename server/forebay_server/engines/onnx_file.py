"""Looks into an ONNX file without loading it: whether it is one, and which other files it wants to read.

A walk over the few protobuf fields that can hold tensors, over a memory map: weights are skipped, not read. It exists
so that a model can't make ONNX Runtime open files that the operator has not allowed, and to tell an input without a
shape from a scalar, which ONNX Runtime does not. Whether the graph makes sense is ONNX Runtime's to say. Called by the
onnxruntime engine only.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from forebay_server.engines.base import ModelLoadError

# Message kinds, and per kind the fields that are followed: field number -> kind of the submessage.
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _SPARSE, _FUNCTION, _TENSOR = range(7)
_TRAINING = 7
_FIELDS: Final[dict[int, dict[int, int]]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
}
_TENSOR_EXTERNAL_DATA: Final = 13  # repeated StringStringEntryProto(key = 1, value = 2)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH: Final = 100


def external_files(path: Path) -> set[str]:
    """The locations of external data that the file names, as they stand there.

    Raises:
        ModelLoadError: It is not a protobuf message of ONNX's outline.
        OSError: It can't be read.
    """
    with _mapped(path) as data:
        return set(_locations(data, 0, len(data), _MODEL, 0))


def check_external(path: Path, *, allowed: bool) -> None:
    """Refuses external data, or (if allowed) such that does not lie in the model's own folder.

    Raises:
        ModelLoadError: As above, or as for `external_files`.
    """
    folder = path.parent.resolve()
    for location in sorted(external_files(path)):
        if not allowed:
            raise ModelLoadError(
                f"{path}: wants to read the file {location!r}; set the engine option external_data = true to allow it"
            )
        target = (folder / location).resolve()
        if not target.is_relative_to(folder):
            raise ModelLoadError(f"{path}: wants to read the file {location!r} outside its own folder")
        if not target.is_file():
            raise ModelLoadError(f"{path}: its data file {location!r} is missing")


def shapeless_inputs(path: Path) -> list[str]:
    """The names of inputs that are tensors of unknown rank.

    Raises:
        ModelLoadError: As for `external_files`.
        OSError: As for `external_files`.
    """
    with _mapped(path) as data:
        whole = (0, len(data))
        names = []
        for graph in _submessages(data, whole, 7):
            for value in _submessages(data, graph, 11):
                name = b"".join(data[first:last] for first, last in _submessages(data, value, 1))
                for kind in _submessages(data, value, 2):
                    tensors = _submessages(data, kind, 1)
                    if tensors and not any(_submessages(data, tensor, 2) for tensor in tensors):
                        names.append(name.decode(errors="replace"))
        return names


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """The file's bytes; what the walk over them complains about becomes a sentence."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            yield data
        except ValueError as error:  # UnicodeDecodeError is one too
            raise ModelLoadError(f"{path}: not a whole ONNX file: {error}") from error


def _submessages(data: mmap.mmap, span: tuple[int, int], wanted: int) -> list[tuple[int, int]]:
    fields = _fields(data, *span)
    return [(first, last) for number, wire, first, last in fields if number == wanted and wire == _BYTES]


def _locations(data: mmap.mmap, start: int, end: int, kind: int, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise ValueError("its graphs are nested too deeply")
    followed = _FIELDS.get(kind, {})
    for number, wire, first, last in _fields(data, start, end):
        if wire != _BYTES:
            continue
        if kind == _TENSOR:
            if number == _TENSOR_EXTERNAL_DATA:
                yield from _location(data, first, last)
        elif number in followed:
            yield from _locations(data, first, last, followed[number], depth + 1)


def _location(data: mmap.mmap, start: int, end: int) -> Iterator[str]:
    entry = {number: data[first:last] for number, _, first, last in _fields(data, start, end)}
    if entry.get(1) == b"location":
        yield entry.get(2, b"").decode()


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, start and end of the value) of each field of a message."""
    position = start
    while position < end:
        tag, position = _varint(data, position, end)
        wire = tag & 7
        first = position
        if wire == _VARINT:
            _, position = _varint(data, position, end)
        elif wire == _FIXED64:
            position += 8
        elif wire == _FIXED32:
            position += 4
        elif wire == _BYTES:
            length, first = _varint(data, position, end)
            position = first + length
        else:
            raise ValueError(f"a field of the unknown wire type {wire} at byte {start}")
        if position > end:
            raise ValueError(f"a field runs over the end at byte {end}")
        yield tag >> 3, wire, first, position


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError(f"a number is cut off at byte {position}")
