"""ONNX Runtime's GPU package as far as it can be had without a GPU: the real one computes, on a fake device's time.

A session takes the options of the CUDA provider, notes them, and runs on the CPU; a run is an operation of the stream
that the options name, on the memory that is bound, so that reading too early or writing too late gives wrong numbers.
"""

import sys
from types import SimpleNamespace

import onnxruntime

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"


class Binding:
    """An IO binding whose addresses are those of the fake device: the host's own."""

    def __init__(self, real, package):
        self.real = real
        self._package = package
        self._index = package.device.index
        self.reads, self.writes = [], []

    def bind_input(self, name, device_type, device_id, element_type, shape, address):
        assert (device_type, device_id) == ("cuda", self._index)
        self.reads.append((address, 1))
        self.real.bind_input(name, "cpu", 0, element_type, shape, address)

    def bind_output(self, name, device_type, device_id, *place):
        assert (device_type, device_id) == ("cuda", self._index)
        if place:
            self.writes.append((place[2], 1))
        self.real.bind_output(name, "cpu", 0, *place)

    def get_outputs(self):
        """What ONNX Runtime has allocated, in memory of the fake device; until the next run."""
        self._package.give_back()
        return [self._on_device(value.numpy()) for value in self.real.get_outputs()]

    def _on_device(self, array):
        memory = self._package.device.memory(max(1, array.nbytes))
        self._package.lent.append(memory)
        memory.view[: array.nbytes] = array.reshape(-1).view("u1")
        return SimpleNamespace(data_ptr=lambda: memory.address, shape=lambda: list(array.shape))


class Session:
    """A session whose runs are operations of a stream."""

    def __init__(self, package, path, settings, providers):
        self.providers = dict(providers)
        self.options = self.providers.get(CUDA, {})
        self._package = package
        self._real = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        self._stream = next(
            stream for stream in package.device._streams if str(stream.handle) == self.options["user_compute_stream"]
        )
        self.get_inputs, self.get_outputs = self._real.get_inputs, self._real.get_outputs
        self.runs = []

    def get_providers(self):
        return [name for name in self.providers if name not in self._package.broken] + ["CPUExecutionProvider"]

    def io_binding(self):
        return Binding(self._real.io_binding(), self._package)

    def run_with_iobinding(self, binding, options):
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        self.runs.append(options.get_run_config_entry("gpu_graph_id"))
        self._stream.compute(
            1e-3,
            lambda: self._real.run_with_iobinding(binding.real),
            reads=binding.reads,
            writes=binding.writes,
        )


def package(device, *, available=(TENSORRT, CUDA), broken=(), refuses_graphs=False):
    """The module `onnxruntime` of the GPU package, on one device.

    Args:
        device: The fake one.
        available: Providers that it was built with.
        broken: Those whose libraries can't be loaded: sessions go on without them, as they really do.
        refuses_graphs: Whether it finds parts of each model on the CPU.
    """

    def session(path, settings, providers, enable_fallback):
        assert enable_fallback == 0
        if refuses_graphs and dict(providers)[CUDA]["enable_cuda_graph"] == "1":
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
        made = Session(fake, path, settings, providers)
        fake.sessions.append(made)
        return made

    fake = SimpleNamespace(
        **{name: getattr(onnxruntime, name) for name in dir(onnxruntime) if not name.startswith("_")},
        __version__=onnxruntime.__version__,
    )
    fake.device, fake.broken, fake.sessions, fake.lent = device, broken, [], []
    fake.give_back = lambda: [fake.lent.pop().close() for _ in list(fake.lent)]
    fake.get_available_providers = lambda: [*available, "CPUExecutionProvider"]
    fake.preload_dlls = lambda: sys.stdout.write("Failed to load libcublas.so")
    fake.InferenceSession = session
    return fake
