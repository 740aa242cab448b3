"""An engine for the GPU check, on the real data path: y = 2 x, in a time of choice, with faults to order.

`forebay serve check:width=64,nanoseconds=100000` finds it as it finds other people's engines, by an entry point, which
the check puts where Python looks (`bench.gpu.site`).
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

from forebay_server.engines.base import EngineOptions, Instance
from forebay_server.engines.gpu import cuda
from forebay_server.engines.gpu.device import Device, Shape, Stream
from forebay_server.engines.gpu.graphs import MOST, ladder
from forebay_server.engines.gpu.nvrtc import Argument, NvrtcCompiler
from forebay_server.engines.gpu.pipeline import GpuInstance
from forebay_server.engines.gpu.pool import Budget
from forebay_server.engines.options import Options
from forebay_server.tensors import FREE, DataType, ModelSpec, TensorSpec

ILLEGAL: Final = -700.0
ENDLESS: Final = -702.0
FLOAT: Final = 4  # bytes

_TEXT: Final = Path(__file__).with_name("work.cu")
_DEFINES: Final = (f"ILLEGAL={ILLEGAL}f", f"ENDLESS={ENDLESS}f")
_ARGUMENTS: Final[tuple[Argument, ...]] = (ctypes.c_void_p,) * 3 + (ctypes.c_uint,) * 3


def spec_of(width: int) -> ModelSpec:
    """x of (rows, width) and y like it."""
    x, y = (TensorSpec(name=name, data_type=DataType.FP32, shape=(FREE, width)) for name in ("x", "y"))
    return ModelSpec(inputs=(x,), outputs=(y,), batched=True)


class Work:
    """The computation: `engines.gpu.device.Computation`.

    Args:
        device: Where.
        nanoseconds: That each launch takes at least.
        launches: Kernels in a run.
    """

    capturable = True

    def __init__(self, device: Device, *, nanoseconds: int = 0, launches: int = 1) -> None:
        self._kernel = NvrtcCompiler(device, _TEXT.read_text(), "work", _ARGUMENTS)(_DEFINES)
        self._nanoseconds = nanoseconds
        self._launches = launches
        self._never = device.memory(256)
        stream = device.stream()
        stream.fill(self._never.address, 0, 256)
        stream.synchronize()
        stream.close()

    def output_shapes(self, shapes: Sequence[Shape]) -> Sequence[Shape]:
        """As the input."""
        return shapes

    def enqueue(self, inputs: Sequence[int], shapes: Sequence[Shape], outputs: Sequence[int], stream: Stream) -> None:
        """Enqueues the kernels."""
        rows, width = shapes[0]
        arguments = inputs[0], outputs[0], self._never.address, rows * width, width, self._nanoseconds
        for _ in range(self._launches):
            self._kernel.launch(arguments, rows * width, stream)

    def results(self) -> Sequence[tuple[int, Shape]]:
        """Nobody asks."""
        return ()

    def close(self) -> None:
        """Frees its memory."""
        self._never.close()


class CheckEngine:
    """The engine. Options: `width` of a row, 64; `nanoseconds`, 0; `launches`, 1; `depth`, 2; `graphs`, true."""

    suffixes: ClassVar[Sequence[str]] = ()
    devices: ClassVar[Sequence[str]] = ("cuda",)

    name = "check"
    version = "1"
    always_worker = True
    max_batch_size = 0

    def __init__(self, path: Path | str, options: EngineOptions) -> None:
        given = dict(part.split("=", 1) for part in str(path).split(",") if part)
        self._options = Options(self.name, {name: int(value) for name, value in given.items()})
        self._budget = Budget(options.memory)
        self._device: Device | None = None
        self._most = options.batching.max_batch_size or 64
        self.device = options.device
        self.batch_sizes: Sequence[int] = ()

    def load(self) -> ModelSpec:
        """Opens the device."""
        take = self._options.take
        self._width, self._nanoseconds, self._launches = take("width", 64), take("nanoseconds", 0), take("launches", 1)
        self._depth, self._graphs = take("depth", 2), take("graphs", 1)
        self._options.done()
        self._device = cuda.open_device(int(self.device.partition(":")[2]))
        if self._graphs:
            self.batch_sizes = ladder(self._most)
        return spec_of(self._width)

    def instance(self, index: int) -> Instance:  # noqa: ARG002  # the port's
        """Makes an instance."""
        if self._device is None:
            raise RuntimeError("instance() before load()")
        return GpuInstance(
            self._device,
            Work(self._device, nanoseconds=self._nanoseconds, launches=self._launches),
            spec_of(self._width),
            depth=self._depth,
            budget=self._budget,
            graphs=MOST if self._graphs else 0,
        )

    def close(self) -> None:
        """Lets go of the device."""
        if self._device is not None:
            self._device.close()
