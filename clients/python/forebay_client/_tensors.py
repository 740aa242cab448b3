"""Tensors between numpy and the contract. Pure; called by `_core`, and by nobody else.

A tensor's bytes are copied once on the way out (numpy to `bytes`) and once on the way in (message to `bytes`); arrays
that are read are read-only views on these bytes. Text and byte strings travel as BYTES and come back as arrays of dtype
object that hold `bytes`.
"""

import math
import sys
from typing import Any, Final, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from forebay.v1 import tensor_pb2

Array = npt.NDArray[Any]


class DLPackArray(Protocol):
    """An array of another library: torch, JAX, CuPy and others."""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """Exports it."""

    def __dlpack_device__(self) -> tuple[Any, Any]:
        """Where it is."""


TensorLike = npt.ArrayLike | DLPackArray
"""What can be sent: anything that numpy makes an array of, or an array of another library."""

BYTES: Final = tensor_pb2.DATA_TYPE_BYTES

DTYPES: dict[int, np.dtype[np.generic]] = {
    tensor_pb2.DATA_TYPE_BOOL: np.dtype(np.bool_),
    tensor_pb2.DATA_TYPE_UINT8: np.dtype("<u1"),
    tensor_pb2.DATA_TYPE_UINT16: np.dtype("<u2"),
    tensor_pb2.DATA_TYPE_UINT32: np.dtype("<u4"),
    tensor_pb2.DATA_TYPE_UINT64: np.dtype("<u8"),
    tensor_pb2.DATA_TYPE_INT8: np.dtype("<i1"),
    tensor_pb2.DATA_TYPE_INT16: np.dtype("<i2"),
    tensor_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
    tensor_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    tensor_pb2.DATA_TYPE_FP16: np.dtype("<f2"),
    tensor_pb2.DATA_TYPE_BF16: np.dtype(ml_dtypes.bfloat16),
    tensor_pb2.DATA_TYPE_FP32: np.dtype("<f4"),
    tensor_pb2.DATA_TYPE_FP64: np.dtype("<f8"),
    tensor_pb2.DATA_TYPE_BYTES: np.dtype(np.object_),
}
"""The numpy dtype of each type of the contract; a test keeps it total."""

_DATA_TYPES: dict[np.dtype[np.generic], tensor_pb2.DataType.ValueType] = {
    dtype: tensor_pb2.DataType.ValueType(number) for number, dtype in DTYPES.items() if number != BYTES
}


def as_array(name: str, value: TensorLike) -> Array:
    """An array of what a caller gave: of numpy's, of another library that speaks DLPack, or what numpy makes of it.

    What is in the memory of another device is copied from there; other memory is not copied.

    Raises:
        TypeError: It is on a device that can't be copied from, or of a type that numpy does not know.
    """
    if isinstance(value, np.ndarray):
        return value
    foreign: Any = value
    if hasattr(foreign, "detach") and hasattr(foreign, "cpu"):  # torch's, which may have a gradient
        foreign = foreign.detach().cpu().contiguous()
        if str(foreign.dtype) == "torch.bfloat16":  # which numpy's DLPack does not know: as its bits
            return np.asarray(foreign.view(sys.modules["torch"].int16).numpy()).view(ml_dtypes.bfloat16)
    if hasattr(foreign, "__dlpack__") and hasattr(foreign, "__dlpack_device__"):
        return _from_dlpack(name, foreign)
    array = np.asarray(value)
    # As numpy's own strings, elements would lose the zeros at their ends.
    return np.asarray(value, np.object_) if array.dtype.kind in "SU" else array


def _from_dlpack(name: str, foreign: Any) -> Array:
    try:
        return np.from_dlpack(foreign)
    except (BufferError, RuntimeError, ValueError) as exc:
        try:
            if hasattr(foreign, "__array__"):  # of a type that numpy's DLPack does not know, such as JAX's bfloat16
                return np.asarray(foreign)
            return np.from_dlpack(foreign, device="cpu", copy=True)
        except (BufferError, RuntimeError, TypeError, ValueError):
            raise TypeError(f"input {name!r}: {type(foreign).__name__} can't be read: {exc}") from exc


def encode(name: str, value: TensorLike) -> tensor_pb2.Tensor:
    """A tensor message from an array, or from what numpy can make one of.

    Raises:
        TypeError: The contract has no such type (complex numbers, dates, structures), or an array of objects holds
            something else than `bytes` and `str`.
    """
    array = as_array(name, value)
    data_type = _DATA_TYPES.get(array.dtype)
    if data_type is None:
        if array.dtype.kind in "OSUT":
            return tensor_pb2.Tensor(name=name, data_type=BYTES, shape=array.shape, data=_pack(name, array))
        data_type = _DATA_TYPES.get(array.dtype.newbyteorder("<"))
        if data_type is None:
            raise TypeError(f"input {name!r}: tensors of {array.dtype} can't be sent")
        array = array.astype(array.dtype.newbyteorder("<"))
    return tensor_pb2.Tensor(name=name, data_type=data_type, shape=array.shape, data=array.tobytes())


def tensor_size(tensor: tensor_pb2.Tensor) -> int:
    """Bytes of the data of a tensor that `encode` has made.

    By its shape where that tells it: to look at `data` is to copy it.
    """
    if tensor.data_type == BYTES:
        return len(tensor.data)
    return math.prod(tensor.shape) * DTYPES[tensor.data_type].itemsize


def decode(tensor: tensor_pb2.Tensor) -> Array:
    """The array of a tensor message, read-only where it is a view.

    Raises:
        ValueError: The message contradicts itself.
    """
    dtype = DTYPES.get(tensor.data_type)
    if dtype is None:
        raise ValueError(f"output {tensor.name!r} has the unknown type {tensor.data_type}")
    shape = tuple(tensor.shape)
    if min(shape, default=0) < 0:
        raise ValueError(f"output {tensor.name!r} has the shape {shape}")
    if tensor.data_type == BYTES:
        elements = _unpack(tensor.name, tensor.data, math.prod(shape))
        array = np.empty(len(elements), dtype)
        array[:] = elements
    else:
        data = tensor.data
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"output {tensor.name!r} has {len(data)} bytes, which is not what {shape} takes")
        array = np.frombuffer(data, dtype)
    return array.reshape(shape)


def _pack(name: str, array: Array) -> bytes:
    """Length-prefixed elements, row-major."""
    pieces: list[bytes] = []
    for element in array.ravel().tolist():
        if isinstance(element, str):
            payload = element.encode()
        elif isinstance(element, bytes):
            payload = element
        else:
            raise TypeError(f"input {name!r}: an array of objects may hold bytes and str, not {type(element).__name__}")
        pieces.append(len(payload).to_bytes(4, "little"))
        pieces.append(payload)
    return b"".join(pieces)


def _unpack(name: str, data: bytes, count: int) -> list[bytes]:
    elements: list[bytes] = []
    position, end = 0, len(data)
    while position < end:
        start = position + 4
        position = start + int.from_bytes(data[position:start], "little")
        if position > end:
            raise ValueError(f"output {name!r}: element {len(elements)} runs over the end of the data")
        elements.append(data[start:position])
    if len(elements) != count:
        raise ValueError(f"output {name!r} has {len(elements)} elements, and its shape {count}")
    return elements
