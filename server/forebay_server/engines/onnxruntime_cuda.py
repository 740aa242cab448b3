"""ONNX Runtime on an NVIDIA GPU: a session of its own for each instance, on our stream and in our buffers.

Inputs and outputs are bound by address, and a run only enqueues: see `onnxruntime_computation`. Memory has a limit, for
our buffers and again for each session's arena. TensorRT, as ONNX Runtime's provider, is an option where its libraries
are.

CUDA graphs, the option `graphs`:

* `stream` (default): the data path captures what a run enqueues on our stream, thread-local, and launches it without
  ONNX Runtime. The session is made with `enable_cuda_graph` all the same: it then refuses models that have parts on the
  CPU, and keeps nothing in a run that a graph must not hold; `gpu_graph_id` is -1, which keeps its own capture out.
* `session`: ONNX Runtime captures and launches, by `gpu_graph_id`: what it documents. It keeps graphs per thread, so
  all runs are made in one thread of ours; it captures in global mode, in which other threads must not allocate on the
  device; and each launch waits for its end, so that no copies overlap it.
* `none`.

A model that is refused with graphs (parts on the CPU, control flow) runs without, and the log says why.

What is said here of ONNX Runtime was read in its source (`cuda_graph.cc`, `cuda_execution_provider.cc`, up to 1.31).
Called by `engines.onnxruntime`.
"""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import structlog

from forebay_server.engines.base import Instance, ModelLoadError, ParameterValue
from forebay_server.engines.gpu import room
from forebay_server.engines.gpu.device import Device, Stream
from forebay_server.engines.gpu.graphs import MOST
from forebay_server.engines.gpu.pipeline import GpuInstance
from forebay_server.engines.gpu.pool import Budget
from forebay_server.engines.gpu.preparation import Preparer
from forebay_server.engines.onnxruntime_computation import RecordingComputation, SessionComputation
from forebay_server.engines.options import Options
from forebay_server.engines.preparation import Preparation
from forebay_server.tensors import DataType, ModelSpec

CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
GRAPHS: Final = ("stream", "session", "none")

_log = structlog.get_logger(__name__)


class CudaSessions:
    """The sessions of one model on one device, and the instances around them. Called as the engine is.

    Args:
        device: Where; closed with this.
        memory: The most bytes for buffers, and again for each session's arena; 0: what there is.
    """

    def __init__(self, device: Device, memory: int) -> None:
        self._device = device
        self._memory = memory
        self._budget = Budget(memory)
        self._onnxruntime: Any = None
        self._depth = 2
        self._cuda_options: dict[str, str] = {}
        self._tensorrt_options: dict[str, str] | None = None
        self._make_session: Callable[[Sequence[Any]], Any] = _unread
        self._first: tuple[Any, Stream] | None = None
        self._preparer = Preparer(device, self._budget)
        self.graphs = GRAPHS[0]
        """How runs are captured: one of `GRAPHS`."""

    def read(self, onnxruntime: Any, providers: Sequence[str], options: Options) -> None:
        """Reads the options that only hold on a GPU.

        Raises:
            ModelLoadError: One is wrong.
        """
        if list(providers) not in ([CUDA], [TENSORRT, CUDA]):
            raise ModelLoadError(f"engine option 'providers': on a GPU {CUDA!r}, or {f'{TENSORRT},{CUDA}'!r}")
        self._onnxruntime = onnxruntime
        self._depth = options.take("depth", 2)
        self.graphs = options.take("graphs", GRAPHS[0])
        if self.graphs not in GRAPHS:
            raise ModelLoadError(f"engine option 'graphs' must be one of {', '.join(GRAPHS)}, not {self.graphs!r}")
        if self._depth < 1:
            raise ModelLoadError(f"engine option 'depth' must be at least 1, not {self._depth}")
        self._cuda_options = _as_written(options.take_prefixed("cuda."))
        tensorrt = _as_written(options.take_prefixed("tensorrt."))
        self._tensorrt_options = tensorrt if TENSORRT in providers else None

    def open_first(self, make_session: Callable[[Sequence[Any]], Any]) -> Any:
        """Opens a session, which tells the specification and then is the first instance's.

        Args:
            make_session: Opens one, given its providers and their options.

        Raises:
            ModelLoadError: It would not run on the GPU.
            Exception: Whatever ONNX Runtime raises.
        """
        preload(self._onnxruntime)
        self._make_session = make_session
        try:
            self._first = self._open()
        except ModelLoadError:
            raise
        except Exception as error:  # that it refuses graphs, it says in a sentence only
            if self.graphs == "none":
                raise
            refused = self.graphs
            self.graphs = "none"
            self._first = self._open()
            _log.warning("runs are not captured", graphs=refused, because=" ".join(str(error).split()))
        return self._first[0]

    def check_spec(self, spec: ModelSpec) -> None:
        """Whether a model's tensors can be on a GPU.

        Raises:
            ModelLoadError: One can't.
        """
        for tensor in (*spec.inputs, *spec.outputs):
            if tensor.data_type is DataType.BYTES:
                raise ModelLoadError(f"{tensor.name!r} is text, which ONNX Runtime does not take on a GPU")

    def prepare(self, preparations: Sequence[Preparation | None]) -> bool:
        """Lets the device prepare inputs, if it can."""
        return self._preparer.prepare(preparations)

    def instance(self, spec: ModelSpec, shapes: Mapping[str, Sequence[Sequence[int]]], rows: int) -> Instance:
        """Makes an instance around a session of its own, with room for its largest batches.

        Args:
            spec: The model's.
            shapes: Its buckets, as the owner has set them.
            rows: The most rows in a batch.
        """
        session, stream = self._first or self._open()
        self._first = None
        form = RecordingComputation if self.graphs == "session" else SessionComputation
        computation, sent = self._preparer.around(form(self._onnxruntime, session, spec, device=self._device), spec)
        instance = GpuInstance(
            self._device,
            computation,
            sent,
            depth=self._depth,
            budget=self._budget,
            graphs=0 if self.graphs == "none" else MOST,
            stream=stream,
        )
        room.make(instance, self._preparer, spec, shapes, rows)
        return instance

    def close(self) -> None:
        """Lets go of a session that no instance has, and of the device."""
        if self._first is not None:
            stream = self._first[1]
            self._first = None  # the session goes before its stream
            stream.close()
        self._device.close()

    def _open(self) -> tuple[Any, Stream]:
        self._device.use()
        stream = self._device.stream()
        providers = provider_options(
            self._device.index,
            stream.handle,
            memory=self._memory,
            graphs=self.graphs,
            cuda=self._cuda_options,
            tensorrt=self._tensorrt_options,
        )
        try:
            session = self._make_session(providers)
            check_providers(session, providers[0][0])
        except BaseException:
            stream.close()
            raise
        return session, stream


def provider_options(
    index: int, stream: int, *, memory: int, graphs: str, cuda: Mapping[str, str], tensorrt: Mapping[str, str] | None
) -> list[tuple[str, dict[str, str]]]:
    """The execution providers of a session and their options.

    Args:
        index: The device's.
        stream: Handle of the stream that it enqueues to.
        memory: The most bytes of its arena; 0: what there is.
        graphs: One of `GRAPHS`.
        cuda: The owner's options for the CUDA provider, which are stronger.
        tensorrt: The owner's options for the TensorRT provider; None: it is not used.
    """
    ours = {"device_id": str(index), "has_user_compute_stream": "1", "user_compute_stream": str(stream)}
    options = {
        **ours,
        "use_tf32": "0",  # rows of FP32 models would differ by their batch, far beyond rounding
        "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE tries all, for each new shape
        "enable_cuda_graph": str(int(graphs != "none")),
    }
    if memory:
        options["gpu_mem_limit"] = str(memory)
    providers = [(CUDA, {**options, **cuda})]
    if tensorrt is not None:
        providers.insert(0, (TENSORRT, {**ours, **tensorrt}))
    return providers


def preload(onnxruntime: Any) -> None:
    """Loads the CUDA libraries that lie in Python packages (torch's, say); what is missing, ONNX Runtime will name."""
    load = getattr(onnxruntime, "preload_dlls", None)  # from 1.21
    if load is not None:
        with contextlib.redirect_stdout(io.StringIO()):
            load()


def check_providers(session: Any, wanted: str) -> None:
    """Whether a session runs on what was wanted: ONNX Runtime goes on without a provider that it can't load.

    Raises:
        ModelLoadError: It does not.
    """
    if wanted not in session.get_providers():
        raise ModelLoadError(
            f"ONNX Runtime can't load its {wanted} here: a CUDA, cuDNN or TensorRT library is missing or of another "
            "version (onnxruntime-gpu, the libraries and the driver must fit together)"
        )


def _unread(_providers: Sequence[Any]) -> Any:
    raise RuntimeError("instance() before load()")


def _as_written(options: Mapping[str, ParameterValue]) -> dict[str, str]:
    """Options as ONNX Runtime reads them."""
    return {name: str(int(value) if isinstance(value, bool) else value) for name, value in options.items()}
