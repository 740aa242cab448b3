"""Runs batches with TensorRT: one instance's execution contexts, one for each profile and one for each graph.

Switching a context's profile would forget its shapes and may allocate, so each profile has a context of its own. A
captured graph is bound to the state of its context, and NVIDIA's guide says that changing that context (its shapes,
its addresses) leaves the graph undefined: so each graph has a context of its own, too, which is never touched again.

They never run at the same time, because all run on the instance's one stream, so they share one block of device memory
for activations: that of the greediest profile. It is the instance's own, and counted when it is made.

A profile's context keeps shapes and addresses between runs; only what has changed is set again. TensorRT says False
where something is wrong and tells the recorder why.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from forebay_server.engines.base import ModelLoadError, OutOfMemory, RejectInput
from forebay_server.engines.gpu.device import CaptureFailed, DeviceError, Graph, Shape, Stream
from forebay_server.engines.gpu.pool import Budget, Chain
from forebay_server.engines.tensorrt import profiles
from forebay_server.engines.tensorrt.allocator import OutputMemory, make_allocator
from forebay_server.engines.tensorrt.logger import Errors, make_recorder
from forebay_server.engines.tensorrt.plan import LoadedPlan
from forebay_server.tensors import ModelSpec

MOST_SHAPES: Final = 4096
"""Combinations of shapes whose profile is remembered. A model whose shapes are open can be asked for any number."""


class RunFailed(Exception):
    """TensorRT refused a call. The text is its own, for the log."""


class _Context:
    """An execution context, and what it was last told."""

    __slots__ = ("addresses", "context", "shapes")

    def __init__(self, context: Any, tensors: int) -> None:
        self.context = context
        self.shapes: tuple[Shape, ...] = ()
        self.addresses = [0] * tensors


class TensorRtComputation:
    """One instance's part of TensorRT: `engines.gpu.device.Computation`, and `Recording`.

    Args:
        plan: Shared by all instances on its device.
        spec: The model's, for the sentences about its shapes.
        budget: What the memory for activations counts against.

    Raises:
        ModelLoadError: TensorRT makes no context.
        OutOfMemory: The device has no memory for the activations.
    """

    def __init__(self, plan: LoadedPlan, spec: ModelSpec, budget: Budget) -> None:
        self._plan = plan
        self._spec = spec
        self._inputs = [tensor.name for tensor in spec.inputs]
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._errors = Errors()
        self._recorder = make_recorder(plan.library.trt, self._errors)
        self._chosen: dict[tuple[Shape, ...], int] = {}
        self._output_memory = OutputMemory(plan.device, budget)
        self._allocator = make_allocator(plan.library.trt, self._output_memory)
        self._profiles: list[_Context] = []
        self._captured: list[tuple[Graph, _Context]] = []
        self._memory = Chain(plan.device.memory, budget)
        try:
            self._block = self._memory.fit(plan.context_memory())
            for index in range(len(plan.profiles)):
                self._profiles.append(self._make(index))
            self._allocated = any(self._depends_on_data(index) for index in range(len(plan.profiles)))
            if self._allocated:
                self._set_allocator()
        except BaseException:
            self.close()
            raise

    @property
    def capturable(self) -> bool:
        """Not as it is: see `record_run`."""
        return False

    def output_shapes(self, shapes: Sequence[Shape]) -> Sequence[Shape] | None:
        """The outputs' shapes by TensorRT's own inference."""
        context = self._prepared(tuple(shapes))
        if self._allocated:
            return None
        return [tuple(context.context.get_tensor_shape(name)) for name in self._outputs]

    def enqueue(self, inputs: Sequence[int], shapes: Sequence[Shape], outputs: Sequence[int], stream: Stream) -> None:
        """Enqueues one run of the profile's context."""
        context = self._prepared(tuple(shapes))
        self._set_addresses(context, inputs, outputs)
        self._run(context, stream)

    def record_run(
        self, inputs: Sequence[int], shapes: Sequence[Shape], outputs: Sequence[int], stream: Stream
    ) -> Callable[[], None]:
        """Captures a run of a new context, after one that is waited for: TensorRT initialises some things late."""
        if self._allocated:
            raise CaptureFailed("sizes of outputs depend on data, so TensorRT waits for the device during a run")
        key = tuple(shapes)
        try:
            context = self._make(self._number(key))
            self._set_shapes(context, key)
            self._set_addresses(context, inputs, outputs)
            self._run(context, stream)
            stream.synchronize()
        except (ModelLoadError, OutOfMemory, DeviceError, RunFailed) as error:
            raise CaptureFailed(str(error)) from error
        graph = stream.capture(partial(self._run, context, stream))
        self._captured.append((graph, context))
        return partial(stream.launch, graph)

    def results(self) -> Sequence[tuple[int, Shape]]:
        """Where the allocator has put the outputs of the last run."""
        return [self._output_memory.result(name) for name in self._outputs]

    def close(self) -> None:
        """Lets go of the graphs, then of the contexts, then of the memory that they use."""
        for graph, _ in self._captured:
            graph.close()
        self._captured.clear()
        self._profiles.clear()
        self._output_memory.close()
        self._memory.close()

    def _make(self, index: int) -> _Context:
        """Makes a context for a profile. Selecting the profile may enqueue: on a stream for that, and waited for."""
        context = self._plan.context()
        context.error_recorder = self._recorder
        context.set_device_memory(self._block.address, self._block.size)
        stream = self._plan.device.stream()
        try:
            selected = context.set_optimization_profile_async(index, stream.handle)
            stream.synchronize()
        except RuntimeError as error:  # what the bindings make of a False here
            raise ModelLoadError(f"TensorRT can't select profile {index}: {self._errors.take()}") from error
        finally:
            stream.close()
        if not selected:
            raise ModelLoadError(f"TensorRT can't select profile {index}: {self._errors.take()}")
        return _Context(context, len(self._inputs) + len(self._outputs))

    def _depends_on_data(self, index: int) -> bool:
        context = self._profiles[index]
        self._set_shapes(context, tuple(held.most for held in self._plan.profiles[index]))
        return any(length < 0 for name in self._outputs for length in context.context.get_tensor_shape(name))

    def _set_allocator(self) -> None:
        """For all outputs, also those whose size is known: one way for what one run gives."""
        for context in self._profiles:
            for name in self._outputs:
                if not context.context.set_output_allocator(name, self._allocator):
                    raise ModelLoadError(f"TensorRT takes no allocator for {name!r}: {self._errors.take()}")

    def _prepared(self, shapes: tuple[Shape, ...]) -> _Context:
        """The context of the profile for these shapes, set to them."""
        context = self._profiles[self._number(shapes)]
        if context.shapes != shapes:
            self._set_shapes(context, shapes)
        return context

    def _number(self, shapes: tuple[Shape, ...]) -> int:
        """The profile for these shapes."""
        index = self._chosen.get(shapes)
        if index is not None:
            return index
        index = profiles.choose(self._plan.profiles, shapes)
        if index is None:
            asked = ", ".join(
                f"{tensor.name} {list(shape)}" for tensor, shape in zip(self._spec.inputs, shapes, strict=True)
            )
            held = profiles.said(self._spec, self._plan.profiles)
            raise RejectInput(f"the model is not built for {asked}, but for {held}")
        if len(self._chosen) >= MOST_SHAPES:
            self._chosen.clear()
        self._chosen[shapes] = index
        return index

    def _set_shapes(self, context: _Context, shapes: tuple[Shape, ...]) -> None:
        context.shapes = ()  # until all are set
        for name, shape in zip(self._inputs, shapes, strict=True):
            if not context.context.set_input_shape(name, shape):
                raise self._failure(f"refuses the shape {list(shape)} for {name!r}")
        if missing := context.context.infer_shapes():
            raise RunFailed(f"TensorRT misses the shapes of {', '.join(missing)}")
        context.shapes = shapes

    def _set_addresses(self, context: _Context, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        known = context.addresses
        position = 0
        for name, address in zip(self._inputs, inputs, strict=True):
            if known[position] != address:
                self._set_address(context, position, name, address)
            position += 1
        for name, address in zip(self._outputs, outputs, strict=False):  # none if an allocator takes them
            if known[position] != address:
                self._set_address(context, position, name, address)
            position += 1

    def _set_address(self, context: _Context, position: int, name: str, address: int) -> None:
        context.addresses[position] = 0  # until it is set
        if not context.context.set_tensor_address(name, address):
            raise self._failure(f"refuses an address for {name!r}")
        context.addresses[position] = address

    def _run(self, context: _Context, stream: Stream) -> None:
        if not context.context.execute_async_v3(stream.handle):
            raise self._failure("did not run a batch")

    def _failure(self, what: str) -> Exception:
        """What to raise after TensorRT has said False.

        Raises:
            OutOfMemory, EngineDead, DeviceError: What the device says of it, which comes first.
        """
        no_memory = self._output_memory.refused or self._errors.no_memory()
        self._output_memory.refused = False
        text = f"TensorRT {what}: {self._errors.take()}"
        self._plan.device.check()
        return OutOfMemory(text) if no_memory else RunFailed(text)
