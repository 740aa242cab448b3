"""The ports of the GPU's data path: what it needs of a device, and what it needs of an engine.

`Device` and what it makes are implemented by `cuda` (on `cuda.bindings.runtime`) and, for tests, by a fake with a
virtual timeline. `Computation` is implemented by each engine; `pipeline.GpuInstance` makes an instance of the two.

Threads: a device may be used by all threads at a time, and each calls `use` before it touches anything of it. A stream
is enqueued to by one thread at a time, an event is recorded by one and waited for by any. Nothing here takes the GIL
while it waits.

Ownership: whoever makes something closes it, after the last stream that uses it has been synchronised. Addresses are
plain integers, valid until the memory is closed. Copies are asynchronous: both ends must stay as they are until an
event recorded behind the copy is done.

Errors: whatever a device refuses comes as one of three, from the call itself or, because devices fail late, from any
later one. `OutOfMemory`: a smaller batch may pass. `EngineDead`: the device is lost for this process, whoever uses it,
and says so from now on (`EngineDead.device` names it). `DeviceError`: this call alone failed.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from forebay_server.engines.base import ModelLoadError
from forebay_server.tensors import Array

Shape = tuple[int, ...]


class NoDevice(ModelLoadError):
    """There is no device to use: no package, no driver, no device of this number. One sentence for the operator."""


class DeviceError(Exception):
    """A call was refused; the device goes on."""


class CaptureFailed(Exception):
    """A graph could not be captured. The stream is usable again, and nothing of the capture has run."""


class Event(Protocol):
    """A mark in a stream."""

    def synchronize(self) -> None:
        """Waits, without the GIL and without spinning, until all that was enqueued before the mark is done."""

    def done(self) -> bool:
        """Whether it is. True also if it was never recorded."""

    def seconds_since(self, earlier: "Event") -> float:
        """Device seconds between two marks that are done. Both were made with `timed`."""

    def close(self) -> None:
        """Lets go of it."""


class Graph(Protocol):
    """Captured work: addresses and shapes are part of it."""

    def close(self) -> None:
        """Lets go of it. It does not run."""


class Stream(Protocol):
    """A queue of work, done in its order."""

    @property
    def handle(self) -> int:
        """The `cudaStream_t`, for libraries."""

    def upload(self, to: int, source: int, size: int) -> None:
        """Enqueues a copy of bytes from pinned memory to the device."""

    def download(self, to: int, source: int, size: int) -> None:
        """Enqueues a copy of bytes from the device to pinned memory."""

    def fill(self, to: int, value: int, size: int) -> None:
        """Enqueues setting bytes on the device to a value from 0 to 255."""

    def record(self, event: Event) -> None:
        """Enqueues a mark. An event that was recorded before is moved."""

    def wait(self, event: Event) -> None:
        """Lets what is enqueued from now on wait, on the device, for the event's last mark."""

    def synchronize(self) -> None:
        """Waits, without the GIL, until it is empty."""

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Makes a graph of what `enqueue` puts into this stream; none of that runs.

        In thread-local mode: what other threads do meanwhile is not disturbed. The same work must have run once before,
        and been waited for, because libraries allocate at their first run.

        Raises:
            CaptureFailed: Something of it can't be captured. The device's error is cleared.
        """

    def launch(self, graph: Graph) -> None:
        """Enqueues a graph."""

    def close(self) -> None:
        """Lets go of it; it is empty."""


class DeviceMemory(Protocol):
    """Memory of the device."""

    @property
    def address(self) -> int:
        """Aligned to at least 256 bytes."""

    @property
    def size(self) -> int:
        """Bytes."""

    def close(self) -> None:
        """Frees it."""


class PinnedMemory(Protocol):
    """Memory of the host that a device copies from and to by itself."""

    @property
    def address(self) -> int:
        """Aligned to at least 256 bytes."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def view(self) -> Array:
        """All of it as writable uint8. Neither it nor views on it may be used after `close`."""

    def close(self) -> None:
        """Frees it."""


class Device(Protocol):
    """One GPU, for all of this process. Its death is everybody's."""

    @property
    def index(self) -> int:
        """As the runtime counts."""

    @property
    def label(self) -> str:
        """`cuda:0`: what engines, instances, metrics and messages call it."""

    @property
    def name(self) -> str:
        """The product's, such as `NVIDIA H100 80GB HBM3`."""

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Such as (9, 0)."""

    def use(self) -> None:
        """Makes it the device of the calling thread, for libraries that ask the runtime which is.

        Raises:
            EngineDead: It is lost.
        """

    def check(self) -> None:
        """Says what went wrong last in this thread, and whether the device is lost.

        For what a library calls by itself, and only tells that it failed: it has run on this thread just before, and
        what this raises is the reason. If this raises nothing, the device is not to blame.

        Raises:
            OutOfMemory, EngineDead, DeviceError: As of any call.
        """

    def free_memory(self) -> tuple[int, int]:
        """Free and all bytes."""

    def stream(self) -> Stream:
        """Makes a stream that never waits for the default stream."""

    def event(self, *, timed: bool = False) -> Event:
        """Makes an event; only a timed one knows when it came (and costs a little more)."""

    def pinned(self, size: int) -> PinnedMemory:
        """Allocates pinned memory. Slow: not on the request path.

        Raises:
            OutOfMemory: The host has none.
        """

    def memory(self, size: int) -> DeviceMemory:
        """Allocates device memory. Slow: not on the request path.

        Raises:
            OutOfMemory: The device has none.
        """

    def close(self) -> None:
        """The caller needs it no more. Everything made by the caller is closed before."""


class Computation(Protocol):
    """What an engine gives for one instance: a TensorRT context, an ONNX Runtime session, a torch package.

    Threads: one at a time calls `output_shapes`, `enqueue`, `results` and those of `Recording`; first the loader's
    (warm-up), then for good the one that issues the instance's batches. `close` comes last, from any thread.

    Enqueued batches follow each other on the one stream that it is given, so what it keeps for a batch on the device
    (activations) may be used by the next one; inputs and outputs have memory of their own per batch in flight.
    """

    @property
    def capturable(self) -> bool:
        """Whether `Stream.capture` may make a graph of `enqueue`. If not, it runs plainly, or see `Recording`."""

    def output_shapes(self, shapes: Sequence[Shape]) -> Sequence[Shape] | None:
        """The whole shapes of the outputs for such inputs; None if they are known only after the run.

        Asked once for each new combination of shapes, and the answer kept.

        Raises:
            RejectInput: It can't run such shapes (no profile holds them, ...).
        """

    def enqueue(self, inputs: Sequence[int], shapes: Sequence[Shape], outputs: Sequence[int], stream: Stream) -> None:
        """Enqueues one run on `stream`, and nothing elsewhere that `stream` does not wait for.

        Nothing is synchronised, and after the first run of some shapes nothing allocated.

        Args:
            inputs: Addresses of the inputs on the device, in the order of the specification, C-contiguous.
            shapes: Their whole shapes, padding included.
            outputs: Addresses for the outputs, large enough for `output_shapes`; empty if that gave None.
            stream: Where.

        Raises:
            OutOfMemory, EngineDead, RejectInput: As of an instance.
            Exception: Anything else is a fault of the batch.
        """

    def results(self) -> Sequence[tuple[int, Shape]]:
        """The outputs of the last run: where they lie on the device, and their shapes.

        Asked only where `output_shapes` gave None, once the stream has come to the end of the run. Valid until the next
        `enqueue`.
        """

    def close(self) -> None:
        """Lets go of everything; its stream is empty."""


@runtime_checkable
class Recording(Protocol):
    """A `Computation` whose library captures graphs by itself, because its memory or its identifiers need it."""

    def record_run(
        self, inputs: Sequence[int], shapes: Sequence[Shape], outputs: Sequence[int], stream: Stream
    ) -> Callable[[], None]:
        """Makes a graph of one run with these addresses and shapes, at warm-up, after such a run was waited for.

        Capture must be thread-local (`capture_error_mode="thread_local"` in torch).

        Returns:
            What enqueues that graph on `stream`. It lives as long as the computation.

        Raises:
            CaptureFailed: It can't be captured; `enqueue` still works.
        """
