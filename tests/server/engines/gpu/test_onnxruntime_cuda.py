"""The onnxruntime engine on a fake GPU: the real ONNX Runtime computes, on the device's time and memory."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from forebay_server.config.tree import BatchingConfig, EngineConfig, InputConfig, ModelConfig
from forebay_server.engines import onnxruntime as engine_module
from forebay_server.engines.base import EngineBatch, EngineDead, ModelLoadError
from forebay_server.engines.gpu import cuda, nvrtc
from forebay_server.engines.gpu.device import NoDevice
from forebay_server.engines.onnxruntime_cuda import provider_options
from forebay_server.models.loader import load
from tests.server.engines.gpu.fake import FakeDevice
from tests.server.engines.gpu.kernel import HostCompiler
from tests.server.engines.gpu.onnx_on_cuda import CUDA, TENSORRT, package


@pytest.fixture
def gpu(monkeypatch):
    """Puts a fake device and the GPU package in place; gives both, and loads models there."""

    class World:
        def __init__(self):
            self.models = []
            self.use()

        def use(self, **how):
            self.device = FakeDevice()
            self.package = package(self.device, **how)
            monkeypatch.setattr(cuda, "devices", lambda: 1)
            monkeypatch.setattr(cuda, "open_device", lambda index: self.device)
            monkeypatch.setattr(engine_module, "_import", lambda: self.package)

        def load(self, path, *, options=None, memory=0, **config):
            engine = EngineConfig(
                devices=["cuda:0"], options=options or {}, device_memory_mib=memory, **config.pop("engine", {})
            )
            model = load(ModelConfig(path=str(path), engine=engine, **config))
            self.models.append(model)
            return model

    world = World()
    yield world
    for model in world.models:
        model.close()
        world.package.give_back()
        assert world.device.hazards == []
        assert world.device.lost or (world.device.open, world.device.used) == (0, 0)


def infer(model, *arrays, instance=0):
    """A batch through an instance, staged as collate does."""
    runner = model.instances[instance]
    staged = runner.stage([array.shape for array in arrays])
    for target, array in zip(staged, arrays, strict=True):
        target[...] = array
    return runner.collect(runner.issue(EngineBatch(staged, len(arrays[0]))))


def test_nothing_is_printed(gpu, onnx_models, capsys):
    """What ONNX Runtime prints of libraries that it looks for is for nobody; what is missing comes as an error."""
    gpu.load(onnx_models.make_linear_model(), batching=BatchingConfig(max_batch_size=2))
    assert "libcublas" not in capsys.readouterr().out


def test_answers_are_the_models_own(gpu, onnx_models):
    """In every captured size and in sizes that are not, with two batches in flight."""
    model = gpu.load(onnx_models.make_linear_model(), batching=BatchingConfig(max_batch_size=8))
    assert (model.device, model.batch_sizes, model.max_batch_size) == ("cuda:0", (1, 2, 3, 4, 6, 8), 8)
    assert not model.inline
    assert model.instances[0].depth == 2
    for rows in (1, 2, 3, 4, 5, 6, 7, 8):
        x = np.arange(rows * 64, dtype="f4").reshape(rows, 64) % 7
        assert np.array_equal(infer(model, x)[0], onnx_models.linear(x))


def test_runs_are_captured_on_our_stream(gpu, onnx_models):
    """After warm-up a batch of a captured size does not go through ONNX Runtime at all; its own capture stays out."""
    model = gpu.load(onnx_models.make_linear_model(), batching=BatchingConfig(max_batch_size=2))
    (session,) = gpu.package.sessions
    assert set(session.runs) == {"-1"}
    before = len(session.runs)
    for rows in (1, 2, 2, 1, 2):
        infer(model, np.ones((rows, 64), "f4"))
    assert len(session.runs) == before
    assert len(gpu.device.kinds("graph")) >= 5


def test_the_session_is_told_where_and_how(gpu, onnx_models):
    """Device, stream, memory, graphs; FP32 is FP32; the owner's options are stronger."""
    options = {"cuda.cudnn_conv_algo_search": "EXHAUSTIVE", "cuda.use_tf32": True, "session.disable_prepacking": "1"}
    gpu.load(onnx_models.make_linear_model(), options=options, memory=64, engine={"instances": 2})
    first, second = gpu.package.sessions
    assert {name: value for name, value in first.options.items() if name != "user_compute_stream"} == {
        "device_id": "0",
        "has_user_compute_stream": "1",
        "use_tf32": "1",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "enable_cuda_graph": "1",
        "gpu_mem_limit": str(64 << 20),
    }
    assert first.options["user_compute_stream"] != second.options["user_compute_stream"]


def test_tensorrt_stands_before_cuda(gpu, onnx_models):
    """Its options are its own; both enqueue on our stream."""
    options = {"providers": f"{TENSORRT},{CUDA}", "tensorrt.trt_engine_cache_enable": True, "graphs": "none"}
    gpu.load(onnx_models.make_linear_model(), options=options)
    (session,) = gpu.package.sessions
    assert list(session.providers) == [TENSORRT, CUDA]
    tensorrt = session.providers[TENSORRT]
    assert tensorrt["trt_engine_cache_enable"] == "1"
    assert tensorrt["user_compute_stream"] == session.options["user_compute_stream"]


def test_onnx_runtimes_own_graphs_are_an_option(gpu, onnx_models):
    """Each captured size in each set of buffers has an id of its own; what is not captured has none."""
    model = gpu.load(
        onnx_models.make_linear_model(), options={"graphs": "session"}, batching=BatchingConfig(max_batch_size=2)
    )
    (session,) = gpu.package.sessions
    ids = {graph for graph in session.runs if graph != "-1"}
    assert ids == {"1", "2", "3", "4"}  # 2 sizes, 2 sets
    before = len(session.runs)
    for rows in (1, 1, 2, 2):  # in turn in both sets
        x = np.full((rows, 64), rows, "f4")
        assert np.array_equal(infer(model, x)[0], onnx_models.linear(x))
    assert sorted(session.runs[before:]) == ["1", "2", "3", "4"]


def test_without_graphs_every_run_is_plain(gpu, onnx_models):
    """No size is padded to, and nothing is captured."""
    model = gpu.load(onnx_models.make_linear_model(), options={"graphs": "none", "depth": 1})
    assert (model.batch_sizes, model.instances[0].depth) == ((), 1)
    assert gpu.package.sessions[0].options["enable_cuda_graph"] == "0"
    assert gpu.device.kinds("graph") == []


def test_a_model_that_cannot_be_captured_runs_plainly(gpu, onnx_models):
    """ONNX Runtime refuses graphs for it; it is loaded without."""
    gpu.use(refuses_graphs=True)
    model = gpu.load(onnx_models.make_linear_model())
    assert model.batch_sizes == ()
    x = np.ones((3, 64), "f4")
    assert np.array_equal(infer(model, x)[0], onnx_models.linear(x))


def test_outputs_of_unknown_shape_come_back(gpu, onnx_models):
    """ONNX Runtime allocates them; the model has no batch."""
    node = helper.make_node("NonZero", ["x"], ["y"])
    path = onnx_models.save("nonzero", [node], [("x", TensorProto.FLOAT, [4])], [("y", TensorProto.INT64, [1, "K"])])
    model = gpu.load(path)
    for values in ([0, 1, 0, 2], [1, 1, 1, 1], [0, 0, 0, 5]):
        x = np.array(values, "f4")
        runner = model.instances[0]
        (staged,) = runner.stage([x.shape])
        staged[...] = x
        (y,) = runner.collect(runner.issue(EngineBatch([staged], 1)))
        assert y.tolist() == [np.nonzero(x)[0].tolist()]


def test_a_model_whose_batch_is_denied_is_given_out_whole(gpu, onnx_models):
    """`batch_dimension = "none"`: all rows belong to the one request."""
    model = gpu.load(onnx_models.make_linear_model(), batching=BatchingConfig(batch_dimension="none"))
    assert (model.spec.batched, model.batch_sizes) == (False, ())
    x = np.ones((5, 64), "f4")
    runner = model.instances[0]
    (staged,) = runner.stage([x.shape])
    staged[...] = x
    (y,) = runner.collect(runner.issue(EngineBatch([staged], 1)))
    assert np.array_equal(y, onnx_models.linear(x))


def test_pixels_are_prepared_on_the_device(gpu, onnx_models, monkeypatch, tmp_path):
    """The kernel runs in front of the model, and the caller's bytes are all that goes up."""
    kernels = HostCompiler(tmp_path)
    monkeypatch.setattr(nvrtc.NvrtcCompiler, "__call__", lambda self, defines: kernels(defines))
    image = InputConfig(data_type="UINT8", layout="channels_last", scale=0.5, mean=[1.0, 2.0, 3.0])
    path = onnx_models.make_identity_model("FLOAT", ("N", 3, 2, 4))
    model = gpu.load(path, inputs={"x": image}, batching=BatchingConfig(max_batch_size=2))
    assert model.spec.inputs[0].shape == (-1, 2, 4, 3)
    launches = sum(kernel.launches for kernel in kernels.kernels.values())
    assert launches > 0
    pixels = np.arange(2 * 24, dtype="u1").reshape(2, 2, 4, 3)
    expected = (pixels * 0.5 - np.array([1.0, 2.0, 3.0])).transpose(0, 3, 1, 2).astype("f4")
    assert np.array_equal(infer(model, pixels)[0], expected)
    assert sum(kernel.launches for kernel in kernels.kernels.values()) == launches  # it is part of the graph


def test_without_a_compiler_the_cpu_prepares(gpu, onnx_models, monkeypatch):
    """The same answer, more bytes on the way."""

    def missing(*_):
        raise NoDevice("NVRTC can't be loaded")

    monkeypatch.setattr(nvrtc, "machine_code", missing)
    model = gpu.load(onnx_models.make_identity_model("FLOAT", ("N", 3)), inputs={"x": InputConfig(data_type="UINT8")})
    (y,) = model.instances[0].infer(EngineBatch([np.array([[1, 2, 255]], "u1")], 1))
    assert y.tolist() == [[1.0, 2.0, 255.0]]


def test_a_lost_device_is_told_apart(gpu, onnx_models):
    """Whatever ONNX Runtime says, the device is asked; its death is EngineDead with its name."""
    model = gpu.load(onnx_models.make_linear_model(), options={"graphs": "none"})
    (session,) = gpu.package.sessions

    def fails(binding, options):
        gpu.device.kill()
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    session.run_with_iobinding = fails
    with pytest.raises(EngineDead) as caught:
        infer(model, np.ones((1, 64), "f4"))
    assert caught.value.device == "cuda:0"


@pytest.mark.parametrize(
    ("how", "options", "sentence"),
    [
        ({"available": ()}, {}, "ONNX Runtime has no 'CUDAExecutionProvider' here; it has CPUExecutionProvider"),
        ({"broken": (CUDA,)}, {}, "can't load its CUDAExecutionProvider here: a CUDA, cuDNN or TensorRT library"),
        ({"broken": (TENSORRT,)}, {"providers": f"{TENSORRT},{CUDA}"}, "can't load its TensorrtExecutionProvider"),
        ({}, {"providers": "CPUExecutionProvider"}, "engine option 'providers': on a GPU"),
        ({}, {"graphs": "all"}, "'graphs' must be one of stream, session, none, not 'all'"),
        ({}, {"depth": 0}, "'depth' must be at least 1"),
        ({}, {"tensor.x": 1, "nonsense": 1}, "has no option nonsense; it has"),
    ],
)
def test_what_is_missing_or_wrong_is_one_sentence(gpu, onnx_models, how, options, sentence):
    """ONNX Runtime would go on without a provider that it can't load; we don't."""
    gpu.use(**how)
    with pytest.raises(ModelLoadError, match=sentence):
        gpu.load(onnx_models.make_linear_model(), options=options)
    assert gpu.device.open == 0


def test_text_stays_on_the_cpu(gpu, onnx_models):
    """Strings have no place in device memory."""
    with pytest.raises(ModelLoadError, match="'x' is text"):
        gpu.load(onnx_models.make_string_model())
    assert gpu.device.open == 0


def test_gpu_providers_are_not_for_the_cpu(onnx_models):
    """Who wants CUDA says so by the device."""
    engine = EngineConfig(options={"providers": CUDA})
    with pytest.raises(ModelLoadError, match=r"engine\.devices says where it runs"):
        load(ModelConfig(path=str(onnx_models.make_linear_model()), engine=engine))


def test_memory_is_limited_only_if_it_is_said():
    """No limit of ours: ONNX Runtime's own default."""
    ((_, options),) = provider_options(1, 7, memory=0, graphs="none", cuda={}, tensorrt=None)
    assert "gpu_mem_limit" not in options
    assert (options["device_id"], options["user_compute_stream"], options["enable_cuda_graph"]) == ("1", "7", "0")
