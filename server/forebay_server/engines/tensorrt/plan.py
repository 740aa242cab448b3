"""A plan on one device: deserialized, and what it says of its tensors and profiles.

Deserializing holds one lock of the process, as Triton does: TensorRT loads kernels and weights there and is not made
for two at a time. All instances on a device share one `LoadedPlan`; TensorRT's engine may be used by many threads.
"""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from forebay_server.engines.base import ModelLoadError, OutOfMemory
from forebay_server.engines.gpu.device import Device
from forebay_server.engines.tensorrt import profiles
from forebay_server.engines.tensorrt.library import Library
from forebay_server.engines.tensorrt.logger import Errors, make_recorder
from forebay_server.engines.tensorrt.profiles import Profile, Range
from forebay_server.tensors import DataType, ModelSpec, TensorSpec

TYPES: Final = {
    "BOOL": DataType.BOOL,
    "UINT8": DataType.UINT8,
    "INT8": DataType.INT8,
    "INT32": DataType.INT32,
    "INT64": DataType.INT64,
    "HALF": DataType.FP16,
    "BF16": DataType.BF16,
    "FLOAT": DataType.FP32,
}
"""By the name of TensorRT's type. Its types of less than a byte and FP8 are not in the contract."""

_deserializing = threading.Lock()


class LoadedPlan:
    """TensorRT's engine on one device.

    Args:
        path: Of the plan, for sentences.
        library: That runs it.
        device: Where.
        data: The plan, whose sidecar has been checked.
        host_code: Whether code for the host that the plan holds may run: a version-compatible plan may bring its own
            lean runtime.

    Raises:
        ModelLoadError: TensorRT refuses it, or it has tensors that can't be served.
        OutOfMemory: The device has no memory for its weights.
    """

    def __init__(self, path: Path, library: Library, device: Device, data: bytes, *, host_code: bool = False) -> None:
        self._path = path
        self.library = library
        self.device = device
        self._errors = Errors()
        self._recorder = make_recorder(library.trt, self._errors)
        device.use()
        try:
            self._runtime = library.trt.Runtime(library.logger)
        except TypeError as error:  # what the bindings make of a null pointer
            raise ModelLoadError(f"{path}: TensorRT {library.version} can't start on {device.label}") from error
        self._runtime.error_recorder = self._recorder
        if host_code:
            self._runtime.engine_host_code_allowed = True
        with _deserializing:
            self.engine = self._runtime.deserialize_cuda_engine(data)
        if self.engine is None:
            if self._errors.no_memory():
                raise OutOfMemory(f"{path}: no memory on {device.label} for its weights: {self._errors.take()}")
            raise ModelLoadError(f"{path}: TensorRT {library.version} can't load it: {self._errors.take()}")
        self.engine.error_recorder = self._recorder
        self.inputs, self.outputs = self._tensors()
        self.profiles = self._profiles()

    def spec(self, *, batched: bool | None) -> ModelSpec:
        """What it takes and gives.

        Args:
            batched: Whether dimension 0 is the batch, if that is known; else it is judged by the profiles.
        """
        spec = ModelSpec(inputs=self.inputs, outputs=self.outputs, batched=False)
        return replace(spec, batched=profiles.batched(spec, self.profiles) if batched is None else batched)

    def context(self) -> Any:
        """Makes an execution context whose memory its user gives.

        Raises:
            ModelLoadError: TensorRT does not make one.
            OutOfMemory: The device has no memory for it.
        """
        strategy = self.library.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.device.use()
        context = self.engine.create_execution_context(strategy)
        if context is None:
            if self._errors.no_memory():
                raise OutOfMemory(f"{self._path}: no memory on {self.device.label} for one more instance")
            raise ModelLoadError(f"{self._path}: TensorRT makes no context for it: {self._errors.take()}")
        return context

    def context_memory(self) -> int:
        """Bytes that a context needs in whichever profile."""
        sizes = [self.engine.get_device_memory_size_for_profile_v2(index) for index in range(len(self.profiles))]
        return int(max(sizes))

    def close(self) -> None:
        """Lets go of the engine, then of the runtime; all contexts are gone."""
        self.engine = None
        self._runtime = None
        self._recorder = None

    def _tensors(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        trt, engine = self.library.trt, self.engine
        found: dict[Any, list[TensorSpec]] = {trt.TensorIOMode.INPUT: [], trt.TensorIOMode.OUTPUT: []}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            mode = engine.get_tensor_mode(name)
            kind = "input" if mode == trt.TensorIOMode.INPUT else "output"
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE or engine.is_shape_inference_io(name):
                raise ModelLoadError(
                    f"{self._path}: the {kind} {name!r} is a shape, which TensorRT wants in host memory; that can't be "
                    "served"
                )
            data_type = data_type_of(engine.get_tensor_dtype(name), kind, name, self._path)
            found[mode].append(TensorSpec(name=name, data_type=data_type, shape=tuple(engine.get_tensor_shape(name))))
        if not found[trt.TensorIOMode.INPUT]:
            raise ModelLoadError(f"{self._path}: it has no inputs")
        return tuple(found[trt.TensorIOMode.INPUT]), tuple(found[trt.TensorIOMode.OUTPUT])

    def _profiles(self) -> Sequence[Profile]:
        return [
            tuple(
                Range(*(tuple(shape) for shape in self.engine.get_tensor_profile_shape(tensor.name, index)))
                for tensor in self.inputs
            )
            for index in range(self.engine.num_optimization_profiles)
        ]


def data_type_of(dtype: Any, kind: str, name: str, path: Path) -> DataType:
    """The contract's type of one of TensorRT's.

    Raises:
        ModelLoadError: The contract has no such type.
    """
    data_type = TYPES.get(dtype.name)
    if data_type is None:
        raise ModelLoadError(f"{path}: the {kind} {name!r} is of the type {dtype.name}, which can't be served")
    return data_type
