"""Made-up inputs: valid by a model's specification, for warm-up and for the isolation check.

What values a model bears is not in its specification (ids beyond a vocabulary make it fail), so there are several
kinds, to be tried in order.
"""

import math
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final

import numpy as np

from forebay_server.tensors import FLOATS, NUMPY_DTYPES, Array, Bucket, DataType, ModelSpec, TensorSpec


class Kind(Enum):
    """What the elements are."""

    RANDOM = "random"
    """Floats from a normal distribution, integers 0 and 1 (of measurements all that there are), short words."""
    ONES = "ones"
    ZEROS = "zeros"
    """Zeros, empty text: the last resort."""
    MAXIMUM = "maximum"
    """The largest finite floats and measurements; other integers 1, because larger ones may be ids that don't exist."""
    NAN = "nan"
    """Not a number; integers 0."""


USUAL: Final = (Kind.RANDOM, Kind.ONES, Kind.ZEROS)


def has_floats(spec: ModelSpec) -> bool:
    """Whether some input can hold NaN."""
    return any(tensor.data_type in FLOATS for tensor in spec.inputs)


def batch_of(spec: ModelSpec, bucket: Bucket, rows: int, kind: Kind, rng: np.random.Generator) -> list[Array]:
    """One array per input.

    Args:
        spec: The model's.
        bucket: The shape of a row of each input, or of a model that is not batched the whole shapes.
        rows: Rows; of no meaning for a model that is not batched.
        kind: What they hold.
        rng: Makes the random ones.
    """
    lead = (rows,) if spec.batched else ()
    return [_array(tensor, lead + shape, kind, rng) for tensor, shape in zip(spec.inputs, bucket, strict=True)]


def bytes_of(spec: ModelSpec, bucket: Bucket, rows: int) -> int:
    """About how much memory such a batch takes."""
    sizes = zip(spec.inputs, bucket, strict=True)
    return sum(NUMPY_DTYPES[tensor.data_type].itemsize * math.prod(shape) for tensor, shape in sizes) * rows


def stack(batches: Sequence[Sequence[Array]]) -> list[Array]:
    """Several batches of a batched model as one."""
    return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]


def _array(tensor: TensorSpec, shape: tuple[int, ...], kind: Kind, rng: np.random.Generator) -> Array:
    dtype = NUMPY_DTYPES[tensor.data_type]
    if tensor.data_type is DataType.BYTES:
        return _texts(shape, kind, rng)
    if kind is Kind.RANDOM:
        if tensor.data_type in FLOATS:
            return rng.standard_normal(shape, np.float32).astype(dtype)
        return rng.integers(0, int(_largest(tensor)), shape, endpoint=True).astype(dtype)
    if kind is Kind.MAXIMUM:
        return np.full(shape, _largest(tensor), dtype)
    if kind is Kind.NAN and tensor.data_type in FLOATS:
        return np.full(shape, np.nan, dtype)
    return np.full(shape, kind is Kind.ONES, dtype)


def _largest(tensor: TensorSpec) -> float:
    if tensor.data_type in FLOATS:
        return 3.0e4 if tensor.data_type is DataType.FP16 else 1e30
    dtype: Any = NUMPY_DTYPES[tensor.data_type]  # of integers, which its type does not say
    return int(np.iinfo(dtype).max) if tensor.measures else 1


def _texts(shape: tuple[int, ...], kind: Kind, rng: np.random.Generator) -> Array:
    array = np.empty(shape, np.object_)
    flat = array.reshape(-1)
    if kind is Kind.RANDOM:
        flat[:] = [b"%d" % number for number in rng.integers(0, 1000, flat.size)]
    else:
        flat.fill({Kind.ONES: b"1", Kind.MAXIMUM: b"9" * 100}.get(kind, b""))
    return array
