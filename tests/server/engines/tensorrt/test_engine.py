"""The engine from plan to answers: profiles, graphs, overlap, outputs that depend on data, faults, teardown."""

import gc
import threading

import numpy as np
import pytest
import structlog
from onnx import TensorProto, helper

from forebay_server.config.tree import BatchingConfig, EngineConfig, InputConfig, ModelConfig
from forebay_server.engines.base import EngineBatch, EngineDead, OutOfMemory, RejectInput
from forebay_server.engines.gpu import nvrtc
from forebay_server.engines.tensorrt import plan as plan_module
from forebay_server.models import loader, measuring
from forebay_server.tensors import FREE, DataType, TensorSpec
from tests.server.engines.gpu.kernel import HostCompiler
from tests.server.engines.tensorrt.fake_tensorrt import ErrorCodeTRT
from tests.server.engines.tensorrt.helpers import infer
from tests.server.engines.threads import elsewhere


def keep_positive(onnx_models):
    """y: the elements of x that are over zero, which is how many depends on the data; z = x."""
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])
    return onnx_models.save(
        "positive",
        [
            helper.make_node("Greater", ["x", "zero"], ["over"]),
            helper.make_node("Compress", ["x", "over"], ["y"]),
            helper.make_node("Identity", ["x"], ["z"]),
        ],
        [("x", TensorProto.FLOAT, ["N"])],
        [("y", TensorProto.FLOAT, ["M"]), ("z", TensorProto.FLOAT, ["N"])],
        [zero],
    )


def test_a_plan_is_loaded_and_runs(engine, plan, onnx_models):
    """Names, types, shapes and batch sizes are the plan's; values are exact, in every size, from graphs as well."""
    made = engine(plan())
    spec = made.load()
    assert spec.inputs == (TensorSpec(name="x", data_type=DataType.FP32, shape=(FREE, 64)),)
    assert spec.outputs == (TensorSpec(name="y", data_type=DataType.FP32, shape=(FREE, 10)),)
    assert spec.batched
    assert (made.version, made.device, made.always_worker) == ("10.16.1.11", "cuda:0", True)
    assert list(made.batch_sizes) == [1, 2, 3, 4, 6, 8]
    instance = made.instance()
    for rows in (1, 3, 8):
        x = np.arange(rows * 64, dtype=np.float32).reshape(rows, 64) % 7
        for _ in range(3):
            assert np.array_equal(infer(instance, x)[0], onnx_models.linear(x))


@pytest.mark.usefixtures("machine")
def test_inputs_are_prepared_on_the_device(onnx_models, tmp_path, monkeypatch):
    """Pixels as they are sent; the plan is built for what the model takes, and the kernel runs before its graph."""
    kernels = HostCompiler(tmp_path)
    monkeypatch.setattr(nvrtc.NvrtcCompiler, "__call__", lambda _, macros: kernels(macros))
    config = ModelConfig(
        path=str(onnx_models.make_identity_model("FLOAT", ("N", 3, 2, 4))),
        engine=EngineConfig(name="tensorrt"),
        batching=BatchingConfig(max_batch_size=2),  # warm-up may leave larger ones out, if they look slow
        inputs={"x": InputConfig(data_type="UINT8", layout="channels_last", scale=0.5, mean=[1.0, 2.0, 3.0])},
    )
    model = loader.load(config)
    pixels = np.arange(2 * 24, dtype="u1").reshape(2, 2, 4, 3)
    launches = sum(kernel.launches for kernel in kernels.kernels.values())
    (y,) = elsewhere(infer, model.instances[0], pixels)
    expected = (pixels * 0.5 - np.array([1.0, 2.0, 3.0])).transpose(0, 3, 1, 2).astype("f4")
    assert np.array_equal(y, expected)
    assert model.spec.inputs[0] == TensorSpec(name="x", data_type=DataType.UINT8, shape=(FREE, 2, 4, 3), measures=True)
    assert launches > 0
    assert sum(kernel.launches for kernel in kernels.kernels.values()) == launches + 1
    model.close()


def test_warm_up_captures_graphs_and_requests_launch_them(engine, plan, device, onnx_models):
    """In the loader's thread a size runs plainly and is captured; from other threads it is one launch."""
    made = engine(plan())
    made.load()
    instance = made.instance()
    x = np.ones((4, 64), np.float32)
    infer(instance, x)
    plain = len(device.kinds("compute"))
    launched = len(device.kinds("graph"))
    assert np.array_equal(elsewhere(infer, instance, x)[0], onnx_models.linear(x))
    assert len(device.kinds("compute")) == plain
    assert len(device.kinds("graph")) == launched + 1


def test_sizes_whose_costs_are_known_are_captured_too(machine, device, onnx_models, tmp_path, monkeypatch):
    """The second start need not measure, but nothing is left for requests to find uncaptured."""
    monkeypatch.setattr(measuring, "agrees", lambda _pairs: True)
    config = ModelConfig(
        path=str(onnx_models.make_linear_model()),
        engine=EngineConfig(name="tensorrt", instances=2),
        batching=BatchingConfig(max_batch_size=4),
    )
    for _ in range(2):
        loaded = loader.load(config, cache_dir=tmp_path / "cache")
        plain = len(device.kinds("compute"))
        for instance in loaded.instances:
            for _, rows, _ in loaded.measurements:
                x = np.ones((rows, 64), np.float32)
                assert np.array_equal(elsewhere(infer, instance, x)[0], onnx_models.linear(x))
        assert len(device.kinds("compute")) == plain
        loaded.close()
    assert machine.builds == 1


def test_each_graph_has_a_context_of_its_own(engine, plan, machine, onnx_models):
    """NVIDIA leaves undefined what a graph does once its context is changed; a captured size is run between others."""
    made = engine(plan())
    made.load()
    instance = made.instance()
    sizes = (1, 4, 8)
    for rows in sizes:
        infer(instance, np.ones((rows, 64), np.float32))
    assert machine.log.count("context") == 1 + len(sizes) * instance.depth
    for rows in (8, 2, 4, 1, 3, 8, 4):
        x = np.full((rows, 64), rows, np.float32)
        assert np.array_equal(elsewhere(infer, instance, x)[0], onnx_models.linear(x))
    assert machine.device.hazards == []


def test_no_memory_for_a_graph_is_no_failure(engine, plan, machine, device, onnx_models):
    """That size runs plainly."""
    made = engine(plan())
    made.load()
    instance = made.instance()
    machine.failures["create_execution_context"] = (ErrorCodeTRT.FAILED_ALLOCATION, "none left")
    x = np.ones((4, 64), np.float32)
    with structlog.testing.capture_logs() as logs:
        infer(instance, x)
    (said,) = [log for log in logs if log["log_level"] == "warning"]
    assert (said["event"], "no memory on cuda:0 for one more instance" in said["because"]) == (
        "graph not captured",
        True,
    )
    assert np.array_equal(elsewhere(infer, instance, x)[0], onnx_models.linear(x))


def test_what_can_not_be_captured_runs_plainly(engine, plan, device, onnx_models):
    """A failed capture costs speed, not answers."""
    device.refuse_capture = True
    made = engine(plan())
    made.load()
    instance = made.instance()
    x = np.ones((4, 64), np.float32)
    infer(instance, x)
    assert np.array_equal(elsewhere(infer, instance, x)[0], onnx_models.linear(x))
    assert device.kinds("graph") == []


def test_graphs_can_be_switched_off(engine, plan, device):
    """The option `graphs`."""
    made = engine(plan(), graphs=False)
    made.load()
    instance = made.instance()
    for _ in range(3):
        infer(instance, np.ones((4, 64), np.float32))
    assert device.kinds("graph") == []


def test_two_batches_are_in_flight(engine, plan, device, onnx_models):
    """The second is uploaded while the first computes, and shares its memory for activations without harm."""
    made = engine(plan(), graphs=False)
    made.load()
    instance = made.instance()
    xs = [np.full((2, 64), value, np.float32) for value in (1, 2, 3)]
    tickets, answers = [], []
    for x in xs:
        if len(tickets) == instance.depth:
            answers.append(instance.collect(tickets.pop(0)))
        (staged,) = instance.stage([x.shape])
        staged[...] = x
        tickets.append(instance.issue(EngineBatch([staged], 2)))
    answers += [instance.collect(ticket) for ticket in tickets]
    for x, (y,) in zip(xs, answers, strict=True):
        assert np.array_equal(y, onnx_models.linear(x))
    uploads, computes = device.kinds("upload"), device.kinds("compute")
    assert uploads[1][1] < computes[0][2]


def test_each_batch_runs_in_the_profile_of_its_bucket(engine, machine, onnx_models):
    """Several profiles, a context for each, and all share one block of memory."""
    made = engine(
        onnx_models.make_sequence_model(), batching={"max_batch_size": 4}, buckets={"shapes": {"x": [[3], [6], [9]]}}
    )
    made.load()
    assert machine.builder_told["profiles"] == [{"x": [[1, length], [4, length], [4, length]]} for length in (3, 6, 9)]
    before = machine.device.used
    instance = made.instance()
    assert machine.log.count("context") == 3
    assert machine.device.used - before >= 3 * machine.activations  # what the third profile needs, once
    assert machine.device.used - before < 4 * machine.activations
    for length in (9, 3, 6, 3):
        x = np.full((2, length), length, np.float32)
        assert np.array_equal(infer(instance, x)[0], x + 1)


def test_shapes_that_no_profile_holds_are_refused(engine, plan):
    """The caller is told which there are; the instance goes on."""
    made = engine(plan())
    made.load()
    instance = made.instance()
    with pytest.raises(RejectInput) as caught:
        infer(instance, np.ones((9, 64), np.float32))
    assert caught.value.message == "the model is not built for x [9, 64], but for x [1, 64] to [8, 64]"
    assert infer(instance, np.ones((2, 64), np.float32))[0].shape == (2, 10)


def test_outputs_whose_size_depends_on_the_data(engine, onnx_models, device):
    """An allocator takes them; nothing is captured, and memory is kept for the next batch."""
    made = engine(keep_positive(onnx_models), batching={"batch_dimension": "none"}, buckets={"shapes": {"x": [[6]]}})
    made.load()
    instance = made.instance()
    x = np.array([1, -1, 2, -2, 3, -3], np.float32)
    for sign in (1, -1, 1):
        y, z = infer(instance, sign * x)
        assert y.tolist() == [value for value in (sign * x).tolist() if value > 0]
        assert np.array_equal(z, sign * x)
    held = device.allocations
    assert infer(instance, np.ones(6, np.float32))[0].size == 6
    assert infer(instance, -np.ones(6, np.float32))[0].size == 0
    assert device.allocations == held
    assert device.kinds("graph") == []


def test_no_memory_for_outputs_is_no_memory(engine, onnx_models, device):
    """The batch fails as too large; the next one passes once there is memory."""
    made = engine(keep_positive(onnx_models), batching={"batch_dimension": "none"}, buckets={"shapes": {"x": [[6]]}})
    made.load()
    instance = made.instance()
    device.total, total = device.used + (1 << 16), device.total  # for one of the two outputs
    with pytest.raises(OutOfMemory):
        infer(instance, np.ones(6, np.float32))
    device.total = total
    assert infer(instance, np.ones(6, np.float32))[0].size == 6


def test_instances_share_the_weights(engine, plan, machine):
    """One engine, contexts and memory of their own."""
    made = engine(plan())
    made.load()
    first, second = made.instance(0), made.instance(1)
    assert (machine.log.count("engine"), machine.log.count("context")) == (1, 2)
    x = np.ones((2, 64), np.float32)
    assert np.array_equal(infer(first, x)[0], infer(second, x)[0])


def test_one_plan_is_deserialized_at_a_time(engine, plan, machine):
    """Whoever comes second waits for the lock of the process."""
    made = engine(plan())
    with plan_module._deserializing:
        thread = threading.Thread(target=made.load)
        thread.start()
        while "runtime" not in machine.log:
            thread.join(0.01)
        assert "engine" not in machine.log
    thread.join()
    assert machine.log == ["runtime", "engine"]


def test_everything_is_let_go_of_in_order(engine, plan, machine, device):
    """Contexts before the engine, that before the runtime; no memory is left."""
    made = engine(plan())
    made.load()
    made.instance()
    infer(made.instances[0], np.ones((2, 64), np.float32))
    made.instances.pop().close()
    gc.collect()
    assert machine.log[:2] == ["runtime", "engine"]
    assert machine.log[2:] == ["context"] * 3 + ["context gone"] * 3  # the profile's, and those of two graphs
    made.close()
    gc.collect()
    assert machine.log[-2:] == ["engine gone", "runtime gone"]
    assert (device.used, device.open) == (0, 0)


def test_a_fault_in_a_run(engine, plan, machine):
    """TensorRT says False: its reason is in the exception, and the next batch runs."""
    made = engine(plan(), graphs=False)
    made.load()
    instance = made.instance()
    x = np.ones((2, 64), np.float32)
    machine.failures["execute_async_v3"] = (ErrorCodeTRT.FAILED_EXECUTION, "Cask convolution execution.")
    with pytest.raises(Exception, match="TensorRT did not run a batch: Cask convolution execution") as caught:
        infer(instance, x)
    assert not isinstance(caught.value, OutOfMemory | EngineDead)
    machine.failures["execute_async_v3"] = (ErrorCodeTRT.FAILED_ALLOCATION, "Requested size was 5 bytes.")
    with pytest.raises(OutOfMemory, match="TensorRT did not run a batch: Requested size"):
        infer(instance, x)
    assert infer(instance, x)[0].shape == (2, 10)


@pytest.mark.parametrize("call", ["set_input_shape", "set_tensor_address"])
def test_a_refused_setting_does_not_stick(engine, plan, machine, call, onnx_models):
    """What was not set is set again with the next batch."""
    made = engine(plan(), graphs=False)
    made.load()
    instance = made.instance()
    machine.failures[call] = (ErrorCodeTRT.INVALID_ARGUMENT, "no")
    x = np.ones((2, 64), np.float32)
    with pytest.raises(Exception, match="TensorRT refuses "):
        infer(instance, x)
    assert np.array_equal(infer(instance, x)[0], onnx_models.linear(x))


def test_a_dead_device_is_told_from_a_failed_run(engine, plan, machine, device):
    """TensorRT's False is the device's fault then, for good."""
    made = engine(plan(), graphs=False)
    made.load()
    instance = made.instance()
    infer(instance, np.ones((2, 64), np.float32))
    device.kill()
    with pytest.raises(EngineDead) as caught:
        infer(instance, np.ones((2, 64), np.float32))
    assert caught.value.device == "cuda:0"
