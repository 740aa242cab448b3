"""Memory in which batches are put together, seen by numpy and by torch at the same time, so that nothing is copied.

Belongs to one instance and is used by one thread at a time. `Arrays` is the way back: what torch has computed, as
arrays.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import ml_dtypes

from forebay_server.engines.base import OutputMismatch, RejectInput
from forebay_server.engines.gpu.pool import placed
from forebay_server.engines.torch.profile import Profile, Shape
from forebay_server.tensors import FREE, NUMPY_DTYPES, Array, DataType, ModelSpec, TensorSpec

TORCH_DTYPES: Final = {
    DataType.BOOL: "bool",
    DataType.UINT8: "uint8",
    DataType.UINT16: "uint16",
    DataType.UINT32: "uint32",
    DataType.UINT64: "uint64",
    DataType.INT8: "int8",
    DataType.INT16: "int16",
    DataType.INT32: "int32",
    DataType.INT64: "int64",
    DataType.FP16: "float16",
    DataType.BF16: "bfloat16",
    DataType.FP32: "float32",
    DataType.FP64: "float64",
}
"""What torch calls our types; it has no text."""

LAYOUTS: Final = 1024
"""Combinations of shapes that are remembered."""


class Layout:
    """One combination of shapes in an instance's memory."""

    __slots__ = ("arrays", "memory", "refusal", "tensors")

    def __init__(self, arrays: list[Array], tensors: list[Any], memory: range, refusal: str) -> None:
        self.arrays = arrays
        """For collate to write into, one per input."""
        self.tensors = tensors
        """The same memory, for torch."""
        self.memory = memory
        """All addresses that the instance's inputs may have."""
        self.refusal = refusal
        """Why such shapes are not to be run, or nothing."""


class Staging:
    """An instance's memory: one block, as large as the inputs of the largest batch so far.

    Args:
        torch: The library.
        spec: The model's.
        profile: What shapes must fit; None: the specification is all that is known.
    """

    def __init__(self, torch: Any, spec: ModelSpec, profile: Profile | None) -> None:
        self._torch = torch
        self._types = [tensor.data_type for tensor in spec.inputs]
        self._profile = profile
        self._block = torch.empty(0, dtype=torch.uint8)
        self._layouts: dict[tuple[Shape, ...], Layout] = {}

    def layout(self, shapes: Sequence[Shape]) -> Layout:
        """The place for a batch of such whole shapes; it overwrites what any other layout holds."""
        key = tuple(shapes)
        return self._layouts.get(key) or self._lay_out(key)

    def filled(self, inputs: Sequence[Array]) -> Layout:
        """The place for a batch that was put together elsewhere, with a copy of it."""
        layout = self.layout([array.shape for array in inputs])
        for place, array in zip(layout.arrays, inputs, strict=True):
            place[...] = array
        return layout

    def _lay_out(self, shapes: tuple[Shape, ...]) -> Layout:
        dtypes = [NUMPY_DTYPES[data_type] for data_type in self._types]
        sizes = [dtype.itemsize * math.prod(shape) for dtype, shape in zip(dtypes, shapes, strict=True)]
        offsets, whole = placed(sizes)
        if whole > self._block.numel():
            self._block = self._torch.empty(whole, dtype=self._torch.uint8)
            self._layouts.clear()  # they lie in the block before
        arrays: list[Array] = []
        tensors: list[Any] = []
        for index, (offset, size, shape) in enumerate(zip(offsets, sizes, shapes, strict=True)):
            piece = self._block[offset : offset + size]
            arrays.append(piece.numpy().view(dtypes[index]).reshape(shape))
            tensors.append(piece.view(getattr(self._torch, TORCH_DTYPES[self._types[index]])).view(shape))
        if len(self._layouts) >= LAYOUTS:
            self._layouts.clear()
        start = self._block.data_ptr()
        memory = range(start, start + self._block.numel())
        made = self._layouts[shapes] = Layout(arrays, tensors, memory, self._refusal(shapes))
        return made

    def _refusal(self, shapes: tuple[Shape, ...]) -> str:
        if self._profile is None:
            return ""
        try:
            self._profile.measure(shapes)
        except RejectInput as refusal:
            return refusal.message
        return ""


class Arrays:
    """Makes arrays of what a model has computed on the CPU, in its memory.

    Args:
        torch: The library.
        spec: The model's.
        checked: Whether the shapes of outputs are to be compared with the specification. Types always are.
    """

    def __init__(self, torch: Any, spec: ModelSpec, *, checked: bool) -> None:
        self._wanted = [
            (tensor, getattr(torch, TORCH_DTYPES[tensor.data_type]), tensor.data_type is DataType.BF16)
            for tensor in spec.outputs
        ]
        self._int16 = torch.int16
        self._checked = checked

    def of(self, outputs: Sequence[Any], memory: range) -> list[Array]:
        """The outputs as arrays; those that lie in the memory of the inputs are copied.

        Args:
            outputs: As the model gave them.
            memory: Where its inputs lie: see `Layout`.

        Raises:
            OutputMismatch: They are not what the specification says.
        """
        if len(outputs) != len(self._wanted):
            raise OutputMismatch(f"it returned {len(outputs)} outputs, not {len(self._wanted)}")
        arrays: list[Array] = []
        for output, (spec, dtype, brain) in zip(outputs, self._wanted, strict=True):
            if output.dtype is not dtype or (self._checked and not _fits(output.shape, spec.shape)):
                raise OutputMismatch(_mismatch(spec, output))
            tensor = output.clone() if output.data_ptr() in memory else output
            # numpy has no BF16 of its own
            arrays.append(tensor.view(self._int16).numpy().view(ml_dtypes.bfloat16) if brain else tensor.numpy())
        return arrays


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(n in (FREE, m) for n, m in zip(wanted, shape, strict=True))


def _mismatch(spec: TensorSpec, output: Any) -> str:
    found = f"{str(output.dtype).removeprefix('torch.')} of the shape {list(output.shape)}"
    return f"the output {spec.name!r} is {found}, not {spec.data_type.name} of {list(spec.shape)}"
