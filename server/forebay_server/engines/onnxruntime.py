"""The onnxruntime engine: ONNX files on the CPU, on an NVIDIA GPU, or on what other execution providers reach.

On a GPU (`engine.devices`) it is another matter: see `onnxruntime_cuda`. Elsewhere one session serves all instances:
ONNX Runtime allows `run` from many threads at a time, and the weights are there once. `InferenceSession.run` on numpy
views was the cheapest public way for small models: 5.3 microseconds for 32 rows of 64 floats through a linear model,
against 7.0 with an IOBinding and 38 with OrtValues (only an IOBinding to fixed buffers is cheaper, 3.1, but its two
copies eat that up). BF16 has no numpy type that `run` knows, so models with BF16 inputs or outputs go through
OrtValues.

The package `onnxruntime` is imported when the first model is loaded, not before.

Options (`[engine.options]`):

* `providers`: execution providers, comma-separated, most wanted first; `CPUExecutionProvider`, on a GPU
  `CUDAExecutionProvider`, before which `TensorrtExecutionProvider` may stand.
* `graph_optimization`: `none`, `basic`, `extended` or `all`; `all`.
* `external_data`: whether weights may lie in other files of the model's folder; false.
* `inter_op_threads`: threads that run independent nodes side by side; 1.
* `session_per_instance`: a session, with threads and weights of its own, for each instance; false.
* on a GPU `graphs` (`stream`, `session` or `none`; `stream`), `depth` (batches of an instance in flight; 2), and
  `cuda.NAME` and `tensorrt.NAME`, which are the providers' own.
* any other name with a dot is a session configuration entry of ONNX Runtime, such as `session.intra_op.allow_spinning`.
"""

import ctypes
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final

import ml_dtypes
import numpy as np

from forebay_server.engines import onnx_file, onnxruntime_cuda
from forebay_server.engines.base import (
    EngineBatch,
    EngineOptions,
    Instance,
    ModelLoadError,
    OutOfMemory,
    RejectInput,
)
from forebay_server.engines.cpu import cpu_quota, threads_per_instance
from forebay_server.engines.gpu import cuda, graphs
from forebay_server.engines.onnxruntime_computation import ONNX_BFLOAT16, lacks_memory
from forebay_server.engines.onnxruntime_cuda import CudaSessions
from forebay_server.engines.options import Options
from forebay_server.engines.preparation import Preparation
from forebay_server.tensors import FREE, Array, DataType, ModelSpec, TensorSpec

_TYPES: Final[Mapping[str, DataType]] = {
    "tensor(bool)": DataType.BOOL,
    "tensor(uint8)": DataType.UINT8,
    "tensor(uint16)": DataType.UINT16,
    "tensor(uint32)": DataType.UINT32,
    "tensor(uint64)": DataType.UINT64,
    "tensor(int8)": DataType.INT8,
    "tensor(int16)": DataType.INT16,
    "tensor(int32)": DataType.INT32,
    "tensor(int64)": DataType.INT64,
    "tensor(float16)": DataType.FP16,
    "tensor(bfloat16)": DataType.BF16,
    "tensor(float)": DataType.FP32,
    "tensor(double)": DataType.FP64,
    "tensor(string)": DataType.BYTES,
}
MOST_ROWS: Final = 128  # of a batch on a GPU, if the settings don't say


class OnnxRuntimeEngine:
    """An ONNX file."""

    suffixes: ClassVar[Sequence[str]] = (".onnx",)
    devices: ClassVar[Sequence[str]] = ("cpu", "cuda")

    name = "onnxruntime"

    def __init__(self, path: Path | str, options: EngineOptions) -> None:
        self._path = Path(path)
        self._options = options
        self._session: Any = None
        self._session_per_instance = False
        self._make_session: Any = None
        self._cuda: CudaSessions | None = None
        self._spec = ModelSpec(inputs=(), outputs=(), batched=False)
        self.version = ""
        self.device = options.device
        self.always_worker = self._on_gpu
        self.batch_sizes: Sequence[int] = ()
        self.holds_gil = False
        self.gives_way = False
        self.max_batch_size = 0

    @property
    def _on_gpu(self) -> bool:
        return self.device.startswith("cuda:")

    def load(self) -> ModelSpec:
        """Opens the file and reads its specification. Nearly all of it runs without the GIL."""
        if self._on_gpu:  # comes before ONNX Runtime, which says less when there is none
            self._cuda = CudaSessions(cuda.open_device(int(self.device.partition(":")[2])), self._options.memory)
        onnxruntime = _import()
        self.version = onnxruntime.__version__
        options = Options(self.name, self._options.options)
        default = onnxruntime_cuda.CUDA if self._on_gpu else "CPUExecutionProvider"
        providers = self._providers(onnxruntime, options.take("providers", default))
        external_data = options.take("external_data", default=False)
        self._session_per_instance = options.take("session_per_instance", default=False) or self._on_gpu
        if self._cuda is not None:
            self._cuda.read(onnxruntime, providers, options)
        settings = self._session_options(onnxruntime, options)
        onnx_file.check_external(self._path, allowed=external_data)
        if shapeless := onnx_file.shapeless_inputs(self._path):
            raise ModelLoadError(f"{self._path}: the input {shapeless[0]!r} has no shape, not even free dimensions")

        def make_session(providers: Sequence[Any] = providers) -> Any:
            # By path, not by bytes: from bytes ONNX Runtime parses while it holds the GIL (measured on 108 MB: stalls
            # of 200-300 ms against under 3 ms). Without the fallback: it would go on without what was asked for.
            return onnxruntime.InferenceSession(str(self._path), settings, providers=providers, enable_fallback=0)

        self._make_session = make_session
        self._session = self._opened()
        self._set_device()
        self.gives_way = (
            self.device == "cpu"
            and settings.intra_op_num_threads == settings.inter_op_num_threads == 1
            and not self._session_per_instance  # each would have the weights again
        )
        try:
            self._spec = self._read_spec()
        except UnicodeDecodeError as error:
            raise ModelLoadError(f"{self._path}: a name in it is not valid text") from error
        if self._cuda is not None:
            self._session = None  # the first instance's, whose stream it must not outlive
            self._cuda.check_spec(self._spec)
            if self._cuda.graphs != "none" and self._batched:
                self.batch_sizes = graphs.ladder(self._options.batching.max_batch_size or MOST_ROWS)
        return self._spec

    def _opened(self) -> Any:
        try:
            return self._make_session() if self._cuda is None else self._cuda.open_first(self._make_session)
        except UnicodeDecodeError as error:  # ONNX Runtime's own text held bytes of a broken file
            raise ModelLoadError(f"{self._path}: not a valid ONNX model") from error
        except ModelLoadError as error:
            raise ModelLoadError(f"{self._path}: {error}") from error
        except Exception as error:
            raise ModelLoadError(f"{self._path}: ONNX Runtime can't load it: {_sentence(error)}") from error

    @property
    def _batched(self) -> bool:
        """Whether dimension 0 is the batch, as far as can be said here: the owner's word over the file's."""
        said = self._options.batching.batch_dimension
        return self._spec.batched if said == "auto" else said == "first"

    def prepare(self, inputs: Sequence[Preparation | None]) -> bool:
        """On a GPU, if the kernel for that can be compiled here."""
        return self._cuda is not None and self._cuda.prepare(inputs)

    def instance(self, index: int) -> Instance:
        """Makes an instance; the first always runs the session that `load` opened."""
        if self._cuda is not None:
            most = self._options.batching.max_batch_size or MOST_ROWS
            spec = replace(self._spec, batched=self._batched)
            return self._cuda.instance(spec, self._options.buckets.shapes, most)
        session = self._make_session() if self._session_per_instance and index > 0 else self._session
        types = {tensor.data_type for tensor in (*self._spec.inputs, *self._spec.outputs)}
        if DataType.BF16 in types:
            return _OrtValueInstance(session, self._spec)
        if DataType.BYTES in types:
            return _TextInstance(session, self._spec)
        return _Instance(session, self._spec)

    def close(self) -> None:
        """Drops the session."""
        self._session = self._make_session = None
        if self._cuda is not None:
            self._cuda.close()
            self._cuda = None

    def _providers(self, onnxruntime: Any, text: str) -> list[str]:
        wanted = [name.strip() for name in text.split(",") if name.strip()]
        available = onnxruntime.get_available_providers()
        if not self._on_gpu and {onnxruntime_cuda.CUDA, onnxruntime_cuda.TENSORRT} & set(wanted):
            raise ModelLoadError('engine.devices says where it runs: with ["cuda"], on the GPU')
        for name in wanted:
            if name not in available:
                raise ModelLoadError(f"ONNX Runtime has no {name!r} here; it has {', '.join(available)}")
        return wanted

    def _session_options(self, onnxruntime: Any, options: Options) -> Any:
        settings = onnxruntime.SessionOptions()
        levels = onnxruntime.GraphOptimizationLevel
        names = {
            "none": levels.ORT_DISABLE_ALL,
            "basic": levels.ORT_ENABLE_BASIC,
            "extended": levels.ORT_ENABLE_EXTENDED,
            "all": levels.ORT_ENABLE_ALL,
        }
        level = options.take("graph_optimization", "all")
        if level not in names:
            raise ModelLoadError(f"engine option 'graph_optimization' must be one of {', '.join(names)}, not {level!r}")
        settings.graph_optimization_level = names[level]
        instances = self._options.instances
        threads = threads_per_instance(self._options.threads, instances, cpu_quota())
        # The thread that calls `run` works as well, so a session shared by n instances of t threads needs (t - 1) n in
        # its pool, and the number that ONNX Runtime wants counts one caller.
        settings.intra_op_num_threads = threads if self._session_per_instance else (threads - 1) * instances + 1
        settings.inter_op_num_threads = options.take("inter_op_threads", 1)
        if settings.inter_op_num_threads > 1:
            settings.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        settings.log_severity_level = 4  # what goes wrong comes as an exception, whose text we log
        # Spinning threads would take the time of other instances, of the front end and of the dispatcher.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
        entries = options.rest()
        for name in [name for name in entries if "." in name]:
            value = entries.pop(name)
            settings.add_session_config_entry(name, str(int(value) if isinstance(value, bool) else value))
        if entries:
            raise ModelLoadError(
                f"the engine {self.name!r} has no option {', '.join(sorted(entries))}; "
                f"it has {', '.join(options.known)} and session entries with a dot in their name"
            )
        return settings

    def _set_device(self) -> None:
        provider = self._session.get_providers()[0]
        if not self._on_gpu and provider != "CPUExecutionProvider":
            self.device = provider.removesuffix("ExecutionProvider").lower() + ":0"
            self.always_worker = True

    def _read_spec(self) -> ModelSpec:
        arguments = (*self._session.get_inputs(), *self._session.get_outputs())
        inputs = tuple(self._tensor("input", argument) for argument in self._session.get_inputs())
        outputs = tuple(self._tensor("output", argument) for argument in self._session.get_outputs())
        if not inputs:
            raise ModelLoadError(f"{self._path}: it has no inputs")
        # A free dimension has a symbol (text) or none; the batch is the first one if it is free everywhere and no two
        # symbols differ.
        first = [argument.shape[0] if argument.shape else 0 for argument in arguments]
        symbols = {dimension for dimension in first if isinstance(dimension, str)}
        batched = not any(isinstance(dimension, int) for dimension in first) and len(symbols) <= 1
        types = {tensor.data_type for tensor in (*inputs, *outputs)}
        if {DataType.BF16, DataType.BYTES} <= types:
            raise ModelLoadError(f"{self._path}: it has BF16 and string tensors together, which can't be served")
        return ModelSpec(inputs=inputs, outputs=outputs, batched=batched)

    def _tensor(self, kind: str, argument: Any) -> TensorSpec:
        data_type = _TYPES.get(argument.type)
        if data_type is None:
            raise ModelLoadError(
                f"{self._path}: the {kind} {argument.name!r} is of the type {argument.type}, which can't be served"
            )
        shape = tuple(dimension if isinstance(dimension, int) else FREE for dimension in argument.shape)
        return TensorSpec(name=argument.name, data_type=data_type, shape=shape)


class _Instance:
    """Runs batches whose types are all numpy's own."""

    def __init__(self, session: Any, spec: ModelSpec) -> None:
        self._run = session.run
        self._inputs = [tensor.name for tensor in spec.inputs]
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._only_input = self._inputs[0] if len(self._inputs) == 1 else None

    def stage(self, shapes: Sequence[tuple[int, ...]]) -> None:  # the port's name
        """Any memory will do."""

    def infer(self, batch: EngineBatch) -> Sequence[Array]:
        """Runs a batch; ONNX Runtime reads the inputs where they are and gives out memory of its own."""
        name = self._only_input
        feed = {name: batch.inputs[0]} if name is not None else dict(zip(self._inputs, batch.inputs, strict=True))
        try:
            outputs: Sequence[Array] = self._run(self._outputs, feed)
        except Exception as error:
            if lacks_memory(error):
                raise OutOfMemory from error
            raise
        return outputs

    def close(self) -> None:
        """The session is the engine's."""


class _TextInstance(_Instance):
    """Runs batches with BYTES tensors: ONNX strings are UTF-8 text."""

    def __init__(self, session: Any, spec: ModelSpec) -> None:
        super().__init__(session, spec)
        self._spec = spec

    def infer(self, batch: EngineBatch) -> Sequence[Array]:
        """Runs a batch. An element that is not UTF-8 is refused with its row."""
        inputs = [
            self._decoded(tensor, array) if tensor.data_type is DataType.BYTES else array
            for tensor, array in zip(self._spec.inputs, batch.inputs, strict=True)
        ]
        outputs = super().infer(EngineBatch(inputs, batch.rows, batch.parameters))
        return [
            _encoded(array) if tensor.data_type is DataType.BYTES else array
            for tensor, array in zip(self._spec.outputs, outputs, strict=True)
        ]

    def _decoded(self, tensor: TensorSpec, array: Array) -> Array:
        texts = np.empty(array.shape, np.object_)
        flat = texts.reshape(-1)
        for position, element in enumerate(array.reshape(-1).tolist()):
            try:
                flat[position] = element.decode()
            except UnicodeDecodeError as error:
                per_row = max(1, array.size // array.shape[0]) if self._spec.batched else array.size
                raise RejectInput(
                    f"the input {tensor.name!r} holds an element that is not UTF-8 text", [position // per_row]
                ) from error
        return texts


class _OrtValueInstance(_Instance):
    """Runs batches with BF16 tensors, which only OrtValues can carry."""

    def __init__(self, session: Any, spec: ModelSpec) -> None:
        super().__init__(session, spec)
        self._run_values = session.run_with_ort_values
        self._make_value = _import().OrtValue
        self._spec = spec

    def infer(self, batch: EngineBatch) -> Sequence[Array]:
        """Runs a batch."""
        values = {}
        for tensor, array in zip(self._spec.inputs, batch.inputs, strict=True):
            if tensor.data_type is DataType.BF16:
                value = self._make_value.ortvalue_from_numpy_with_onnx_type(array, ONNX_BFLOAT16)
            else:
                value = self._make_value.ortvalue_from_numpy(array)
            values[tensor.name] = value
        try:
            outputs = self._run_values(self._outputs, values)
        except Exception as error:
            if lacks_memory(error):
                raise OutOfMemory from error
            raise
        return [
            _bfloat16(value) if tensor.data_type is DataType.BF16 else value.numpy()
            for tensor, value in zip(self._spec.outputs, outputs, strict=True)
        ]


def _bfloat16(value: Any) -> Array:
    """A copy of the elements: the OrtValue's memory goes with it."""
    shape = tuple(value.shape())
    data = ctypes.string_at(value.data_ptr(), 2 * int(np.prod(shape, dtype=np.int64)))
    array: Array = np.frombuffer(data, ml_dtypes.bfloat16).reshape(shape)
    return array


def _encoded(array: Array) -> Array:
    encoded = np.empty(array.shape, np.object_)
    flat = encoded.reshape(-1)
    flat[:] = [element.encode() for element in array.reshape(-1).tolist()]
    return encoded


def _sentence(error: Exception) -> str:
    """ONNX Runtime's text in one line, printable, without its preamble."""
    text = " ".join(str(error).split())
    text = text.rpartition("] : ")[2] if text.startswith("[ONNXRuntimeError]") else text
    return "".join(character if character.isprintable() else "?" for character in text)[:500] or type(error).__name__


_import_lock = threading.Lock()


def _import() -> Any:
    """The package, quiet: what it would print comes as exceptions, and its maker is told nothing.

    At its import the telemetry client that comes with it (1.31) writes into the user's cache folder, unless it is told
    not to. An operator who has set the variable is obeyed.
    """
    with _import_lock:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime  # noqa: PLC0415  # heavy: only where a model needs it
        except ImportError as error:
            raise ModelLoadError(f"onnxruntime is not installed (pip install 'forebay[onnx]'): {error}") from error
        onnxruntime.set_default_logger_severity(4)
    return onnxruntime
