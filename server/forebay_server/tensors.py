"""Tensors as the server knows them: types, specifications, and how bytes become arrays.

A leaf beside the contract: `DataType` has the contract's numbers, so that a message's value is used as it is.
Elements are row-major and little-endian everywhere; a BYTES tensor is, as an array, one of dtype object that holds
`bytes`.
"""

import enum
import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

FREE = -1
"""A dimension of a specification that accepts any length."""

Bucket = tuple[tuple[int, ...], ...]
"""The shape of one row of each input, such as `((64,),)`; of a model that is not batched, the whole shapes."""

MAX_RANK = 8
MAX_DIMENSION = 2**31 - 1


class DataType(enum.IntEnum):
    """The type of a tensor's elements, numbered as in the contract."""

    BOOL = 1
    UINT8 = 2
    UINT16 = 3
    UINT32 = 4
    UINT64 = 5
    INT8 = 6
    INT16 = 7
    INT32 = 8
    INT64 = 9
    FP16 = 10
    BF16 = 11
    FP32 = 12
    FP64 = 13
    BYTES = 14


NUMPY_DTYPES: dict[DataType, np.dtype[np.generic]] = {
    DataType.BOOL: np.dtype(np.bool_),
    DataType.UINT8: np.dtype("<u1"),
    DataType.UINT16: np.dtype("<u2"),
    DataType.UINT32: np.dtype("<u4"),
    DataType.UINT64: np.dtype("<u8"),
    DataType.INT8: np.dtype("<i1"),
    DataType.INT16: np.dtype("<i2"),
    DataType.INT32: np.dtype("<i4"),
    DataType.INT64: np.dtype("<i8"),
    DataType.FP16: np.dtype("<f2"),
    DataType.BF16: np.dtype(ml_dtypes.bfloat16),
    DataType.FP32: np.dtype("<f4"),
    DataType.FP64: np.dtype("<f8"),
    DataType.BYTES: np.dtype(np.object_),
}

FLOATS = frozenset({DataType.FP16, DataType.BF16, DataType.FP32, DataType.FP64})

ITEM_SIZES: dict[int, int] = {
    int(data_type): dtype.itemsize for data_type, dtype in NUMPY_DTYPES.items() if data_type is not DataType.BYTES
}
"""Bytes in an element, by the contract's number. BYTES is absent: its elements have lengths of their own."""

_DATA_TYPES = {dtype: data_type for data_type, dtype in NUMPY_DTYPES.items()}


def data_type_of(dtype: np.dtype[np.generic]) -> DataType:
    """The contract's type of a numpy dtype; strings count as BYTES.

    Raises:
        KeyError: The contract has no such type (complex numbers, dates, structures).
    """
    if dtype.kind in "SUT":
        return DataType.BYTES
    return _DATA_TYPES[dtype.newbyteorder("<")]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """What a model expects of an input or promises of an output."""

    name: str
    data_type: DataType
    shape: tuple[int, ...]
    """Outermost first, the batch dimension included; FREE where any length is accepted."""
    measures: bool = False
    """Whether integers are measurements (pixels), so that any will do, and not names of something (token ids)."""

    def row_bytes(self) -> int | None:
        """Bytes in one row (all but dimension 0), or None if that is not fixed by the specification."""
        item = ITEM_SIZES.get(self.data_type)
        if item is None or FREE in self.shape[1:]:
            return None
        return item * math.prod(self.shape[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model's inputs and outputs, in the order in which its engine takes and gives them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    """Whether dimension 0 of every input and output is the batch."""


def decode_bytes_elements(data: bytes | memoryview, count: int) -> list[bytes]:
    """The elements of a BYTES tensor.

    Args:
        data: Elements, each a little-endian u32 length and that many bytes.
        count: How many there must be.

    Raises:
        ValueError: They do not tile `data` exactly.
    """
    view = bytes(data)
    elements: list[bytes] = []
    position, end = 0, len(view)
    while position < end:
        if len(elements) == count:
            raise ValueError(f"more than the {count} elements that the shape has")
        start = position + 4
        stop = start + int.from_bytes(view[position:start], "little")
        if start > end or stop > end:
            raise ValueError(f"element {len(elements)} runs over the end of the data")
        elements.append(view[start:stop])
        position = stop
    if len(elements) != count:
        raise ValueError(f"{len(elements)} elements, but the shape has {count}")
    return elements


def encode_bytes_elements(elements: list[bytes]) -> bytes:
    """The opposite of `decode_bytes_elements`."""
    pieces: list[bytes] = []
    for element in elements:
        pieces.append(len(element).to_bytes(4, "little"))
        pieces.append(element)
    return b"".join(pieces)
