"""Prepares inputs on the device, in front of any engine's computation: a kernel for each, part of the same graph.

So callers' small messages stay small on the way to the device as well. What is done is said in `engines.preparation`.
The kernel is `prepare.cu`; `nvrtc` compiles it once per pair of types for the device that is there. Where it can't, a
line in the log says why, and the CPU prepares.
"""

import ctypes
import importlib.resources
import math
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np
import structlog

from forebay_server.engines.gpu.device import Computation, Device, DeviceError, NoDevice, Recording, Shape, Stream
from forebay_server.engines.gpu.nvrtc import Argument, NvrtcCompiler
from forebay_server.engines.gpu.pool import Budget, Chain
from forebay_server.engines.preparation import Preparation, served
from forebay_server.tensors import NUMPY_DTYPES, DataType, ModelSpec

MOST_ELEMENTS: Final = 2**31 - 1  # what the kernel can count

ARGUMENTS: Final[tuple[Argument, ...]] = (ctypes.c_void_p,) * 3 + (ctypes.c_uint,) * 5
"""The types of what `prepare.cu` takes."""

_INTEGER_NAMES: Final = {1: "char", 2: "short", 4: "int", 8: "long long"}
_log = structlog.get_logger(__name__)

_SIGNED: Final = frozenset({DataType.INT8, DataType.INT16, DataType.INT32, DataType.INT64})


class Kernel(Protocol):
    """The compiled kernel for one pair of types."""

    def launch(self, arguments: tuple[int, ...], count: int, stream: Stream) -> None:
        """Enqueues it. `arguments` are those of `prepare.cu`."""


def defines(made: Preparation) -> tuple[str, ...]:
    """The macros by which `prepare.cu` becomes the kernel of a preparation."""
    source = _integer(made.source.data_type)
    target = _integer(made.target.data_type)
    return (f"SOURCE={source}", f"TARGET={target}", f"PIXELS={int(made.table is not None)}")


def _integer(data_type: DataType) -> str:
    """The C type of the elements, or of their bits."""
    name = _INTEGER_NAMES[NUMPY_DTYPES[data_type].itemsize]
    return f"signed {name}" if data_type in _SIGNED else f"unsigned {name}"


def geometry(made: Preparation, shape: Shape) -> tuple[int, int, int, int, int]:
    """`count`, `channels`, `inner`, `rows` and `moved` of `prepare.cu` for a batch of this shape as callers send it."""
    target = made.target_shape(shape)
    rows = 1 if made.table is None else len(made.table)
    if made.channels_last:
        axis = len(target) - 3
    elif rows > 1:
        axis = len(target) + made.channel_axis
    else:
        return math.prod(target), 1, 1, rows, 0
    return math.prod(target), target[axis], max(1, math.prod(target[axis + 1 :])), rows, int(made.channels_last)


class _Input:
    """One prepared input of one instance: its kernel, its table on the device, and memory for what the model takes.

    That memory serves one batch at a time: those of a stream follow each other.
    """

    def __init__(self, made: Preparation, kernel: Kernel, device: Device, budget: Budget) -> None:
        self.made = made
        self._kernel = kernel
        self._item = NUMPY_DTYPES[made.target.data_type].itemsize
        self._memory = Chain(device.memory, budget)
        self._table = Chain(device.memory, budget)
        if made.table is not None:
            pinned, stream = device.pinned(made.table.nbytes), device.stream()
            pinned.view[: made.table.nbytes] = made.table.reshape(-1).view(np.uint8)
            stream.upload(self._table.fit(made.table.nbytes).address, pinned.address, made.table.nbytes)
            stream.synchronize()
            stream.close()
            pinned.close()

    def make_room(self, shape: Shape) -> int:
        """The address of what a batch of this shape becomes."""
        return self._memory.fit(math.prod(self.made.target_shape(shape)) * self._item).address

    def enqueue(self, source: int, shape: Shape, stream: Stream) -> int:
        """Enqueues the kernel, and gives the address of what it makes."""
        made = self.made
        count, *rest = geometry(made, shape)
        if count > MOST_ELEMENTS:
            raise DeviceError(f"the input {made.source.name!r} has {count} elements, more than can be prepared")
        target = self.make_room(shape)
        table = 0 if made.table is None else self._table.fit(made.table.nbytes).address
        if count:
            self._kernel.launch((source, target, table, count, *rest), count, stream)
        return target

    def close(self) -> None:
        """Frees the memory."""
        self._memory.close()
        self._table.close()


class PreparedComputation:
    """A computation that takes what callers send: `engines.gpu.device.Computation`."""

    def __init__(self, inner: Computation, inputs: Sequence[_Input | None]) -> None:
        self._inner = inner
        self._inputs = list(inputs)

    @property
    def capturable(self) -> bool:
        """As of the inner one: the kernels are part of the graph."""
        return self._inner.capturable

    def output_shapes(self, shapes: Sequence[Shape]) -> Sequence[Shape] | None:
        """The outputs' shapes for inputs as callers send them. Makes room for what the model then takes."""
        for each, shape in zip(self._inputs, shapes, strict=True):
            if each is not None:
                each.make_room(shape)
        return self._inner.output_shapes(self._targets(shapes))

    def enqueue(self, inputs: Sequence[int], shapes: Sequence[Shape], outputs: Sequence[int], stream: Stream) -> None:
        """Enqueues the kernels, and the run behind them."""
        self._inner.enqueue(self._prepared(inputs, shapes, stream), self._targets(shapes), outputs, stream)

    def results(self) -> Sequence[tuple[int, Shape]]:
        """As of the inner one."""
        return self._inner.results()

    def close(self) -> None:
        """Closes the inner one, then frees the memory."""
        self._inner.close()
        for each in self._inputs:
            if each is not None:
                each.close()

    def _targets(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [
            shape if each is None else each.made.target_shape(shape)
            for each, shape in zip(self._inputs, shapes, strict=True)
        ]

    def _prepared(self, inputs: Sequence[int], shapes: Sequence[Shape], stream: Stream) -> list[int]:
        return [
            address if each is None else each.enqueue(address, shape, stream)
            for each, address, shape in zip(self._inputs, inputs, shapes, strict=True)
        ]


class PreparedRecording(PreparedComputation):
    """The same of one that captures by itself: the kernels run before its graph."""

    def __init__(self, inner: Computation, recording: Recording, inputs: Sequence[_Input | None]) -> None:
        super().__init__(inner, inputs)
        self._recording = recording

    def record_run(
        self, inputs: Sequence[int], shapes: Sequence[Shape], outputs: Sequence[int], stream: Stream
    ) -> Callable[[], None]:
        """Has the inner one record its run on what the kernels make."""
        inputs, shapes = list(inputs), list(shapes)
        replay = self._recording.record_run(
            self._prepared(inputs, shapes, stream), self._targets(shapes), outputs, stream
        )

        def run() -> None:
            self._prepared(inputs, shapes, stream)
            replay()

        return run


class Preparer:
    """What an engine on a GPU needs to prepare inputs there: see `engines.base.Preparing`. Called as the engine is.

    Args:
        device: Where.
        budget: What the memory for prepared inputs counts against.
    """

    def __init__(self, device: Device, budget: Budget) -> None:
        self._device = device
        self._budget = budget
        self._inputs: tuple[tuple[Preparation, Kernel] | None, ...] = ()

    def prepare(self, preparations: Sequence[Preparation | None]) -> bool:
        """As of the port: compiles the kernels, or logs why that can't be done here."""
        compiler = NvrtcCompiler(self._device, source_text(), "prepare", ARGUMENTS)
        try:
            self._inputs = tuple(None if made is None else (made, compiler(defines(made))) for made in preparations)
        except NoDevice as error:
            _log.warning("inputs are prepared on the CPU", device=self._device.label, because=str(error))
            return False
        return True

    def sent(self, shapes: Sequence[Shape]) -> list[Shape]:
        """The shapes that callers send for those that the model is given."""
        made = self._inputs or (None,) * len(shapes)
        return [
            shape if each is None else each[0].source_shape(shape) for each, shape in zip(made, shapes, strict=True)
        ]

    def around(self, inner: Computation, spec: ModelSpec) -> tuple[Computation, ModelSpec]:
        """A computation that takes what callers send, and the specification of that.

        The same two if nothing is to be prepared. What comes out closes the inner one.

        Args:
            inner: Takes what the model takes.
            spec: What that is.

        Raises:
            OutOfMemory: The device has no room for the tables.
        """
        if all(each is None for each in self._inputs):
            return inner, spec
        inputs = [None if each is None else _Input(*each, self._device, self._budget) for each in self._inputs]
        taken = served(spec, [None if each is None else each[0] for each in self._inputs])
        if isinstance(inner, Recording):
            return PreparedRecording(inner, inner, inputs), taken
        return PreparedComputation(inner, inputs), taken


def source_text() -> str:
    """`prepare.cu`."""
    return importlib.resources.files("forebay_server.engines.gpu").joinpath("prepare.cu").read_text()
