"""The port on the runtime: its calls, against a fake one with the names and answers of the real one.

And against the real package, as far as that goes without a driver.
"""

import ast
import enum
import inspect
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from forebay_server.engines.base import EngineDead, OutOfMemory
from forebay_server.engines.gpu import cuda
from forebay_server.engines.gpu.device import CaptureFailed, DeviceError, NoDevice

HOST = np.zeros(4096, np.uint8)


VALUES = {
    "cudaGetDeviceCount": 2,
    "cudaGetDeviceProperties": SimpleNamespace(name=b"A GPU\0\0", major=9, minor=0),
    "cudaMemGetInfo": (3, 4),
    "cudaStreamCreateWithFlags": 77,
    "cudaEventCreateWithFlags": 88,
    "cudaMalloc": 4096,
    "cudaHostAlloc": HOST.ctypes.data,
    "cudaEventElapsedTime": 2.5,
    "cudaStreamEndCapture": "graph",
    "cudaGraphInstantiate": "executable",
}


class Code(enum.IntEnum):
    OK = 0
    INVALID = 1
    MEMORY = 2
    DRIVER = 35
    NONE = 100
    NOT_READY = 600
    ILLEGAL = 700
    INVALIDATED = 901


class Runtime:
    """Answers as `cuda.bindings.runtime`: a tuple of the error and what the call gives."""

    def __init__(self):
        self.cudaError_t = Code
        self.cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down")
        self.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")
        self.calls = []
        self.errors = {}  # by name, what the call answers once; of a list, one after the other

    def __getattr__(self, name):
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments):
            self.calls.append((name, *arguments))
            errors = self.errors.get(name, [])
            error = errors.pop(0) if errors else Code.OK
            if name == "cudaGetErrorName":
                return Code.OK, arguments[0].name.encode()
            if name == "cudaGetErrorString":
                return Code.OK, b"said so"
            value = VALUES.get(name)
            if error:
                value = None
            if isinstance(value, tuple):
                return (error, *value)
            return (error, value) if name in VALUES else (error,)

        call.__name__ = name
        return call

    def named(self, name):
        return [arguments for called, *arguments in self.calls if called == name]


@pytest.fixture
def runtime(monkeypatch):
    """A runtime, and no device that is open already."""
    fake = Runtime()
    monkeypatch.setattr(cuda, "_runtime", lambda: fake)
    monkeypatch.setattr(cuda, "_open", {})
    return fake


@pytest.fixture
def device(runtime):
    return cuda.open_device(1)


def test_a_device_says_what_it_is(runtime, device):
    """It is made the thread's own before anything else."""
    assert (device.index, device.label, device.name) == (1, "cuda:1", "A GPU")
    assert device.compute_capability == (9, 0)
    assert device.free_memory() == (3, 4)
    assert runtime.calls[:2] == [("cudaGetDeviceCount",), ("cudaSetDevice", 1)]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (Code.DRIVER, "there is no NVIDIA driver here"),
        (Code.NONE, "there is no NVIDIA GPU here"),
        (Code.INVALID, "the NVIDIA GPUs can't be used: INVALID (1): said so"),
    ],
)
def test_no_device_is_one_sentence(runtime, answer, sentence):
    """For each reason."""
    runtime.errors["cudaGetDeviceCount"] = [answer]
    with pytest.raises(NoDevice, match=sentence.replace("(", r"\(").replace(")", r"\)")):
        cuda.devices()


def test_a_number_that_no_device_has(runtime):
    """It is named, with how many there are."""
    with pytest.raises(NoDevice, match="there is no device cuda:2; the process sees 2"):
        cuda.open_device(2)


def test_a_device_is_one_object_while_it_is_open(runtime):
    """Its death is everybody's."""
    first, second = cuda.open_device(0), cuda.open_device(0)
    assert first is second
    first.close()
    assert cuda.open_device(0) is first
    first.close()
    first.close()

    assert cuda.open_device(0) is not first


def test_copies_and_marks(runtime, device):
    """Each call has the runtime's arguments in its order."""
    stream, event = device.stream(), device.event()
    assert stream.handle == 77
    assert runtime.named("cudaStreamCreateWithFlags") == [[1]]
    device.event(timed=True)
    assert runtime.named("cudaEventCreateWithFlags") == [[3], [1]]
    memory, pinned = device.memory(512), device.pinned(1024)
    stream.upload(memory.address, pinned.address, 100)
    stream.download(pinned.address, memory.address, 50)
    stream.fill(memory.address, 7, 10)
    stream.record(event)
    stream.wait(event)
    event.synchronize()
    stream.synchronize()

    assert runtime.named("cudaMemcpyAsync") == [
        [4096, pinned.address, 100, "up", 77],
        [pinned.address, 4096, 50, "down", 77],
    ]
    assert runtime.named("cudaMemsetAsync") == [[4096, 7, 10, 77]]
    assert runtime.named("cudaEventRecord") == [[88, 77]]
    assert runtime.named("cudaStreamWaitEvent") == [[77, 88, 0]]
    assert runtime.named("cudaEventSynchronize") == [[88]]
    assert runtime.named("cudaStreamSynchronize") == [[77]]
    assert event.seconds_since(event) == 0.0025


def test_pinned_memory_is_seen_as_bytes(device):
    """The view is the memory itself, and writable."""
    pinned = device.pinned(16)
    pinned.view[3] = 9

    assert (pinned.view.dtype, pinned.view.size, HOST[3]) == (np.uint8, 16, 9)


def test_everything_is_let_go_of(runtime, device):
    """Each by its own call."""
    stream = device.stream()
    for thing in (device.event(), stream.capture(lambda: None), device.memory(8), device.pinned(8), stream):
        thing.close()

    assert runtime.named("cudaEventDestroy") == [[88]]
    assert runtime.named("cudaGraphExecDestroy") == [["executable"]]
    assert runtime.named("cudaFree") == [[4096]]
    assert runtime.named("cudaFreeHost") == [[HOST.ctypes.data]]
    assert runtime.named("cudaStreamDestroy") == [[77]]


def test_an_event_that_is_not_done_is_no_error(runtime, device):
    """It is taken back, or a library would find it as the thread's last. Anything else that the runtime answers is."""
    event = device.event()
    runtime.errors["cudaEventQuery"] = [Code.NOT_READY, Code.OK, Code.ILLEGAL]
    assert not event.done()
    assert runtime.named("cudaGetLastError") == [[]]
    assert event.done()
    with pytest.raises(EngineDead):
        event.done()


def test_too_little_memory(runtime, device):
    """The error is cleared, and the device goes on."""
    runtime.errors["cudaMalloc"] = [Code.MEMORY]
    with pytest.raises(OutOfMemory, match=r"cuda:1: cudaMalloc: MEMORY \(2\): said so"):
        device.memory(1 << 40)
    assert runtime.named("cudaGetLastError") == [[]]

    assert device.memory(8).size == 8


def test_a_call_that_failed_alone(runtime, device):
    """The device is asked once more, because the code may be one that stays; here it does not."""
    stream = device.stream()
    runtime.errors["cudaMemcpyAsync"] = [Code.INVALID]
    with pytest.raises(DeviceError, match=r"INVALID \(1\)"):
        stream.upload(0, 0, 1)
    stream.upload(0, 0, 1)

    assert len(runtime.named("cudaMemGetInfo")) == 1


def test_a_device_whose_stream_is_captured_is_not_lost(runtime, device):
    """It may refuse the second question for that."""
    stream = device.stream()
    runtime.errors["cudaMemcpyAsync"] = [Code.INVALID]
    runtime.errors["cudaMemGetInfo"] = [Code.INVALIDATED]
    with pytest.raises(DeviceError, match=r"INVALID \(1\)"):
        stream.upload(0, 0, 1)
    stream.upload(0, 0, 1)


@pytest.mark.parametrize("known", [True, False])
def test_a_sticky_error_is_the_end_of_the_device(runtime, device, known):
    """By its code, or because the device does not answer the next question either; for all of its users, for good."""
    stream = device.stream()
    runtime.errors["cudaEventSynchronize"] = [Code.ILLEGAL if known else Code.INVALID]
    runtime.errors["cudaMemGetInfo"] = [Code.ILLEGAL]
    with pytest.raises(EngineDead, match="cudaEventSynchronize") as caught:
        device.event().synchronize()
    assert caught.value.device == "cuda:1"
    count = len(runtime.calls)
    for call in (device.use, device.check, stream.synchronize, lambda: device.memory(1)):
        with pytest.raises(EngineDead, match="cudaEventSynchronize"):
            call()
    stream.close()  # says nothing: there is nothing to let go of
    assert len(runtime.calls) == count
    device.close()
    with pytest.raises(NoDevice, match="cuda:1 can't be used"):
        cuda.open_device(1)

    assert cuda.open_device(0).label == "cuda:0"


def test_what_a_library_was_refused_is_found_out(runtime, device):
    """By the runtime's last error, or because the device answers nothing any more."""
    device.check()
    runtime.errors["cudaGetLastError"] = [Code.MEMORY]
    with pytest.raises(OutOfMemory):
        device.check()
    runtime.errors["cudaMemGetInfo"] = [Code.ILLEGAL]
    with pytest.raises(EngineDead):
        device.check()


def test_a_graph_is_captured_in_this_thread_only(runtime, device):
    """Begin, enqueue, end, instantiate; the graph itself is let go of; a launch has the executable form."""
    stream = device.stream()
    runtime.calls.clear()
    stream.launch(stream.capture(lambda: stream.fill(1, 2, 3)))

    assert runtime.calls == [
        ("cudaStreamBeginCapture", 77, "thread"),
        ("cudaMemsetAsync", 1, 2, 3, 77),
        ("cudaStreamEndCapture", 77),
        ("cudaGraphInstantiate", "graph", 0),
        ("cudaGraphDestroy", "graph"),
        ("cudaGraphLaunch", "executable", 77),
    ]


@pytest.mark.parametrize("at", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_capture_that_fails_is_cleared_away(runtime, device, at):
    """Wherever it fails; the stream is usable again."""
    stream = device.stream()
    runtime.errors[at] = [Code.INVALIDATED]
    with pytest.raises(CaptureFailed, match="INVALIDATED"):
        stream.capture(lambda: None)

    assert runtime.named("cudaGetLastError")
    assert stream.capture(lambda: None).executable == "executable"


def test_a_fault_under_capture_ends_it(runtime, device):
    """What was captured by then is let go of."""
    stream = device.stream()

    def enqueue():
        raise ValueError("not now")

    with pytest.raises(CaptureFailed, match="ValueError: not now"):
        stream.capture(enqueue)
    assert runtime.named("cudaStreamEndCapture") == [[77]]
    assert runtime.named("cudaGraphDestroy") == [["graph"]]


def test_a_device_that_dies_under_capture_is_dead(runtime, device):
    """That is no failed capture."""
    stream = device.stream()
    runtime.errors["cudaMemsetAsync"] = [Code.ILLEGAL]
    with pytest.raises(EngineDead):
        stream.capture(lambda: stream.fill(1, 2, 3))


# --- Against the real package


def test_a_missing_package_is_one_sentence(monkeypatch):
    """It names what to install."""
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(NoDevice, match=r"cuda-bindings is not installed \(pip install 'forebay\[cuda\]'\)"):
        cuda.devices()


def test_the_real_package_without_a_driver():
    """Its answer where there is no driver is the sentence that the operator reads."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    error, _ = runtime.cudaGetDeviceCount()
    if error != runtime.cudaError_t.cudaErrorInsufficientDriver:
        pytest.skip("there is a driver here")
    with pytest.raises(NoDevice, match="there is no NVIDIA driver here"):
        cuda.open_device(0)


def test_the_real_package_takes_every_call():
    """Without a driver it refuses each with error 35, which it only comes to with arguments that it understands."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if runtime.cudaGetDeviceCount()[0] != runtime.cudaError_t.cudaErrorInsufficientDriver:
        pytest.skip("there is a driver here")
    device = cuda.CudaDevice.__new__(cuda.CudaDevice)
    device.index, device.label, device.runtime, device._lost = 0, "cuda:0", runtime, ""
    stream = cuda.CudaStream(device, runtime.cudaStream_t(0))
    event = cuda.CudaEvent(device, runtime.cudaEvent_t(0))
    graph = cuda.CudaGraph(device, runtime.cudaGraphExec_t(0))
    calls = {
        "cudaSetDevice": device.use,
        "cudaMemGetInfo": lambda: device.call(runtime.cudaMemGetInfo),
        "cudaGetDeviceProperties": lambda: device.call(runtime.cudaGetDeviceProperties, 0),
        "cudaStreamCreateWithFlags": device.stream,
        "cudaEventCreateWithFlags": device.event,
        "cudaHostAlloc": lambda: device.pinned(4096),
        "cudaMalloc": lambda: device.memory(4096),
        "cudaMemcpyAsync": lambda: stream.upload(4096, 8192, 16),
        "cudaMemsetAsync": lambda: stream.fill(4096, 1, 16),
        "cudaEventRecord": lambda: stream.record(event),
        "cudaStreamWaitEvent": lambda: stream.wait(event),
        "cudaStreamSynchronize": stream.synchronize,
        "cudaStreamBeginCapture": lambda: stream.capture(lambda: None),
        "cudaGraphLaunch": lambda: stream.launch(graph),
        "cudaEventSynchronize": event.synchronize,
        "cudaEventElapsedTime": lambda: event.seconds_since(event),
    }
    for name, call in calls.items():
        device._lost = ""
        with pytest.raises((EngineDead, CaptureFailed), match=rf"{name}: cudaErrorInsufficientDriver \(35\)"):
            call()
    for call in (runtime.cudaStreamEndCapture, runtime.cudaStreamDestroy):
        assert int(call(runtime.cudaStream_t(0))[0]) == 35
    assert int(runtime.cudaGraphInstantiate(runtime.cudaGraph_t(0), 0)[0]) == 35
    for thing in (event, graph, stream):
        device._lost = ""
        thing.close()


def test_every_name_is_the_real_packages():
    """What the adapter asks of the runtime exists there, enumerations and flags with the values that it counts on."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    tree = ast.parse(inspect.getsource(cuda))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("cuda")}
    assert "cudaMemcpyAsync" in names
    inside = {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost", "cudaStreamCaptureModeThreadLocal"}
    assert [name for name in sorted(names - inside) if not hasattr(runtime, name)] == []
    assert hasattr(runtime.cudaMemcpyKind, "cudaMemcpyHostToDevice")
    assert hasattr(runtime.cudaMemcpyKind, "cudaMemcpyDeviceToHost")
    assert hasattr(runtime.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")
    assert runtime.cudaStreamNonBlocking == cuda._STREAM_NON_BLOCKING
    assert runtime.cudaEventBlockingSync == cuda._EVENT_BLOCKING_SYNC
    assert runtime.cudaEventDisableTiming == cuda._EVENT_DISABLE_TIMING
    assert runtime.cudaHostAllocPortable == cuda._HOST_ALLOC_PORTABLE
    assert runtime.cudaError_t.cudaErrorInsufficientDriver == cuda._INSUFFICIENT_DRIVER
    assert runtime.cudaError_t.cudaErrorNoDevice == cuda._NO_DEVICE
