"""As much of torch as the engine asks of it on a GPU, over the device that isn't there (`engines.gpu.fake`).

It has torch's names and arguments. What is enqueued is done when its time comes, so whoever reads too early gets wrong
numbers; what a real GPU does is not shown.
"""

import math
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np


class OnDevice:
    """A tensor: memory at an address."""

    def __init__(self, torch, address, shape, dtype):
        self.torch, self.address, self.shape, self.dtype = torch, address, tuple(shape), dtype

    @property
    def span(self):
        return self.address, np.dtype(self.dtype).itemsize * math.prod(self.shape)

    def array(self):
        """What is there now."""
        return self.torch.gpu.view(*self.span, pinned=False).view(self.dtype).reshape(self.shape)

    def view(self, target):
        shape, dtype = (self.shape, target) if isinstance(target, str) else (target, self.dtype)
        return OnDevice(self.torch, self.address, shape, dtype)

    def copy_(self, other, *, non_blocking):
        assert non_blocking

        def copy():
            self.array()[...] = other.array()

        self.torch.cuda.submit(0.001, copy, reads=[other.span], writes=[self.span])

    def contiguous(self):
        return self

    def data_ptr(self):
        return self.address


class Cuda:
    """`torch.cuda`."""

    def __init__(self, gpu):
        self.gpu = gpu
        self.log = []
        self.ooms = 0
        self.current = None
        self.captured = None
        self.fails = None

    def submit(self, seconds, action, *, reads, writes):
        """Enqueues a kernel on the current stream, or puts it into the graph that is captured."""
        assert self.current is not None, "on the default stream"
        if self.captured is not None:
            self.captured.append((seconds, action, reads, writes))
        else:
            self.current.compute(seconds, action, reads=reads, writes=writes)

    def is_available(self):
        return True

    def device_count(self):
        return self.gpu.index + 1

    def get_device_capability(self, index):
        return 9, 0

    def ExternalStream(self, handle, device):
        (stream,) = [stream for stream in self.gpu._streams if stream.handle == handle]
        assert device == self.gpu.label
        return stream

    def graph_pool_handle(self):
        self.log.append("pool")
        return "the pool"

    def CUDAGraph(self):
        graph = SimpleNamespace(parts=[])

        def replay():
            self.log.append("replay")
            for seconds, action, reads, writes in graph.parts:
                self.submit(seconds, action, reads=reads, writes=writes)

        graph.replay = replay
        return graph

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph, *, pool, stream, capture_error_mode):
        self.log.append(f"capture in {pool}, {capture_error_mode}")
        self.captured = graph.parts
        try:
            with self.stream(stream):
                yield
        finally:
            self.captured = None
        if self.fails:
            raise RuntimeError(self.fails)

    @contextmanager
    def device(self, device):
        yield

    def memory_stats(self, device):
        return {"num_ooms": self.ooms}

    def empty_cache(self):
        self.log.append("empty cache")


class FakeTorch:
    """The library."""

    float32, int64, uint8 = "float32", "int64", "uint8"
    __version__ = "2.13.0+cu130"

    def __init__(self, gpu):
        self.gpu = gpu
        self.cuda = Cuda(gpu)
        self.wrapped = 0
        self._allocated = []

    def device(self, kind, index):
        return f"{kind}:{index}"

    def as_tensor(self, memory, device):
        self.wrapped += 1
        interface = memory.__cuda_array_interface__
        (size,), (address, read_only) = interface["shape"], interface["data"]
        assert (interface["typestr"], interface["version"], read_only) == ("|u1", 3, False)
        assert device == self.gpu.label
        return OnDevice(self, address, (size,), "uint8")

    def allocate(self, like):
        """Memory of torch's own."""
        self._allocated.append(self.gpu.memory(max(1, like.span[1])))
        return OnDevice(self, self._allocated[-1].address, like.shape, like.dtype)

    def close(self):
        """Gives all of it back."""
        for memory in self._allocated:
            memory.close()


class Doubling:
    """`y = 2 x`: a package, as it is run."""

    def __init__(self, torch):
        self.torch = torch
        self.runs = 0
        self.error = None

    def __call__(self, tensors):
        self.runs += 1
        if self.error:
            self.torch.cuda.ooms += "memory" in self.error
            raise RuntimeError(self.error)
        (x,) = tensors
        y = self.torch.allocate(x)

        def double():
            y.array()[...] = x.array() * 2

        self.torch.cuda.submit(0.004, double, reads=[x.span], writes=[y.span])
        return [y]
