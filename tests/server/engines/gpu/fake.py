"""A GPU that isn't there: the port of `engines.gpu.device` on a timeline, with faults to order.

What is enqueued is not done at once but when its time has come: after what is before it in its stream and what that
waits for, and one at a time on each of the three engines of a device (upload, compute, download). An operation touches
memory at its end, so whoever reads too early, or writes over what is still to be read, gets wrong numbers, and two
operations that run at once on the same bytes are kept in `hazards`. Memory lies at real addresses; freed memory is
never used again, and an operation on it is the illegal access that it is on a real device: it kills it.

On `VirtualTime` the host takes no time, and waiting jumps to the end of what is waited for: instants are exact.
On `RealTime` the same goes on beside the threads of a real server.

Faults: `total` bytes of memory; `kill`; `hold` (nothing that begins computing ends) until `release`; `refuse_capture`;
and what a computation raises, or has its operations do, by itself.
"""

import threading
import time
from collections import deque
from math import inf

import numpy as np

from forebay_server.engines.base import EngineDead, OutOfMemory
from forebay_server.engines.gpu.device import CaptureFailed, DeviceError

ALIGNMENT = 256


class IllegalAccess(Exception):
    """What an operation raises to kill its device."""


class VirtualTime:
    """A clock that stands still but for waiting."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def wait(self, condition, until):
        assert until < inf, "this would be waited for for ever"
        self.now = max(self.now, until)


class RealTime:
    """The clock of the machine."""

    def __call__(self):
        return time.monotonic()

    def wait(self, condition, until):
        condition.wait(None if until == inf else max(0.0, until - time.monotonic()))


class Operation:
    """Something that was enqueued."""

    def __init__(self, kind, seconds=0.0, action=None, *, reads=(), writes=(), after=None, stalls=None):
        self.kind = kind
        self.seconds = seconds
        self.action = action
        self.reads = list(reads)  # (address, size)
        self.writes = list(writes)
        self.after = after
        self.stalls = stalls
        self.begin = self.end = inf
        self.serial = 0
        self.done = False

    def copy(self):
        return Operation(self.kind, self.seconds, self.action, reads=self.reads, writes=self.writes, stalls=self.stalls)

    def __repr__(self):
        return f"<{self.kind} {self.begin:g} {self.end:g}>"


class FakeDevice:
    """One device."""

    def __init__(self, index=0, *, clock=None, total=1 << 30, bandwidth=1e9):
        self.index = index
        self.label = f"cuda:{index}"
        self.name = "Make-believe"
        self.compute_capability = (9, 0)
        self.clock = clock or VirtualTime()
        self.total = total
        self.bandwidth = bandwidth
        self.used = 0
        self.allocations = 0
        self.refuse_capture = False
        self.lost = ""
        self.spans = []
        self.hazards = []
        self.users = set()
        self.open = 0  # things made and not closed
        self._changed = threading.Condition(threading.RLock())
        self._streams = []
        self._running = []
        self._now = 0.0
        self._serial = 0
        self._held = False
        self._memories = {}
        self._graves = []

    # --- The port

    def use(self):
        self.alive()
        self.users.add(threading.current_thread().name)

    def check(self):
        self.alive()

    def free_memory(self):
        return self.total - self.used, self.total

    def stream(self):
        with self._changed:
            self.alive()
            stream = FakeStream(self)
            self._streams.append(stream)
            self.open += 1
            return stream

    def event(self, *, timed=False):
        self.alive()
        self.open += 1
        return FakeEvent(self, timed)

    def pinned(self, size):
        self.alive()
        return FakeMemory(self, size, pinned=True)

    def memory(self, size):
        with self._changed:
            self.alive()
            if any(stream.captured is not None for stream in self._streams):
                raise DeviceError("cudaErrorStreamCaptureUnsupported (900)")
            if self.used + size > self.total:
                raise OutOfMemory(f"{self.label}: cudaErrorMemoryAllocation (2)")
            self.used += size
            return FakeMemory(self, size, pinned=False)

    def close(self):
        pass

    # --- What tests order and ask

    def kill(self, text="cudaErrorIllegalAddress (700)"):
        """From now on nothing works any more."""
        with self._changed:
            self.lost = self.lost or text
            for stream in self._streams:
                stream.queue.clear()
            self._running.clear()
            self._changed.notify_all()

    def hold(self):
        """What begins computing from now on does not end."""
        with self._changed:
            self._held = True

    def release(self):
        """It ends after its time from now."""
        with self._changed:
            self._run(self.clock())
            self._held = False
            for operation in self._running:
                if operation.end == inf:
                    operation.stalls = None
                    operation.end = self._now + operation.seconds
            self._changed.notify_all()

    def kinds(self, *kinds):
        """The operations of some kinds that have ended, with begin and end, in the order in which they began."""
        with self._changed:
            self._run(self.clock())
            spans = [span for span in self.spans if span[0] in kinds]
            return sorted(spans, key=lambda span: span[1])

    def running(self, kind):
        """How many operations of a kind have begun and not ended."""
        with self._changed:
            if not self.lost:
                self._run(self.clock())
            return sum(operation.kind == kind for operation in self._running)

    # --- How it works

    def alive(self):
        if self.lost:
            raise EngineDead(f"{self.label}: {self.lost}", self.label)

    def view(self, address, size, *, pinned=None):
        """Bytes at an address, as a kernel sees them."""
        for begin, memory in self._memories.items():
            if begin <= address and address + size <= begin + memory.size and pinned in (None, memory.pinned):
                offset = address - begin
                return memory.view[offset : offset + size]
        raise IllegalAccess("cudaErrorIllegalAddress (700)")

    def enqueue(self, stream, operation):
        with self._changed:
            self.alive()
            if stream.captured is not None:
                stream.captured.append(operation)
                return
            self._run(self.clock())
            self._serial += 1
            operation.serial = self._serial
            stream.queue.append(operation)
            self._start()
            self._changed.notify_all()

    def wait(self, operation):
        """Waits for the end of an operation."""
        with self._changed:
            while True:
                self.alive()
                self._run(self.clock())
                self.alive()
                if operation is None or operation.done:
                    return
                self.clock.wait(self._changed, min((each.end for each in self._running), default=inf))

    def _run(self, until):
        while True:
            self._start()
            due = [operation for operation in self._running if operation.end <= until]
            if not due:
                break
            first = min(due, key=lambda operation: (operation.end, operation.serial))
            self._now = max(self._now, first.end)
            self._running.remove(first)
            self._finish(first)
        self._now = max(self._now, until)

    def _start(self):
        moved = True
        while moved:
            moved = False
            heads = [(stream.queue[0].serial, stream) for stream in self._streams if stream.queue]
            for _, stream in sorted(heads, key=lambda head: head[0]):
                operation = stream.queue[0]
                if operation in self._running or (operation.after is not None and not operation.after.done):
                    continue
                if operation.kind in ("mark", "wait"):
                    stream.queue.popleft()
                    operation.begin = operation.end = self._now
                    operation.done = moved = True
                    continue
                engine = _engine(operation)
                if any(_engine(other) == engine for other in self._running):
                    continue
                self._begin(operation)
                moved = True

    def _begin(self, operation):
        operation.begin = self._now
        stalls = self._held and _engine(operation) == "compute"
        if operation.stalls is not None and operation.stalls():
            stalls = True
        operation.end = inf if stalls else self._now + operation.seconds
        for other in self._running:
            if _touch(operation.writes, other.reads + other.writes) or _touch(other.writes, operation.reads):
                self.hazards.append((other, operation))
        self._running.append(operation)

    def _finish(self, operation):
        for stream in self._streams:
            if stream.queue and stream.queue[0] is operation:
                stream.queue.popleft()
        operation.done = True
        self.spans.append((operation.kind, operation.begin, operation.end))
        try:
            if operation.action is not None:
                operation.action()
        except IllegalAccess as error:
            self.kill(str(error))
        self._changed.notify_all()


def _engine(operation):
    return operation.kind if operation.kind in ("upload", "download") else "compute"


def _touch(some, others):
    return any(a < b + n and b < a + m for a, m in some for b, n in others)


class FakeEvent:
    def __init__(self, device, timed):
        self._device = device
        self._timed = timed
        self.mark = None

    def synchronize(self):
        self._device.wait(self.mark)

    def done(self):
        self._device.running("")
        self._device.alive()
        return self.mark is None or self.mark.done

    def seconds_since(self, earlier):
        if not (self._timed and earlier._timed):
            raise DeviceError("cudaErrorInvalidResourceHandle (400)")
        return self.mark.end - earlier.mark.end

    def close(self):
        self._device.open -= 1


class FakeGraph:
    def __init__(self, device, operations):
        self._device = device
        self.operations = operations
        self.closed = False
        device.open += 1

    def close(self):
        self._device.open -= 1
        self.closed = True


class FakeStream:
    def __init__(self, device):
        self._device = device
        self.queue = deque()
        self.captured = None
        self.handle = id(self)

    def compute(self, seconds, action, *, reads, writes, stalls=None):
        """A kernel: `action` is run at its end."""
        self._put(Operation("compute", seconds, action, reads=reads, writes=writes, stalls=stalls))

    def upload(self, to, source, size):
        self._copy("upload", to, source, size, to_pinned=False)

    def download(self, to, source, size):
        self._copy("download", to, source, size, to_pinned=True)

    def _copy(self, kind, to, source, size, *, to_pinned):
        device = self._device
        try:
            device.view(to, size, pinned=to_pinned)
            device.view(source, size, pinned=not to_pinned)
        except IllegalAccess:
            raise DeviceError("cudaErrorInvalidValue (1)") from None

        def copy():
            device.view(to, size)[:] = device.view(source, size)

        self._put(Operation(kind, size / device.bandwidth, copy, reads=[(source, size)], writes=[(to, size)]))

    def fill(self, to, value, size):
        def fill():
            self._device.view(to, size)[:] = value

        self._put(Operation("compute", size / self._device.bandwidth, fill, writes=[(to, size)]))

    def record(self, event):
        event.mark = Operation("mark")
        self._put(event.mark)

    def wait(self, event):
        self._put(Operation("wait", after=event.mark))

    def synchronize(self):
        if self.captured is not None:
            raise DeviceError("cudaErrorStreamCaptureUnsupported (900)")
        last = Operation("mark")
        self._put(last)
        self._device.wait(last)

    def capture(self, enqueue):
        device = self._device
        if device.refuse_capture:
            raise CaptureFailed("cudaErrorStreamCaptureUnsupported (900)")
        self.captured = []
        try:
            enqueue()
        except EngineDead:
            raise
        except Exception as error:
            raise CaptureFailed(str(error)) from error
        finally:
            operations, self.captured = self.captured, None
        return FakeGraph(device, operations)

    def launch(self, graph):
        assert not graph.closed
        parts = graph.operations

        def replay():
            for part in parts:
                part.action()

        def stalls():
            return any(part.stalls is not None and part.stalls() for part in parts)

        self._put(
            Operation(
                "graph",
                sum(part.seconds for part in parts),
                replay,
                reads=[span for part in parts for span in part.reads],
                writes=[span for part in parts for span in part.writes],
                stalls=stalls,
            )
        )

    def close(self):
        assert self._device.lost or not self.queue
        self._device._streams.remove(self)
        self._device.open -= 1

    def _put(self, operation):
        self._device.enqueue(self, operation)


class FakeMemory:
    """Memory of the device, or pinned memory."""

    def __init__(self, device, size, *, pinned):
        self._device = device
        self.size = size
        self.pinned = pinned
        whole = np.full(size + ALIGNMENT, 0xA5, np.uint8)  # nobody may count on zeros
        offset = -whole.ctypes.data % ALIGNMENT
        self.view = whole[offset : offset + size]
        self.address = self.view.ctypes.data
        with device._changed:
            device.allocations += 1
            device.open += 1
            device._memories[self.address] = self

    def close(self):
        device = self._device
        with device._changed:
            device.open -= 1
            if not self.pinned:
                device.used -= self.size
            device._graves.append(device._memories.pop(self.address))
