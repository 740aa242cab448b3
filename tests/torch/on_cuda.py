"""Torch on a GPU as far as it can be had without one: the real torch computes on the CPU, in a fake device's memory.

What the engine asks of `torch.cuda` is here; modules and their operations are the real ones. A stream is waited for
before something is computed "on" it, so that inputs are there; a graph is the list of operations that the real torch
was given while it was captured, done again on the same tensors when it is replayed. Whether a GPU does the same is not
shown.
"""

import ctypes
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from forebay_server.engines.gpu import cuda
from forebay_server.engines.torch import engine, library
from forebay_server.engines.torch.cuda import TorchComputation


class _Tape(TorchDispatchMode):
    """Notes operations while they are done."""

    def __init__(self, operations):
        super().__init__()
        self._operations = operations

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self._operations.append((function, args, kwargs or {}, made))
        return made


def _storages(values):
    return {value.untyped_storage().data_ptr() for value in tree_leaves(values) if isinstance(value, torch.Tensor)}


class Graph:
    """A `torch.cuda.CUDAGraph`."""

    def __init__(self, cuda):
        self.operations = []
        self._cuda = cuda

    def replay(self):
        self._cuda.replays += 1
        with torch.inference_mode():
            for function, args, kwargs, made in self.operations:
                again = function(*args, **kwargs)
                given = _storages((args, kwargs))
                for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                    # A view, or the target of an operation in place, holds what it is to hold.
                    if isinstance(new, torch.Tensor) and not _storages(new) & given:
                        old.copy_(new)


class Cuda:
    """`torch.cuda`."""

    CUDAGraph = property(lambda self: lambda: Graph(self))

    def __init__(self, gpu):
        self._gpu = gpu
        self.replays = 0

    def is_available(self):
        return True

    def device_count(self):
        return self._gpu.index + 1

    def get_device_capability(self, index):
        return 9, 0

    def ExternalStream(self, handle, device):
        (stream,) = [stream for stream in self._gpu._streams if stream.handle == handle]
        return stream

    def graph_pool_handle(self):
        return "the pool"

    @contextmanager
    def stream(self, stream):
        stream.synchronize()
        yield

    @contextmanager
    def graph(self, graph, *, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        with self.stream(stream), _Tape(graph.operations):
            yield

    @contextmanager
    def device(self, device):
        yield

    def memory_stats(self, device):
        return {"num_ooms": 0}

    def empty_cache(self):
        pass


class TorchOnCuda:
    """The library: what is not said here is the real one's."""

    def __init__(self, gpu):
        self._gpu = gpu
        self._lent = []
        self.cuda = Cuda(gpu)

    def give_back(self):
        """What `results` has put on the device."""
        while self._lent:
            self._lent.pop().close()

    def results(self, computation):
        """As of `TorchComputation`: what torch has allocated for outputs, in memory of the fake device."""
        self.give_back()
        return [(self._on_device(output), tuple(output.shape)) for output in computation._results]

    def _on_device(self, output):
        data = output.reshape(-1).view(torch.uint8).numpy()
        memory = self._gpu.memory(max(1, data.nbytes))
        self._lent.append(memory)
        memory.view[: data.nbytes] = data
        return memory.address

    def __getattr__(self, name):
        return getattr(torch, name)

    def as_tensor(self, memory, device):
        interface = memory.__cuda_array_interface__
        (size,), (address, _) = interface["shape"], interface["data"]
        self._gpu.view(address, size, pinned=False)  # it must lie there
        return torch.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=torch.uint8)

    def empty(self, shape, *, dtype, device):
        return torch.empty(shape, dtype=dtype)


def install(gpu, replace=setattr):
    """Puts torch on a fake device, for whatever the engine loads from now on; `replace` is as `setattr`."""
    made = TorchOnCuda(gpu)
    to = torch.nn.Module.to

    def moved(module, *args, **kwargs):
        return module if args and str(args[0]).startswith("cuda") else to(module, *args, **kwargs)

    def results(computation):
        return made.results(computation)

    replace(torch.nn.Module, "to", moved)
    replace(TorchComputation, "results", results)
    replace(library, "imported", lambda: made)
    replace(engine, "open_device", cuda.open_device)
    return made
