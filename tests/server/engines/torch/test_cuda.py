"""What the GPU's data path is given by torch, and the engine on a GPU, with stand-ins for the device and for torch."""

import threading

import numpy as np
import pytest

from forebay_server.config.tree import BatchingConfig, InputConfig
from forebay_server.engines.base import EngineBatch, EngineDead, ModelLoadError, OutOfMemory, RejectInput
from forebay_server.engines.gpu import nvrtc
from forebay_server.engines.gpu.device import CaptureFailed, Computation, Recording
from forebay_server.engines.gpu.graphs import ladder
from forebay_server.engines.preparation import plan
from forebay_server.engines.torch import TorchEngine, engine, library
from forebay_server.engines.torch.cuda import TorchComputation
from forebay_server.engines.torch.profile import Range, Tensor
from tests.server.engines.gpu.fake import FakeDevice
from tests.server.engines.gpu.kernel import HostCompiler
from tests.server.engines.torch.fake_torch import Doubling, FakeTorch
from tests.server.engines.torch.packages import metadata_like, profile_like, write_package

PROFILE = profile_like(
    instructions=tuple(sorted(library.instructions_here())),
    inputs=(Tensor("x", "FP32", ("b", 4)),),
    outputs=(Tensor("y", "FP32", ("b", 4)),),
    dimensions={"b": Range(1, 8)},
)
SPEC = PROFILE.spec()


class World:
    """A computation on a device, with a stream and memory for three rows in and out."""

    def __init__(self):
        self.gpu = FakeDevice(index=1)
        self.torch = FakeTorch(self.gpu)
        self.model = Doubling(self.torch)
        self.computation = TorchComputation(self.torch, self.model, SPEC, None, self.gpu)
        self.stream = self.gpu.stream()
        self.x, self.y = self.gpu.memory(48), self.gpu.memory(48)
        self.x.view.view("f4")[:] = np.arange(12)

    def call(self, function, *, outputs=None):
        """`enqueue` or `record_run` with these buffers."""
        return function([self.x.address], [(3, 4)], [self.y.address] if outputs is None else outputs, self.stream)

    def run(self):
        """The outputs of a run that has come to its end."""
        self.y.view[:] = 0
        self.call(self.computation.enqueue)
        return self.result()

    def result(self):
        self.stream.synchronize()
        return self.y.view.view("f4").tolist()


DOUBLED = [2.0 * n for n in range(12)]


@pytest.fixture
def world():
    made = World()
    yield made
    made.computation.close()
    assert made.gpu.hazards == []


def test_it_is_what_the_data_path_asks_for(world):
    """A computation that captures by itself."""
    computation: Computation = world.computation
    assert isinstance(computation, Recording)
    assert computation.capturable is False


def test_a_run_is_enqueued_on_the_stream_that_is_given(world):
    """Its inputs are read where they are, and its outputs copied to where they are wanted."""
    assert world.run() == DOUBLED
    assert world.torch.cuda.current is None


def test_buffers_are_wrapped_once(world):
    """Two batches in the same memory make no further tensors."""
    world.run()
    assert world.torch.wrapped == 2
    world.run()
    assert world.torch.wrapped == 2


def test_graphs_are_captured_by_torch(world):
    """Thread-local, in one pool of the instance; nothing runs until they are replayed."""
    world.y.view[:] = 0
    launches = [world.call(world.computation.record_run) for _ in range(2)]
    assert world.torch.cuda.log == ["pool", *["capture in the pool, thread_local"] * 2]
    assert world.result() == [0.0] * 12
    launches[1]()
    assert world.result() == DOUBLED
    assert (world.torch.cuda.log[3:], world.model.runs) == (["replay"], 2)


def test_what_can_not_be_captured(world):
    """The data path then runs it plainly."""
    with pytest.raises(CaptureFailed, match="known only after a run"):
        world.call(world.computation.record_run, outputs=[])
    world.torch.cuda.fails = "operation not permitted when stream is capturing\nCompile with ..."
    with pytest.raises(CaptureFailed, match=r"^operation not permitted when stream is capturing$"):
        world.call(world.computation.record_run)
    world.torch.cuda.fails = None
    world.model.error = "CUDA out of memory"
    with pytest.raises(CaptureFailed):
        world.call(world.computation.record_run)
    world.model.error = None
    assert world.run() == DOUBLED


def test_faults_are_told_apart(world):
    """No memory, a fault of the batch, and a lost device."""
    world.model.error = "run_func_() API call failed: out of memory"
    with pytest.raises(OutOfMemory):
        world.run()
    world.model.error = "run_func_() API call failed"
    with pytest.raises(RuntimeError, match="API call failed"):
        world.run()
    world.model.error = None
    assert world.run() == DOUBLED
    world.model.error = "run_func_() API call failed"
    world.gpu.kill()
    with pytest.raises(EngineDead, match="cudaErrorIllegalAddress"):
        world.run()


def test_shapes_of_outputs(world):
    """By the profile of a package, by the specification of a module if only its batch is free, or after the run."""

    def of(profile, spec=None):
        return TorchComputation(world.torch, world.model, spec or profile.spec(), profile, world.gpu)

    assert of(profile_like()).output_shapes([(3, 4), (3, 7)]) == [(3, 7)]
    with pytest.raises(RejectInput, match="is 9, but the model was compiled for 1 to 8"):
        of(profile_like()).output_shapes([(9, 4), (9, 7)])
    assert of(None, SPEC).output_shapes([(50, 4)]) == [(50, 4)]
    assert of(None, profile_like().spec()).output_shapes([(3, 4), (3, 7)]) is None
    late = profile_like(outputs=(Tensor("y", "FP32", ("b", None)),))
    assert of(late).output_shapes([(3, 4), (3, 7)]) is None


def test_outputs_that_stay_where_they_are(world):
    """Where their shapes are known only after the run, the data path fetches them from torch's memory."""
    world.call(world.computation.enqueue, outputs=[])
    world.stream.synchronize()
    ((address, shape),) = world.computation.results()
    assert shape == (3, 4)
    assert world.gpu.view(address, 48).view("f4").tolist() == DOUBLED


def test_closing_gives_memory_back(world):
    """And nothing runs any more."""
    world.run()
    world.computation.close()
    assert world.torch.cuda.log == ["empty cache"]
    with pytest.raises(RuntimeError, match="the computation is closed"):
        world.run()


@pytest.fixture
def gpu(monkeypatch):
    """A device, and a torch that finds it."""
    device = FakeDevice(index=1)
    torch = FakeTorch(device)
    device.torch = torch
    device.packages = []
    monkeypatch.setattr(engine, "open_device", lambda index: device)
    monkeypatch.setattr(library, "imported", lambda: torch)

    def open_package(path, where, *, single_threaded):
        assert (where, single_threaded) == ("cuda:1", True)
        device.packages.append(Doubling(torch))
        return device.packages[-1]

    monkeypatch.setattr(library, "open_package", open_package)
    return device


def package(tmp_path, **changes):
    """A package for such a GPU."""
    on_gpu = {"AOTI_DEVICE_KEY": "cuda", "AOTI_COMPUTE_CAPABILITY": "90"}
    return write_package(tmp_path / "model.pt2", metadata_like(PROFILE, **{**on_gpu, **changes}))


def test_a_package_on_a_gpu(gpu, tmp_path, settings):
    """Padded sizes are captured by the loader's thread, and replayed for requests, two of which are in flight."""
    opened = TorchEngine(package(tmp_path), settings(device="cuda:1"))
    assert opened.load() == SPEC
    assert (opened.device, opened.always_worker, opened.holds_gil) == ("cuda:1", True, False)
    assert (tuple(opened.batch_sizes), opened.max_batch_size) == (ladder(8), 8)
    instance = opened.instance(0)

    def batch(values):
        (x,) = instance.stage([(len(values), 4)])
        x[...] = np.array(values, "f4")[:, None]
        return EngineBatch([x], len(values))

    for size in opened.batch_sizes:
        instance.infer(batch([0.0] * size))
    runs = gpu.packages[0].runs
    assert gpu.torch.cuda.log.count("capture in the pool, thread_local") == 2 * len(opened.batch_sizes)
    answers = []

    def serve():
        tickets = [instance.issue(batch([1.0, 2.0, 3.0])), instance.issue(batch([4.0, 5.0, 6.0]))]
        answers.extend(instance.collect(ticket)[0][:, 0].tolist() for ticket in tickets)

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert answers == [[2.0, 4.0, 6.0], [8.0, 10.0, 12.0]]
    assert gpu.packages[0].runs == runs
    second = opened.instance(1)
    assert len(gpu.packages) == 2  # each instance has a package of its own
    for made in (instance, second):
        made.close()
    gpu.torch.close()
    opened.close()
    assert gpu.hazards == []


def test_inputs_are_prepared_on_the_gpu(gpu, tmp_path, settings, monkeypatch):
    """Bytes as callers send them; a kernel runs before the package's graph."""
    kernels = HostCompiler(tmp_path)
    monkeypatch.setattr(nvrtc.NvrtcCompiler, "__call__", lambda _, macros: kernels(macros))
    opened = TorchEngine(package(tmp_path), settings(device="cuda:1"))
    _, preparations = plan(opened.load(), {"x": InputConfig(data_type="UINT8", scale=0.5)})
    assert opened.prepare(preparations)
    instance = opened.instance(0)
    for _ in range(2):  # plainly, and as a graph
        (x,) = instance.stage([(2, 4)])
        x[...] = np.arange(8, dtype="u1").reshape(2, 4)
        (y,) = instance.infer(EngineBatch([x], 2))
        assert y.tolist() == [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]
    assert sum(kernel.launches for kernel in kernels.kernels.values()) > 0
    instance.close()
    gpu.torch.close()
    opened.close()


def test_a_package_for_another_gpu(gpu, tmp_path, settings):
    """Refused before its code is loaded."""
    opened = TorchEngine(package(tmp_path, AOTI_COMPUTE_CAPABILITY="80"), settings(device="cuda:1"))
    with pytest.raises(ModelLoadError, match="compiled for compute capability 80, but cuda:1 has 90"):
        opened.load()
    assert gpu.packages == []
    cpu = TorchEngine(package(tmp_path, AOTI_DEVICE_KEY="cpu"), settings(device="cuda:1"))
    with pytest.raises(ModelLoadError, match="compiled for the device 'cpu', not for 'cuda'"):
        cpu.load()


def test_without_graphs(gpu, tmp_path, settings):
    """Then batches are not padded, and nothing is captured."""
    opened = TorchEngine(package(tmp_path), settings(device="cuda:1", options={"graphs": False}))
    opened.load()
    assert (opened.batch_sizes, opened.max_batch_size) == ((), 8)
    instance = opened.instance(0)
    (x,) = instance.stage([(5, 4)])
    x[...] = 3
    assert instance.infer(EngineBatch([x], 5))[0].tolist() == [[6.0] * 4] * 5
    assert gpu.torch.cuda.log == []
    instance.close()


@pytest.mark.parametrize(("wanted", "sizes"), [(0, ladder(8)), (5, ladder(5)), (20, ladder(8))])
def test_sizes_follow_the_settings(gpu, tmp_path, settings, wanted, sizes):
    """Up to what the owner wants, and never over what the package takes; asking for more is the loader's complaint."""
    opened = TorchEngine(package(tmp_path), settings(device="cuda:1", batching=BatchingConfig(max_batch_size=wanted)))
    opened.load()
    assert tuple(opened.batch_sizes) == sizes
