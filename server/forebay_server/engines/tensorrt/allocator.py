"""Device memory for outputs whose size is known only while a batch runs (what a filter keeps, boxes that are left).

TensorRT asks for memory in the middle of `execute_async_v3`, on the thread that called it, and says the shape before it
returns. The memory is kept and grows: after the largest outputs have been seen nothing is allocated any more.
"""

from typing import Any

from forebay_server.engines.base import OutOfMemory
from forebay_server.engines.gpu.device import Device, DeviceMemory, Shape
from forebay_server.engines.gpu.pool import Budget, Chain


class OutputMemory:
    """One instance's memory for such outputs, by name.

    Args:
        device: Where.
        budget: What it counts against.
    """

    def __init__(self, device: Device, budget: Budget) -> None:
        self._device = device
        self._budget = budget
        self._chains: dict[str, Chain[DeviceMemory]] = {}
        self._results: dict[str, tuple[int, Shape]] = {}
        self.refused = False
        """Whether there was none; whoever has seen it takes it back."""

    def reserve(self, name: str, size: int) -> int:
        """The address of at least so many bytes for an output; 0 if there are none.

        Results of the run before may lie there: they are not valid beyond the beginning of this one.
        """
        chain = self._chains.get(name)
        if chain is None:
            chain = self._chains[name] = Chain(self._device.memory, self._budget)
        try:
            address = chain.fit(size).address
        except OutOfMemory:
            self.refused = True
            return 0
        self._results[name] = address, ()
        return address

    def shape(self, name: str, shape: Shape) -> None:
        """Says what came out."""
        self._results[name] = self._results[name][0], shape

    def result(self, name: str) -> tuple[int, Shape]:
        """Where an output of the last run lies, and its shape."""
        return self._results[name]

    def close(self) -> None:
        """Frees all of it."""
        for chain in self._chains.values():
            chain.close()
        self._chains.clear()


def make_allocator(trt: Any, memory: OutputMemory) -> Any:
    """Makes what TensorRT calls. It raises nothing: what it raised would end on stderr."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]  # the class comes with the library
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        def reallocate_output_async(self, name: str, _held: int, size: int, _alignment: int, _stream: int) -> int:
            return memory.reserve(name, size)

        def reallocate_output(self, name: str, _held: int, size: int, _alignment: int) -> int:
            return memory.reserve(name, size)

        def notify_shape(self, name: str, shape: Any) -> None:
            memory.shape(name, tuple(shape))

    return Allocator()
