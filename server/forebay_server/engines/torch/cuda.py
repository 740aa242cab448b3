"""Runs batches on a GPU: what the GPU's data path (`engines.gpu`) is given to compute with.

Buffers, streams and their overlap are the data path's, as for every engine. What stays with torch is the memory
between inputs and outputs, which comes from its caching allocator. A graph would go on using that memory after the
allocator has given it to others, so torch itself captures the graphs (`Recording`), in a pool that an instance's graphs
share: they run one after the other on one stream, and nothing of a run outlives it, because outputs are copied into the
data path's buffers as the last part of the run.

That has not been run on a GPU here; docs/torch.md says so too.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from forebay_server.engines.base import OutOfMemory
from forebay_server.engines.gpu.device import CaptureFailed, Device, DeviceError, Shape, Stream
from forebay_server.engines.torch.cpu import Run
from forebay_server.engines.torch.profile import Profile
from forebay_server.engines.torch.staging import TORCH_DTYPES
from forebay_server.tensors import FREE, NUMPY_DTYPES, DataType, ModelSpec, TensorSpec

VIEWS: Final = 4096
"""Tensors over the data path's buffers that are remembered."""

_lock = threading.Lock()
_refusals: dict[int, int] = {}
"""By device, how often torch's allocator had no memory when that was last asked."""


class TorchComputation:
    """A package or module on a GPU, for one instance: `engines.gpu.device.Computation` and `Recording`.

    Args:
        torch: The library.
        run: Computes; it uses the current stream, and under capture neither waits nor synchronises.
        spec: The model's.
        profile: A package's; None of a module.
        device: The GPU.
    """

    capturable = False  # by the data path: see above

    def __init__(self, torch: Any, run: Run, spec: ModelSpec, profile: Profile | None, device: Device) -> None:
        self._torch = torch
        self._run: Run | None = run
        self._spec = spec
        self._profile = profile
        self._gpu = device
        self._device = torch.device("cuda", device.index)
        self._pool: Any = None
        self._graphs: list[Any] = []
        self._streams: dict[int, Any] = {}
        self._views: dict[tuple[int, Shape, DataType], Any] = {}
        self._results: list[Any] = []
        self._had_no_memory()  # what was refused before is not ours

    def output_shapes(self, shapes: Sequence[Shape]) -> Sequence[Shape] | None:
        """By the profile; of a module, by its specification if the batch is all that is free.

        Raises:
            RejectInput: The shapes don't fit the profile.
        """
        if self._profile is not None:
            return self._profile.output_shapes(self._profile.measure(shapes))
        found: list[Shape] = []
        for tensor in self._spec.outputs:
            shape = (shapes[0][0], *tensor.shape[1:]) if self._spec.batched else tensor.shape
            if FREE in shape:
                return None
            found.append(shape)
        return found

    def enqueue(self, inputs: Sequence[int], shapes: Sequence[Shape], outputs: Sequence[int], stream: Stream) -> None:
        """Enqueues one run, without a graph.

        Raises:
            OutOfMemory: The GPU has no memory for it.
            EngineDead: The GPU is lost.
        """
        with self._on(stream):
            self._launch(inputs, shapes, outputs)

    def record_run(
        self, inputs: Sequence[int], shapes: Sequence[Shape], outputs: Sequence[int], stream: Stream
    ) -> Callable[[], None]:
        """Captures one run.

        Raises:
            CaptureFailed: Outputs have lengths that only the run tells, or something of it can't be captured.
        """
        if len(outputs) != len(self._spec.outputs):
            raise CaptureFailed("the shapes of its outputs are known only after a run")
        cuda = self._torch.cuda
        graph = cuda.CUDAGraph()
        queue = self._queue(stream)
        self._pool = self._pool or cuda.graph_pool_handle()
        try:
            # Other threads go on using the device meanwhile, which the default mode would not let them.
            with cuda.graph(graph, pool=self._pool, stream=queue, capture_error_mode="thread_local"):
                self._launch(inputs, shapes, outputs)
        except (RuntimeError, OutOfMemory, DeviceError) as error:
            raise CaptureFailed(str(error).partition("\n")[0]) from error
        self._graphs.append(graph)

        def replay() -> None:
            with cuda.stream(queue):
                graph.replay()

        return replay

    def results(self) -> Sequence[tuple[int, Shape]]:
        """Where the outputs of the last run lie."""
        return [(output.data_ptr(), tuple(output.shape)) for output in self._results]

    def close(self) -> None:
        """Lets go of graphs and model, and gives torch's unused memory back to the device."""
        self._graphs.clear()
        self._results.clear()
        self._views.clear()
        self._run = None
        with suppress(RuntimeError), self._torch.cuda.device(self._device):  # of a device that is lost
            self._torch.cuda.empty_cache()

    def _launch(self, inputs: Sequence[int], shapes: Sequence[Shape], outputs: Sequence[int]) -> None:
        if self._run is None:
            raise RuntimeError("the computation is closed")
        given = zip(self._spec.inputs, inputs, shapes, strict=True)
        tensors = [self._view(address, shape, tensor) for tensor, address, shape in given]
        try:
            computed = self._run(tensors)
        except RuntimeError as error:
            if self._had_no_memory():
                raise OutOfMemory from error
            self._gpu.check()
            raise
        if not outputs:
            self._results = [output.contiguous() for output in computed]
            return
        for tensor, address, output in zip(self._spec.outputs, outputs, computed, strict=True):
            self._view(address, tuple(output.shape), tensor).copy_(output, non_blocking=True)

    def _had_no_memory(self) -> bool:
        """Whether torch has refused memory on this device since this was last asked, by any instance.

        A package tells only that a call has failed, but torch's allocator counts what it had to refuse.
        """
        with _lock:
            count = int(self._torch.cuda.memory_stats(self._device).get("num_ooms", 0))
            before = _refusals.get(self._gpu.index, 0)
            _refusals[self._gpu.index] = count
        return count > before

    @contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        with self._torch.cuda.stream(self._queue(stream)):
            yield

    def _queue(self, stream: Stream) -> Any:
        """The data path's stream, as torch knows streams."""
        if stream.handle not in self._streams:
            self._streams[stream.handle] = self._torch.cuda.ExternalStream(stream.handle, device=self._device)
        return self._streams[stream.handle]

    def _view(self, address: int, shape: Shape, spec: TensorSpec) -> Any:
        """A tensor over memory of the data path's."""
        key = address, shape, spec.data_type
        view = self._views.get(key)
        if view is None:
            size = NUMPY_DTYPES[spec.data_type].itemsize
            for length in shape:
                size *= length
            dtype = getattr(self._torch, TORCH_DTYPES[spec.data_type])
            if size:
                flat = self._torch.as_tensor(_Memory(address, size), device=self._device)
                view = flat.view(dtype).view(shape)
            else:
                view = self._torch.empty(shape, dtype=dtype, device=self._device)
            if len(self._views) >= VIEWS:
                self._views.clear()
            self._views[key] = view
        return view


class _Memory:
    """Bytes on the device, in the form that libraries hand them to each other (CUDA array interface)."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }
