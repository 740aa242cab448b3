"""A session of ONNX Runtime as the GPU's data path sees it: bound by address, enqueuing on a stream, never waiting.

Outputs whose shapes do not follow from the inputs' by the names of their dimensions are allocated by ONNX Runtime. All
but the device's memory is as on the CPU, where the tests run the same code. Called by `onnxruntime_cuda`.
"""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from forebay_server.engines.base import EngineDead, OutOfMemory
from forebay_server.engines.gpu.device import CaptureFailed, Device, DeviceError, Shape, Stream
from forebay_server.tensors import NUMPY_DTYPES, DataType, ModelSpec

NO_GRAPH: Final = -1
RUNS_TO_CAPTURE: Final = 3
"""Two plain runs, in which memory is allocated, and the one that is captured; newer versions need only one call."""
MOST_BINDINGS: Final = 1024

ONNX_BFLOAT16: Final = 16
"""The type's number in ONNX, where numpy has no such type."""
_OUT_OF_MEMORY: Final = ("failed to allocate memory", "out of memory", "bad_alloc", "bad allocation", "alloc_failed")


def lacks_memory(error: Exception) -> bool:
    """Whether ONNX Runtime says, in one of its many ways, that there is no memory for the batch."""
    text = str(error).lower()
    return any(sign in text for sign in _OUT_OF_MEMORY)


class SessionComputation:
    """A session as the data path sees it: `engines.gpu.device.Computation`.

    Args:
        onnxruntime: The package.
        session: Used by nobody else; made on the stream that `enqueue` is given.
        spec: Its inputs and outputs.
        device: Where it runs; None: on the CPU, where this is tested without a GPU.
    """

    def __init__(self, onnxruntime: Any, session: Any, spec: ModelSpec, *, device: Device | None) -> None:
        self._onnxruntime = onnxruntime
        self._session: Any = session
        self._device = device
        self._place = ("cpu", 0) if device is None else ("cuda", device.index)
        self._inputs = [(tensor.name, _element_type(tensor.data_type)) for tensor in spec.inputs]
        self._outputs = [(tensor.name, _element_type(tensor.data_type)) for tensor in spec.outputs]
        self._input_dimensions = [argument.shape for argument in session.get_inputs()]
        self._output_dimensions = [argument.shape for argument in session.get_outputs()]
        self._plain = self._run_options(NO_GRAPH)
        self._bindings: dict[tuple[Any, ...], Any] = {}
        self._last: Any = None

    @property
    def capturable(self) -> bool:
        """What a run enqueues may be captured on its stream."""
        return True

    def output_shapes(self, shapes: Sequence[Shape]) -> Sequence[Shape] | None:
        """By the names of dimensions: one that also an input has is as long there; None if another one is free."""
        lengths: dict[str, int] = {}
        for dimensions, shape in zip(self._input_dimensions, shapes, strict=True):
            lengths.update((name, length) for name, length in zip(dimensions, shape, strict=True) if type(name) is str)
        found = []
        for dimensions in self._output_dimensions:
            shape = tuple(lengths.get(each, -1) if type(each) is str else each for each in dimensions)
            if any(length is None or length < 0 for length in shape):
                return None
            found.append(shape)
        return found

    def enqueue(
        self,
        inputs: Sequence[int],
        shapes: Sequence[Shape],
        outputs: Sequence[int],
        stream: Stream,  # noqa: ARG002  # the port's; the session has it already
    ) -> None:
        """Enqueues a run. `stream` is the one that the session was made on."""
        self._run(self._binding(inputs, shapes, outputs), self._plain)

    def results(self) -> Sequence[tuple[int, Shape]]:
        """Where ONNX Runtime has put the outputs of the last run."""
        return [(value.data_ptr(), tuple(value.shape())) for value in self._last.get_outputs()]

    def close(self) -> None:
        """Drops the session."""
        self._bindings.clear()
        self._last = self._session = None

    def _binding(self, inputs: Sequence[int], shapes: Sequence[Shape], outputs: Sequence[int]) -> Any:
        """Addresses and shapes as ONNX Runtime wants them; kept, because the same ones come again and again."""
        key = (tuple(inputs), tuple(shapes), tuple(outputs))
        binding = self._bindings.get(key)
        if binding is not None:
            return binding
        binding = self._session.io_binding()
        for (name, element_type), address, shape in zip(self._inputs, inputs, shapes, strict=True):
            binding.bind_input(name, *self._place, element_type, shape, address)
        if not outputs:  # a binding keeps what a run has allocated, so this one serves once
            for name, _ in self._outputs:
                binding.bind_output(name, *self._place)
            self._last = binding
            return binding
        known = self.output_shapes(shapes) or ()
        for (name, element_type), address, shape in zip(self._outputs, outputs, known, strict=True):
            binding.bind_output(name, *self._place, element_type, shape, address)
        if len(self._bindings) >= MOST_BINDINGS:
            self._bindings.clear()
        self._bindings[key] = binding
        return binding

    def _run(self, binding: Any, options: Any) -> None:
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:
            if lacks_memory(error):
                raise OutOfMemory(str(error)) from error
            if self._device is not None:
                with contextlib.suppress(DeviceError):  # a refused call leaves the device as it was
                    self._device.check()
            raise

    def _run_options(self, graph: int) -> Any:
        options = self._onnxruntime.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        options.add_run_config_entry("gpu_graph_id", str(graph))
        return options


class RecordingComputation(SessionComputation):
    """The same with ONNX Runtime's own graphs: `engines.gpu.device.Recording`."""

    def __init__(self, onnxruntime: Any, session: Any, spec: ModelSpec, *, device: Device | None) -> None:
        super().__init__(onnxruntime, session, spec, device=device)
        self._thread = ThreadPoolExecutor(1, "forebay-onnxruntime")
        self._graph_ids: dict[tuple[Any, ...], int] = {}
        self._recorded: dict[int, tuple[Any, Any]] = {}  # not in what `launch` holds: nothing may outlive `close`

    @property
    def capturable(self) -> bool:
        """Not from outside."""
        return False

    def record_run(
        self,
        inputs: Sequence[int],
        shapes: Sequence[Shape],
        outputs: Sequence[int],
        stream: Stream,  # noqa: ARG002  # as of `enqueue`
    ) -> Callable[[], None]:
        """Lets ONNX Runtime capture a run under an id that only these addresses and shapes have."""
        if not outputs:
            raise CaptureFailed("the shapes of its outputs are known only after a run")
        key = (tuple(inputs), tuple(shapes), tuple(outputs))
        number = self._graph_ids.setdefault(key, len(self._graph_ids) + 1)  # 0 is reserved
        self._recorded[number] = self._binding(inputs, shapes, outputs), self._run_options(number)

        def launch() -> None:
            self._run(*self._recorded[number])

        try:
            for _ in range(RUNS_TO_CAPTURE):
                launch()
        except (OutOfMemory, EngineDead):
            raise
        except Exception as error:
            raise CaptureFailed(f"ONNX Runtime can't capture it: {error}") from error
        return launch

    def close(self) -> None:
        """Drops the session in its thread, which has its graphs, and ends that."""
        self._recorded.clear()
        self._thread.submit(super().close).result()
        self._thread.shutdown()

    def _run(self, binding: Any, options: Any) -> None:
        self._thread.submit(super()._run, binding, options).result()


def _element_type(data_type: DataType) -> Any:
    return ONNX_BFLOAT16 if data_type is DataType.BF16 else np.dtype(NUMPY_DTYPES[data_type]).type
