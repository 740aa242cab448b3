"""Inputs prepared on the device: the kernel's own text gives numpy's bits, and it goes with its batch and its graph."""

import numpy as np
import pytest

from forebay_server.config.tree import InputConfig
from forebay_server.engines.base import EngineBatch, OutOfMemory
from forebay_server.engines.gpu import nvrtc
from forebay_server.engines.gpu.device import DeviceError, NoDevice, Recording
from forebay_server.engines.gpu.pipeline import GpuInstance
from forebay_server.engines.gpu.pool import Budget
from forebay_server.engines.gpu.preparation import PreparedComputation, Preparer, defines, geometry
from forebay_server.engines.preparation import plan
from forebay_server.tensors import FREE, NUMPY_DTYPES, DataType, ModelSpec, TensorSpec
from tests.server.engines.gpu.computations import Doubling, SelfRecording
from tests.server.engines.gpu.fake import FakeDevice
from tests.server.engines.gpu.kernel import HostCompiler

IMAGES = InputConfig(
    data_type="UINT8", layout="channels_last", scale=1 / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]
)


@pytest.fixture(scope="session")
def compiler(tmp_path_factory):
    """Makes kernels for the host."""
    return HostCompiler(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def on_host(compiler, monkeypatch):
    """Puts the host's compiler in the place of NVRTC."""
    monkeypatch.setattr(nvrtc.NvrtcCompiler, "__call__", lambda _, macros: compiler(macros))


def spec_of(data_type, shape):
    """A model that gives back what it takes."""
    tensors = (TensorSpec(name=name, data_type=data_type, shape=(FREE, *shape)) for name in ("x", "y"))
    x, y = tensors
    return ModelSpec(inputs=(x,), outputs=(y,), batched=True)


def sample(dtype, shape):
    """Elements from the least to the largest."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.random.default_rng(3).integers(limits.min, limits.max, shape, dtype, endpoint=True)
        values.flat[:2] = limits.min, limits.max
        return values
    return np.random.default_rng(3).standard_normal(shape, "f4").astype(dtype)


@pytest.mark.parametrize(
    ("taken", "shape", "config"),
    [
        *((data_type, (3, 5, 7), IMAGES) for data_type in (DataType.FP16, DataType.BF16, DataType.FP32, DataType.FP64)),
        (DataType.FP32, (3, 5, 7), InputConfig(data_type="UINT8", mean=[1.0, 2.0, 3.0])),
        (DataType.FP32, (5, 7, 3), InputConfig(data_type="UINT8", std=[1.0, 2.0, 3.0])),
        (DataType.FP32, (11,), InputConfig(data_type="UINT8", scale=0.5)),
        (DataType.FP16, (4, 5, 7), InputConfig(data_type="UINT8", layout="channels_last")),
        (DataType.FP32, (2, 3, 4, 5), IMAGES),
        (DataType.FP32, (3, 2, 2), InputConfig(layout="channels_last")),
        (DataType.INT64, (9,), InputConfig(data_type="INT32")),
        (DataType.INT64, (9,), InputConfig(data_type="UINT16")),
        (DataType.INT64, (9,), InputConfig(data_type="UINT32")),
        (DataType.INT32, (9,), InputConfig(data_type="INT8")),
        (DataType.UINT64, (9,), InputConfig(data_type="UINT8")),
        (DataType.INT64, (3, 2, 2), InputConfig(data_type="INT16", layout="channels_last")),
    ],
)
def test_the_kernel_gives_the_bits_that_numpy_gives(compiler, taken, shape, config):
    """For each kind of preparation, whatever the number of threads."""
    sent, (made,) = plan(spec_of(taken, shape), {"x": config})
    source = sample(NUMPY_DTYPES[made.source.data_type], (3, *sent.inputs[0].shape[1:]))
    expected = np.empty(made.target_shape(source.shape), NUMPY_DTYPES[taken])
    made.apply(source, expected)
    kernel = compiler(defines(made))
    table = 0 if made.table is None else made.table.ctypes.data
    for blocks, threads in ((1, 1), (3, 4), (9, 256)):
        target = np.zeros_like(expected)
        arguments = source.ctypes.data, target.ctypes.data, table, *geometry(made, source.shape)
        kernel(arguments, blocks, threads)
        assert target.tobytes() == expected.tobytes()


class World:
    """A model that doubles images, on a fake device that prepares them."""

    def __init__(self, *, computation=Doubling, graphs=8, budget=None, total=1 << 30):
        self.device = FakeDevice(total=total)
        spec = spec_of(DataType.FP32, (3, 2, 5))
        _, self.preparations = plan(spec, {"x": IMAGES})
        self.inner = computation(self.device)
        preparer = Preparer(self.device, budget or Budget())
        assert preparer.prepare(self.preparations)
        self.computation, taken = preparer.around(self.inner, spec)
        assert taken == plan(spec, {"x": IMAGES})[0]
        self.instance = GpuInstance(self.device, self.computation, taken, graphs=graphs)

    def expected(self, pixels):
        target = np.empty((len(pixels), 3, 2, 5), "f4")
        self.preparations[0].apply(pixels, target)
        return 2 * target

    def infer(self, pixels):
        (x,) = self.instance.stage([pixels.shape])
        x[...] = pixels
        return self.instance.infer(EngineBatch([x], len(pixels)))[0]

    def close(self):
        self.instance.close()
        assert (self.device.open, self.device.used, self.device.hazards) == (0, 0, [])


def images(rows, seed=0):
    """Pixels, channels last."""
    return np.random.default_rng(seed).integers(0, 256, (rows, 2, 5, 3), "u1")


@pytest.mark.parametrize("computation", [Doubling, SelfRecording])
@pytest.mark.parametrize("graphs", [0, 8])
@pytest.mark.usefixtures("on_host")
def test_batches_are_prepared_on_the_way(computation, graphs):
    """Values are exact in every batch and size, plainly and as graphs; uploaded are the callers' bytes only."""
    world = World(computation=computation, graphs=graphs)
    for turn, rows in enumerate((1, 4, 2, 4, 1, 4)):
        pixels = images(rows, turn)
        assert world.infer(pixels).tobytes() == world.expected(pixels).tobytes()
    assert isinstance(world.computation, Recording) is (computation is SelfRecording)
    assert world.computation.capturable is world.inner.capturable
    world.close()


@pytest.mark.usefixtures("on_host")
def test_nothing_is_allocated_once_sizes_are_known():
    """The memory for prepared inputs is there after the first batches."""
    world = World()
    for rows in (4, 1, 2):
        world.infer(images(rows))
    before = world.device.used
    for turn in range(20):
        world.infer(images(1 + turn % 4 if turn % 4 != 2 else 4, turn))
    assert world.device.used == before
    world.close()


@pytest.mark.usefixtures("on_host")
def test_its_memory_counts_against_the_budget():
    """What the model's owner allows holds for prepared inputs as well."""
    budget = Budget(1 << 17)
    world = World(budget=budget)
    assert budget.taken > 0
    with pytest.raises(OutOfMemory):
        world.infer(images(4000))
    assert world.infer(images(2)).shape == (2, 3, 2, 5)
    world.close()
    assert budget.taken == 0


def test_a_model_that_takes_what_is_sent_stays_as_it_is():
    """No preparation, no wrapper."""
    device = FakeDevice()
    inner, spec = Doubling(device), spec_of(DataType.FP32, (3, 2, 5))
    preparer = Preparer(device, Budget())
    assert preparer.around(inner, spec) == (inner, spec)
    assert preparer.prepare([None])
    assert preparer.around(inner, spec) == (inner, spec)


@pytest.mark.usefixtures("on_host")
def test_more_elements_than_the_kernel_can_count_are_refused():
    """An index of 32 bits would wrap around and leave elements out."""
    world = World()
    assert isinstance(world.computation, PreparedComputation)
    with pytest.raises(DeviceError, match="more than can be prepared"):
        world.computation.enqueue([0], [(2**27, 2, 5, 3)], [0], None)
    world.close()


def test_without_a_compiler_the_cpu_prepares(monkeypatch):
    """It is said why, and the engine takes what the model takes."""

    def missing(*_):
        raise NoDevice("NVRTC can't be loaded")

    monkeypatch.setattr(nvrtc, "machine_code", missing)
    spec = spec_of(DataType.FP32, (3, 2, 5))
    _, preparations = plan(spec, {"x": IMAGES})
    device = FakeDevice()
    preparer = Preparer(device, Budget())
    assert not preparer.prepare(preparations)
    inner = Doubling(device)
    assert preparer.around(inner, spec) == (inner, spec)
