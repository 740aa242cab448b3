"""The port of `device` on NVIDIA's runtime, through `cuda.bindings.runtime`: 0.3 us a call, and without the GIL.

`devices` comes before everything else: other libraries crash the process where there is no driver. A device is one
object for all of the process (`open_device`), because its death is: the first call that meets a sticky error marks it,
and from then on every call says `EngineDead` at once, from whatever engine. Nothing is reset: a context that is broken
is given up with the process.

The package is imported here when it is first needed.
"""

import ctypes
import threading
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import structlog

from forebay_server.engines.base import EngineDead, OutOfMemory
from forebay_server.engines.gpu import faults
from forebay_server.engines.gpu.device import CaptureFailed, DeviceError, Event, Graph, NoDevice
from forebay_server.tensors import Array

_STREAM_NON_BLOCKING: Final = 0x01  # cudaStreamNonBlocking
_EVENT_BLOCKING_SYNC: Final = 0x01  # cudaEventBlockingSync: whoever waits sleeps
_EVENT_DISABLE_TIMING: Final = 0x02  # cudaEventDisableTiming
_HOST_ALLOC_PORTABLE: Final = 0x01  # cudaHostAllocPortable: pinned for all devices

_INSUFFICIENT_DRIVER: Final = 35
_NO_DEVICE: Final = 100

_log = structlog.get_logger(__name__)
_lock = threading.Lock()
_open: dict[int, "CudaDevice"] = {}


def devices() -> int:
    """How many devices there are, at least one.

    Raises:
        NoDevice: There is none, no driver for this runtime, or the package is missing.
    """
    error, count = _runtime().cudaGetDeviceCount()
    code = int(error)
    if code == faults.SUCCESS and count:
        return int(count)
    if code in (faults.SUCCESS, _NO_DEVICE):
        raise NoDevice("there is no NVIDIA GPU here (cudaGetDeviceCount: none)")
    if code == _INSUFFICIENT_DRIVER:
        raise NoDevice(
            "there is no NVIDIA driver here, or it is older than the installed CUDA runtime needs (error 35)"
        )
    raise NoDevice(f"the NVIDIA GPUs can't be used: {_text(code)}")


def open_device(index: int) -> "CudaDevice":
    """The device of a number; `CudaDevice.close` when it is needed no more.

    Raises:
        NoDevice: There is no such device, or it is lost for this process.
    """
    count = devices()
    if not 0 <= index < count:
        raise NoDevice(f"there is no device cuda:{index}; the process sees {count} (see CUDA_VISIBLE_DEVICES)")
    with _lock:
        device = _open.get(index)
        try:
            if device is None:
                device = _open[index] = CudaDevice(index)
            device.use()
        except (EngineDead, DeviceError, OutOfMemory) as error:
            raise NoDevice(f"the device cuda:{index} can't be used: {error}") from error
        device.users += 1
        return device


def _runtime() -> Any:
    """`cuda.bindings.runtime`."""
    try:
        from cuda.bindings import runtime  # noqa: PLC0415  # heavy: only where a model needs it
    except ImportError as error:
        raise NoDevice(f"cuda-bindings is not installed (pip install 'forebay[cuda]'): {error}") from error
    return runtime


def _text(code: int) -> str:
    """An error as the runtime calls it."""
    runtime = _runtime()
    error = runtime.cudaError_t(code)
    words = [runtime.cudaGetErrorName(error)[1], runtime.cudaGetErrorString(error)[1]]
    name, sentence = (word.decode(errors="replace") if isinstance(word, bytes) else str(word) for word in words)
    return f"{name} ({code}): {sentence}"


class CudaDevice:
    """One GPU. Made by `open_device`."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.label = f"cuda:{index}"
        self.users = 0
        self.runtime = _runtime()
        self._lost = ""
        self.use()
        properties = self.call(self.runtime.cudaGetDeviceProperties, index)
        name = properties.name
        self.name = name.split(b"\0")[0].decode(errors="replace") if isinstance(name, bytes) else str(name)
        self.compute_capability = (int(properties.major), int(properties.minor))

    def call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        """Calls the runtime. What it gives beside the error: nothing, a value, or a tuple of several.

        Raises:
            OutOfMemory, EngineDead, DeviceError: See `device`.
        """
        if self._lost:
            raise EngineDead(self._lost, self.label)
        error, *values = function(*arguments)
        if error:
            self._refused(int(error), getattr(function, "__name__", "a call"))
        return values[0] if len(values) == 1 else tuple(values)

    def _refused(self, code: int, name: str) -> None:
        text = f"{self.label}: {name}: {_text(code)}"
        kind = faults.kind_of(code)
        self.runtime.cudaGetLastError()  # or the next one to ask would be told of it
        if kind is faults.Kind.MEMORY:
            raise OutOfMemory(text)
        if kind is faults.Kind.STICKY or (kind is faults.Kind.CALL and self._is_silent()):
            self._lost = self._lost or text
            raise EngineDead(self._lost, self.label)
        raise DeviceError(text)

    def _is_silent(self) -> bool:
        """Whether the next question gets no answer either. That the thread captures just now is an answer."""
        code = int(self.runtime.cudaMemGetInfo()[0])
        return code != faults.SUCCESS and faults.kind_of(code) is not faults.Kind.CAPTURE

    def use(self) -> None:
        """Makes it the device of the calling thread."""
        self.call(self.runtime.cudaSetDevice, self.index)

    def check(self) -> None:
        """Says what went wrong last in this thread, or for good."""
        self.call(self.runtime.cudaGetLastError)
        self.call(self.runtime.cudaMemGetInfo)

    def free_memory(self) -> tuple[int, int]:
        """Free and all bytes."""
        self.use()
        free, total = self.call(self.runtime.cudaMemGetInfo)
        return int(free), int(total)

    def stream(self) -> "CudaStream":
        """Makes a stream."""
        return CudaStream(self, self.call(self.runtime.cudaStreamCreateWithFlags, _STREAM_NON_BLOCKING))

    def event(self, *, timed: bool = False) -> "CudaEvent":
        """Makes an event."""
        flags = _EVENT_BLOCKING_SYNC | (0 if timed else _EVENT_DISABLE_TIMING)
        return CudaEvent(self, self.call(self.runtime.cudaEventCreateWithFlags, flags))

    def pinned(self, size: int) -> "CudaPinnedMemory":
        """Allocates pinned memory."""
        return CudaPinnedMemory(self, int(self.call(self.runtime.cudaHostAlloc, size, _HOST_ALLOC_PORTABLE)), size)

    def memory(self, size: int) -> "CudaMemory":
        """Allocates device memory."""
        return CudaMemory(self, int(self.call(self.runtime.cudaMalloc, size)), size)

    def release(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> None:
        """Calls what lets go of something. Of a lost device nothing can be let go, and nothing needs to be."""
        try:
            self.call(function, *arguments)
        except EngineDead:
            return
        except DeviceError as error:
            _log.warning("not released", error=str(error))

    def close(self) -> None:
        """One user less. The context stays: other libraries may have it."""
        with _lock:
            self.users -= 1
            if self.users == 0 and not self._lost:
                del _open[self.index]


class CudaEvent:
    """A `device.Event`."""

    def __init__(self, device: CudaDevice, event: Any) -> None:
        self._device = device
        self.event = event

    def synchronize(self) -> None:
        """Sleeps until it is done."""
        self._device.call(self._device.runtime.cudaEventSynchronize, self.event)

    def done(self) -> bool:
        """Whether it is."""
        (error,) = self._device.runtime.cudaEventQuery(self.event)
        if int(error) == faults.NOT_READY:
            self._device.runtime.cudaGetLastError()  # libraries would take it for an error of theirs
            return False
        self._device.call(lambda: (error,))
        return True

    def seconds_since(self, earlier: Event) -> float:
        """Device seconds; the runtime's are milliseconds."""
        begin = earlier.event  # type: ignore[attr-defined]  # both were made by one device
        return float(self._device.call(self._device.runtime.cudaEventElapsedTime, begin, self.event)) / 1e3

    def close(self) -> None:
        """Destroys it."""
        self._device.release(self._device.runtime.cudaEventDestroy, self.event)


class CudaGraph:
    """A `device.Graph`: its executable form."""

    def __init__(self, device: CudaDevice, executable: Any) -> None:
        self._device = device
        self.executable = executable

    def close(self) -> None:
        """Destroys it."""
        self._device.release(self._device.runtime.cudaGraphExecDestroy, self.executable)


class CudaStream:
    """A `device.Stream`."""

    def __init__(self, device: CudaDevice, stream: Any) -> None:
        runtime = device.runtime
        self._device = device
        self._stream = stream
        self.handle = int(stream)
        kinds = runtime.cudaMemcpyKind
        self._up, self._down = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost

    def upload(self, to: int, source: int, size: int) -> None:
        """Enqueues a copy to the device."""
        self._device.call(self._device.runtime.cudaMemcpyAsync, to, source, size, self._up, self._stream)

    def download(self, to: int, source: int, size: int) -> None:
        """Enqueues a copy from the device."""
        self._device.call(self._device.runtime.cudaMemcpyAsync, to, source, size, self._down, self._stream)

    def fill(self, to: int, value: int, size: int) -> None:
        """Enqueues setting bytes."""
        self._device.call(self._device.runtime.cudaMemsetAsync, to, value, size, self._stream)

    def record(self, event: Event) -> None:
        """Enqueues a mark."""
        mark = event.event  # type: ignore[attr-defined]  # made by the same device
        self._device.call(self._device.runtime.cudaEventRecord, mark, self._stream)

    def wait(self, event: Event) -> None:
        """Lets what follows wait for a mark."""
        mark = event.event  # type: ignore[attr-defined]  # made by the same device
        self._device.call(self._device.runtime.cudaStreamWaitEvent, self._stream, mark, 0)

    def synchronize(self) -> None:
        """Waits until it is empty."""
        self._device.call(self._device.runtime.cudaStreamSynchronize, self._stream)

    def capture(self, enqueue: Callable[[], None]) -> CudaGraph:
        """Makes a graph of what is enqueued."""
        runtime, call = self._device.runtime, self._device.call
        try:
            mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            call(runtime.cudaStreamBeginCapture, self._stream, mode)
            try:
                enqueue()
            except BaseException:
                self._abandon()
                raise
            graph = call(runtime.cudaStreamEndCapture, self._stream)
            try:
                executable = call(runtime.cudaGraphInstantiate, graph, 0)
            finally:
                self._device.release(runtime.cudaGraphDestroy, graph)
        except EngineDead:
            raise
        except Exception as error:
            raise CaptureFailed(f"{type(error).__name__}: {error}") from error
        return CudaGraph(self._device, executable)

    def _abandon(self) -> None:
        """Ends a capture that is of no use, and clears what it has left."""
        runtime = self._device.runtime
        error, graph = runtime.cudaStreamEndCapture(self._stream)
        if not error:
            runtime.cudaGraphDestroy(graph)
        runtime.cudaGetLastError()

    def launch(self, graph: Graph) -> None:
        """Enqueues a graph."""
        executable = graph.executable  # type: ignore[attr-defined]  # made by the same device
        self._device.call(self._device.runtime.cudaGraphLaunch, executable, self._stream)

    def close(self) -> None:
        """Destroys it."""
        self._device.release(self._device.runtime.cudaStreamDestroy, self._stream)


class CudaMemory:
    """A `device.DeviceMemory`."""

    def __init__(self, device: CudaDevice, address: int, size: int) -> None:
        self._device = device
        self.address = address
        self.size = size

    def close(self) -> None:
        """Frees it."""
        self._device.release(self._device.runtime.cudaFree, self.address)


class CudaPinnedMemory:
    """A `device.PinnedMemory`."""

    def __init__(self, device: CudaDevice, address: int, size: int) -> None:
        self._device = device
        self.address = address
        self.size = size
        self.view: Array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def close(self) -> None:
        """Frees it; the view is void."""
        self._device.release(self._device.runtime.cudaFreeHost, self.address)
