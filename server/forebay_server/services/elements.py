"""The elements of one input tensor: from any of the three forms of the contract to raw little-endian bytes.

Pure. Called by `services.validation`, which has checked type, rank and shape before. Each function gives out the
elements and what is wrong with them, in a sentence; None if nothing is.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from forebay_server.tensors import FLOATS, FREE, ITEM_SIZES, NUMPY_DTYPES, DataType, TensorSpec, decode_bytes_elements

MAX_READABLE: Final = 4096
"""Elements of a tensor that travels as `numbers` or `strings`."""
MAX_BYTES_ELEMENTS: Final = 65_536
"""Elements of all BYTES inputs of a request together; each becomes an object."""

RawInput = bytes | list[bytes]
"""Raw little-endian bytes, or the elements of a BYTES tensor."""


class InputRule:
    """What one input must be, laid out for quick comparison."""

    __slots__ = (
        "data_type",
        "index",
        "inspect",
        "item",
        "name",
        "one_row",
        "rank",
        "reject_nan",
        "row",
        "row_bytes",
        "shape",
    )

    def __init__(self, index: int, spec: TensorSpec, *, batched: bool, reject_nan: bool) -> None:
        self.index = index
        self.name = spec.name
        self.data_type = int(spec.data_type)
        self.item = ITEM_SIZES.get(self.data_type, 0)
        """Bytes of an element; 0 for BYTES."""
        self.shape = spec.shape
        self.rank = len(spec.shape)
        self.row = spec.shape[1:] if batched else spec.shape
        """The specification's shape of one row."""
        self.one_row = [1, *self.row]
        """The shape of a tensor of one row, if the specification fixes it."""
        self.row_bytes: int | None = None
        """Bytes of one row if they are fixed and not 0."""
        if self.item and FREE not in self.row:
            self.row_bytes = self.item * product(self.row) or None
        self.reject_nan = reject_nan and spec.data_type in FLOATS
        self.inspect = self.reject_nan or spec.data_type == DataType.BOOL
        """Whether the data itself has to be looked at."""


def from_data(data: bytes, rule: InputRule, shape: tuple[int, ...], budget: int) -> tuple[RawInput, str | None]:
    """The elements of `Tensor.data`; `budget` is how many more of type BYTES the request may have."""
    if not rule.item:
        count = product(shape, stop=len(data) // 4)
        if count * 4 > len(data):
            return data, f"{len(data)} bytes are too few for the elements of shape {list(shape)}"
        if count > budget:
            return data, f"at most {MAX_BYTES_ELEMENTS} elements in all BYTES inputs together"
        try:
            return decode_bytes_elements(data, count), None
        except ValueError as error:
            return data, str(error)
    count = product(shape, stop=len(data) // rule.item)
    if count * rule.item != len(data):
        return data, f"{len(data)} bytes, which is not what shape {list(shape)} of {rule.item}-byte elements takes"
    return data, None


def from_numbers(  # noqa: PLR0911  # a list of refusals
    numbers: Sequence[float], rule: InputRule, shape: tuple[int, ...]
) -> tuple[RawInput, str | None]:
    """The elements of `Tensor.numbers`."""
    if not rule.item:
        return b"", "a BYTES tensor takes strings or data"
    count = len(numbers)
    if count > MAX_READABLE:
        return b"", f"at most {MAX_READABLE}, not {count}"
    if count != product(shape, stop=MAX_READABLE):
        return b"", f"{count} of them do not fill shape {list(shape)}"
    dtype = NUMPY_DTYPES[DataType(rule.data_type)]
    if rule.data_type in FLOATS:
        wide = np.array(numbers, np.float64)
        with np.errstate(over="ignore"):
            narrow = wide.astype(dtype)
        if not np.array_equal(np.isfinite(wide), np.isfinite(narrow)):
            return b"", f"a number is out of the range of {DataType(rule.data_type).name}"
        return narrow.tobytes(), None
    low, high = (0, 1) if rule.data_type == DataType.BOOL else _integer_range(dtype)
    if not all(number.is_integer() and low <= number <= high for number in numbers):
        return b"", f"each must be a whole number from {low} to {high}"
    return np.array([int(number) for number in numbers], dtype).tobytes(), None


def from_strings(
    strings: Sequence[str], rule: InputRule, shape: tuple[int, ...], budget: int
) -> tuple[RawInput, str | None]:
    """The elements of `Tensor.strings`; `budget` as for `from_data`."""
    if rule.item:
        return b"", "only a BYTES tensor takes strings"
    count = len(strings)
    if count > min(MAX_READABLE, budget):
        return b"", f"at most {MAX_READABLE}, not {count}"
    if count != product(shape, stop=MAX_READABLE):
        return b"", f"{count} of them do not fill shape {list(shape)}"
    return [text.encode() for text in strings], None


def content_problem(data: bytes, rule: InputRule) -> str | None:
    """What is wrong with elements that are whole; None if nothing is."""
    if rule.data_type == DataType.BOOL:
        return "each byte of a BOOL tensor must be 0 or 1" if data.strip(b"\x00\x01") else None
    if rule.reject_nan:
        with np.errstate(invalid="ignore"):  # a signalling NaN would be warned of, too
            finite = np.isfinite(np.frombuffer(data, NUMPY_DTYPES[DataType(rule.data_type)])).all()
        if not finite:
            return "this model takes no NaN and no infinity"
    return None


def product(shape: Sequence[int], stop: int | None = None) -> int:
    """The number of elements; with `stop`, some number above it as soon as it is known to be above."""
    if 0 in shape:
        return 0
    count = 1
    for length in shape:
        count *= length
        if stop is not None and count > stop:
            break
    return count


def _integer_range(dtype: np.dtype[Any]) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)
