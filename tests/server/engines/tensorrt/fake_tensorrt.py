"""A module that behaves like TensorRT's bindings: their classes, names and arguments, over a make-believe device.

What loads and runs plans is held to the real lean bindings by `test_bindings.py`: every class, method, argument and
enumeration here that they have, too, must be as theirs. What builds plans follows NVIDIA's documentation, because the
lean bindings lack it.

A plan is a line of JSON with the ONNX file behind it, and a checksum; a run evaluates that with onnx's reference
implementation, when the device comes to it. The module is strict where TensorRT would crash or do something undefined.
"""

import enum
import hashlib
import json
import math
import threading
from types import ModuleType

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

MAGIC = b"plan "
TIMINGS = b"timings "


class Crash(BaseException):
    """What would have ended the process."""


class DataType(enum.IntEnum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    BF16 = 7
    INT64 = 8


NUMPY = {
    DataType.FLOAT: np.dtype("<f4"),
    DataType.HALF: np.dtype("<f2"),
    DataType.INT8: np.dtype("i1"),
    DataType.INT32: np.dtype("<i4"),
    DataType.BOOL: np.dtype("?"),
    DataType.UINT8: np.dtype("u1"),
    DataType.FP8: np.dtype(ml_dtypes.float8_e4m3fn),
    DataType.BF16: np.dtype(ml_dtypes.bfloat16),
    DataType.INT64: np.dtype("<i8"),
}
ONNX = {
    TensorProto.FLOAT: DataType.FLOAT,
    TensorProto.FLOAT16: DataType.HALF,
    TensorProto.INT8: DataType.INT8,
    TensorProto.INT32: DataType.INT32,
    TensorProto.BOOL: DataType.BOOL,
    TensorProto.UINT8: DataType.UINT8,
    TensorProto.FLOAT8E4M3FN: DataType.FP8,
    TensorProto.BFLOAT16: DataType.BF16,
    TensorProto.INT64: DataType.INT64,
}


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class ErrorCodeTRT(enum.IntEnum):
    SUCCESS = 0
    UNSPECIFIED_ERROR = 1
    INTERNAL_ERROR = 2
    INVALID_ARGUMENT = 3
    INVALID_CONFIG = 4
    FAILED_ALLOCATION = 5
    FAILED_INITIALIZATION = 6
    FAILED_EXECUTION = 7
    FAILED_COMPUTATION = 8
    INVALID_STATE = 9
    UNSUPPORTED_STATE = 10


class ExecutionContextAllocationStrategy(enum.IntEnum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2


class BuilderFlag(enum.IntEnum):
    TF32 = 7
    VERSION_COMPATIBLE = 12
    EXCLUDE_LEAN_RUNTIME = 13


class HardwareCompatibilityLevel(enum.Enum):
    NONE = 0
    AMPERE_PLUS = 1


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def log(self, severity, msg):
        raise NotImplementedError


class IErrorRecorder:
    def report_error(self, arg0, arg1):
        raise NotImplementedError


class IOutputAllocator:
    pass


class IProgressMonitor:
    pass


class Reporting:
    """An object with an error recorder; without one its errors go to the logger."""

    def __init__(self, logger, recorder=None):
        self._logger = logger
        self.error_recorder = recorder

    def _report(self, code, text):
        if self.error_recorder is not None:
            assert self.error_recorder.report_error(code, text) is True
        else:
            self._logger.log(ILogger.Severity.ERROR, text)


class Machine:
    """The make-believe computer: its GPU, what happened on it, and what is to go wrong.

    Args:
        device: The fake device.
        version: Of the module; the lean one's is the same.
    """

    def __init__(self, device, version="10.16.1.11"):
        self.device = device
        self.version = version
        self.log = []
        """What was made and let go of, in order."""
        self.builds = 0
        self.failures = {}
        """Name of a call -> (code, text) to report, and to fail with, once."""
        self.at_step = None
        """Called with each step of a build."""
        self.seconds = 1e-3
        """How long a run takes on the device."""
        self.activations = 1 << 20
        """Bytes that a context needs in profile 0; in each further one as much more."""
        self.deserializing = threading.Lock()
        self.builder_told = {}

    def stream(self, handle):
        """The stream of a handle."""
        for stream in self.device._streams:
            if stream.handle == handle:
                return stream
        raise Crash(f"no stream {handle}")

    def fails(self, call, owner):
        """Whether a call is to fail; the error has been reported then."""
        if threading.current_thread().name not in self.device.users:
            raise Crash(f"{call} in a thread that has not said which device it uses")
        if call not in self.failures:
            return False
        owner._report(*self.failures.pop(call))
        return True


class Graph:
    """What there is in an ONNX file, as TensorRT sees it."""

    def __init__(self, data):
        self.model = onnx.load_model_from_string(data)
        onnx.checker.check_model(self.model)
        self.model = onnx.shape_inference.infer_shapes(self.model)
        made = {name for node in self.model.graph.node for name in node.output}
        weights = {tensor.name for tensor in self.model.graph.initializer}
        self.inputs = [info for info in self.model.graph.input if info.name not in weights]
        self.outputs = list(self.model.graph.output)
        self.evaluator = ReferenceEvaluator(self.model)
        assert made

    @staticmethod
    def dimensions(info):
        """Numbers, and names (or None) of free dimensions."""
        return [
            dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)
            for dim in info.type.tensor_type.shape.dim
        ]

    @classmethod
    def shape(cls, info):
        return tuple(dim if isinstance(dim, int) else -1 for dim in cls.dimensions(info))

    @staticmethod
    def dtype(info):
        return ONNX[info.type.tensor_type.elem_type]

    def output_shapes(self, shapes):
        """The outputs' shapes for such inputs; -1 where they depend on data."""
        known = {
            dim: length
            for info in self.inputs
            for dim, length in zip(self.dimensions(info), shapes[info.name], strict=True)
        }
        return {
            info.name: tuple(dim if isinstance(dim, int) else known.get(dim, -1) for dim in self.dimensions(info))
            for info in self.outputs
        }


def seal(header, onnx_bytes):
    """The bytes of a plan."""
    body = json.dumps(header).encode() + b"\n" + onnx_bytes
    return MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def make_module(machine, *, lean):  # noqa: C901  # a module is a list of classes
    """The module without what builds plans; its classes know the machine."""
    trt = ModuleType("tensorrt_lean" if lean else "tensorrt")

    class IExecutionContext(Reporting):
        def __init__(self, engine, strategy):
            super().__init__(engine._logger, engine.error_recorder)
            self._engine = engine
            self._strategy = strategy
            self._memory = None if strategy == ExecutionContextAllocationStrategy.USER_MANAGED else (1, 1 << 60)
            self._profile = 0 if len(engine._profiles) == 1 else None
            self._shapes = {}
            self._addresses = {}
            self._allocators = {}
            self._busy = threading.Lock()
            self._changes = 0
            self._last_run = None

        def __del__(self):
            machine.log.append("context gone")

        def set_device_memory(self, memory, size):
            assert memory % 256 == 0
            self._memory = memory, size

        def set_optimization_profile_async(self, profile_index, stream_handle):
            if stream_handle == 0:
                raise Crash("the default stream")
            if machine.fails("set_optimization_profile_async", self):
                raise RuntimeError("Error in set optimization profile async.")
            self._profile = profile_index
            self._shapes = {}
            return True

        def set_input_shape(self, name, shape):
            if self._profile is None:
                raise Crash("no profile is selected")
            if machine.fails("set_input_shape", self):
                return False
            least, _, most = self._engine._profiles[self._profile][name]
            if len(shape) != len(least) or any(
                not low <= length <= high for low, length, high in zip(least, shape, most, strict=True)
            ):
                self._report(ErrorCodeTRT.INVALID_ARGUMENT, f"{name}: {list(shape)} is outside profile {self._profile}")
                return False
            self._shapes[name] = tuple(shape)
            self._changes += 1
            return True

        def infer_shapes(self):
            return [info.name for info in self._engine._graph.inputs if info.name not in self._shapes]

        def get_tensor_shape(self, name):
            if name in self._shapes:
                return self._shapes[name]
            return self._engine._graph.output_shapes(self._shapes)[name]

        def set_tensor_address(self, name, memory):
            if machine.fails("set_tensor_address", self):
                return False
            assert memory % 256 == 0
            self._addresses[name] = memory
            self._changes += 1
            return True

        def set_output_allocator(self, name, output_allocator):
            self._allocators[name] = output_allocator
            return True

        def execute_async_v3(self, stream_handle):
            if stream_handle == 0:
                raise Crash("the default stream")
            if not self._busy.acquire(blocking=False):
                raise Crash("two threads use one context")
            try:
                return self._enqueue(stream_handle)
            finally:
                self._busy.release()

        def _enqueue(self, handle):
            engine = self._engine
            if machine.fails("execute_async_v3", self):
                return False
            needed = engine.get_device_memory_size_for_profile_v2(self._profile)
            if self._memory is None or self._memory[1] < needed:
                self._report(ErrorCodeTRT.INVALID_STATE, "no device memory")
                return False
            shapes = dict(self._shapes)
            if self.infer_shapes():
                self._report(ErrorCodeTRT.INVALID_STATE, "shapes are missing")
                return False
            graph = engine._graph
            inputs = {info.name: (self._addresses[info.name], shapes[info.name]) for info in graph.inputs}
            if self._allocators:
                return self._run_allocated(handle, inputs)
            outputs = {info.name: self._addresses[info.name] for info in graph.outputs}
            known = graph.output_shapes(shapes)

            stream = machine.stream(handle)
            captured, changes = stream.captured is not None, self._changes
            if captured and self._last_run != (shapes, dict(self._addresses)):
                self._report(ErrorCodeTRT.FAILED_EXECUTION, "operation not permitted when stream is capturing")
                return False
            self._last_run = shapes, dict(self._addresses)

            def run():
                if captured and changes != self._changes:
                    raise Crash("a graph of a context that was changed since")
                for name, value in engine._evaluate(inputs).items():
                    machine.device.view(outputs[name], value.nbytes)[:] = value.reshape(-1).view(np.uint8)

            reads = [(address, engine._size(name, shape)) for name, (address, shape) in inputs.items()]
            writes = [(address, engine._size(name, known[name])) for name, address in outputs.items()]
            stream.compute(machine.seconds, run, reads=reads, writes=[*writes, (self._memory[0], needed)])
            return True

        def _run_allocated(self, handle, inputs):
            """As TensorRT does it: it waits for the device, then asks for memory, then says the shape."""
            stream = machine.stream(handle)
            if stream.captured is not None:
                self._report(ErrorCodeTRT.FAILED_EXECUTION, "operation not permitted when stream is capturing")
                return False
            engine = self._engine
            stream.synchronize()
            values = engine._evaluate(inputs)
            for info in engine._graph.outputs:
                value = values[info.name]
                allocator = self._allocators[info.name]
                address = allocator.reallocate_output_async(info.name, 0, value.nbytes, 256, handle)
                if not address:
                    self._report(ErrorCodeTRT.FAILED_EXECUTION, f"no memory for {info.name}")
                    return False
                allocator.notify_shape(info.name, value.shape)

                def write(value=value, address=address):
                    machine.device.view(address, value.nbytes)[:] = value.reshape(-1).view(np.uint8)

                stream.compute(machine.seconds, write, reads=[], writes=[(address, value.nbytes)])
            return True

    class ICudaEngine(Reporting):
        def __init__(self, runtime, header, onnx_bytes):
            super().__init__(runtime._logger, runtime.error_recorder)
            self._runtime = runtime
            self._header = header
            self._graph = Graph(onnx_bytes)
            self._profiles = [
                {name: tuple(map(tuple, shapes)) for name, shapes in profile.items()} for profile in header["profiles"]
            ] or [{info.name: (Graph.shape(info),) * 3 for info in self._graph.inputs}]
            machine.log.append("engine")

        def __del__(self):
            machine.log.append("engine gone")

        num_io_tensors = property(lambda self: len(self._graph.inputs) + len(self._graph.outputs))
        num_optimization_profiles = property(lambda self: len(self._profiles))

        def _info(self, name):
            return next(info for info in (*self._graph.inputs, *self._graph.outputs) if info.name == name)

        def get_tensor_name(self, index):
            return [*self._graph.inputs, *self._graph.outputs][index].name

        def get_tensor_mode(self, name):
            inputs = {info.name for info in self._graph.inputs}
            return TensorIOMode.INPUT if name in inputs else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name):
            return Graph.dtype(self._info(name))

        def get_tensor_shape(self, name):
            return Graph.shape(self._info(name))

        def get_tensor_location(self, name):
            return TensorLocation.HOST if name in self._header.get("host", ()) else TensorLocation.DEVICE

        def is_shape_inference_io(self, name):
            return name in self._header.get("host", ())

        def get_tensor_profile_shape(self, name, profile_index):
            return list(self._profiles[profile_index][name])

        def get_device_memory_size_for_profile_v2(self, profile_index):
            return machine.activations * (profile_index + 1)

        def create_execution_context(self, strategy=ExecutionContextAllocationStrategy.STATIC):
            if machine.fails("create_execution_context", self):
                return None
            machine.log.append("context")
            return IExecutionContext(self, strategy)

        def _size(self, name, shape):
            return NUMPY[self.get_tensor_dtype(name)].itemsize * math.prod(shape)

        def _evaluate(self, inputs):
            feed = {}
            for name, (address, shape) in inputs.items():
                data = machine.device.view(address, self._size(name, shape)).copy()
                feed[name] = data.view(NUMPY[self.get_tensor_dtype(name)]).reshape(shape)
            names = [info.name for info in self._graph.outputs]
            found = self._graph.evaluator.run(names, feed)
            return {
                name: np.ascontiguousarray(value, NUMPY[self.get_tensor_dtype(name)])
                for name, value in zip(names, found, strict=True)
            }

    class Runtime(Reporting):
        def __init__(self, logger):
            if machine.device is None:
                raise Crash("no driver")
            super().__init__(logger)
            assert not machine.fails("Runtime", self)
            self.engine_host_code_allowed = False
            machine.log.append("runtime")

        def __del__(self):
            machine.log.append("runtime gone")

        def deserialize_cuda_engine(self, serialized_engine):
            if not machine.deserializing.acquire(blocking=False):
                raise Crash("two at a time")
            try:
                return self._deserialize(bytes(serialized_engine))
            finally:
                machine.deserializing.release()

        def _deserialize(self, data):
            if machine.fails("deserialize_cuda_engine", self):
                return None
            begin = len(MAGIC) + 65
            body = data[begin:]
            if data[: len(MAGIC)] != MAGIC or hashlib.sha256(body).hexdigest().encode() != data[len(MAGIC) : begin - 1]:
                raise Crash("a damaged plan")
            line, _, onnx_bytes = body.partition(b"\n")
            header = json.loads(line)
            if lean and not header["version_compatible"]:
                self._report(ErrorCodeTRT.INTERNAL_ERROR, "Unexpected call to stub loadRunner for ReformatRunner")
                return None
            if not lean and header["version_compatible"] and not self.engine_host_code_allowed:
                self._report(ErrorCodeTRT.INVALID_CONFIG, "host code is not allowed")
                return None
            if not header["version_compatible"] and header["version"] != machine.version:
                raise Crash("a plan of another version")
            if header["hardware"] == "NONE" and tuple(header["capability"]) != machine.device.compute_capability:
                raise Crash("a plan for another GPU")
            return ICudaEngine(self, header, onnx_bytes)

    for shared in (
        DataType,
        TensorIOMode,
        TensorLocation,
        ErrorCodeTRT,
        ExecutionContextAllocationStrategy,
        ILogger,
        IErrorRecorder,
        IOutputAllocator,
        Runtime,
        ICudaEngine,
        IExecutionContext,
    ):
        setattr(trt, shared.__name__, shared)
    trt.__version__ = machine.version
    return trt
