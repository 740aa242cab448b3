"""From an ONNX file to a plan: what the build is told, what is kept, and what can't be built."""

import threading

import numpy as np
import onnx
import pytest
import structlog
from onnx import TensorProto, helper

from forebay_server.errors import ConfigError
from tests.server.engines.tensorrt.fake_tensorrt import ErrorCodeTRT
from tests.server.engines.tensorrt.helpers import infer, refusal


def test_an_onnx_file_is_built_once(engine, machine, onnx_models):
    """The second time the plan comes out of the cache, and answers are the same."""
    path = onnx_models.make_linear_model()
    words = []
    x = np.ones((2, 64), np.float32)
    answers = []
    for _ in range(2):
        made = engine(path, progress=words.append, batching={"max_batch_size": 4})
        made.load()
        answers.append(infer(made.instance(), x)[0])
        assert list(made.batch_sizes) == [1, 2, 3, 4]
    assert machine.builds == 1
    assert np.array_equal(*answers)
    assert words[:1] == ["building its plan: Building Engine, 1 of 4"]


@pytest.mark.parametrize(
    "change",
    [
        {"batching": {"max_batch_size": 8}},
        {"optimization_level": 5},
        {"tf32": True},
        {"workspace_mib": 7},
        {"best_rows": 2},
        {"hardware": "ampere+"},
    ],
    ids=str,
)
def test_whatever_decides_what_is_built_is_in_the_key(engine, machine, onnx_models, change):
    """Another setting is another plan."""
    path = onnx_models.make_linear_model()
    engine(path, batching={"max_batch_size": 4}).load()
    engine(path, **({"batching": {"max_batch_size": 4}} | change)).load()
    assert machine.builds == 2


def test_another_gpu_version_or_file_is_another_plan(engine, install, device, onnx_models):
    """The old one is left where it is, and not looked at."""
    machine = install()
    path = onnx_models.make_linear_model()
    engine(path).load()
    device.name = "Another"
    engine(path).load()
    device.compute_capability = (8, 9)
    engine(path).load()
    path.write_bytes(onnx_models.make_linear_model(outputs=11, name="other").read_bytes())
    engine(path).load()
    assert machine.builds == 4
    newer = install("11.4.0.106")
    engine(path).load()
    assert newer.builds == 1


def test_a_damaged_kept_plan_is_built_again(engine, machine, onnx_models, tmp_path):
    """TensorRT never sees it; the log says so."""
    path = onnx_models.make_linear_model()
    engine(path).load()
    (kept,) = (tmp_path / "cache" / "tensorrt").glob("*.plan")
    for damage in (kept.read_bytes()[:-1], b"x" + kept.read_bytes()[1:]):
        kept.write_bytes(damage)
        with structlog.testing.capture_logs() as logs:
            engine(path).load()
        assert [log["event"] for log in logs] == ["kept plan not usable"]
    assert machine.builds == 3


def test_the_timing_cache_is_handed_on(engine, machine, onnx_models, tmp_path):
    """What one build has timed the next one need not; a damaged one is left aside."""
    engine(onnx_models.make_linear_model()).load()
    assert machine.builder_told["timings"] == b"timings "
    engine(onnx_models.make_linear_model(outputs=11, name="other")).load()
    assert len(machine.builder_told["timings"]) == len(b"timings ") + 4
    (timings,) = (tmp_path / "cache" / "tensorrt").glob("timings-*.bin")
    timings.write_bytes(b"nonsense")
    with structlog.testing.capture_logs() as logs:
        engine(onnx_models.make_linear_model(outputs=12, name="third")).load()
    assert machine.builder_told["timings"] == b"timings "
    assert [log["event"] for log in logs if log["log_level"] != "debug"] == ["timing cache not used"]


def test_without_a_cache_it_is_built_each_time(engine, machine, onnx_models):
    """And so it is where the folder can't be written."""
    path = onnx_models.make_linear_model()
    for _ in range(2):
        engine(path, cache=False).load()
    assert machine.builds == 2


def test_a_cache_that_can_not_be_written_costs_only_time(engine, machine, onnx_models, tmp_path):
    """The log says so, once for each thing."""
    (tmp_path / "cache").write_text("a file, not a folder")
    with structlog.testing.capture_logs() as logs:
        engine(onnx_models.make_linear_model()).load()
    assert machine.builds == 1
    assert [log["event"] for log in logs] == ["plans are not kept"]


def test_a_cache_that_others_can_write_to_is_not_used(engine, machine, onnx_models, tmp_path):
    """What lies there is executed."""
    path = onnx_models.make_linear_model()
    engine(path).load()
    folder = tmp_path / "cache" / "tensorrt"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    with structlog.testing.capture_logs() as logs:
        engine(path).load()
    assert [log["error"] for log in logs] == ["others can write there"]
    assert machine.builds == 2


def test_two_that_start_together_build_once(engine, machine, onnx_models):
    """The second waits for the first one's lock, says so, and finds the plan."""
    path = onnx_models.make_linear_model()
    first, second = engine(path), engine(path, progress=(words := []).append)
    building, waited = threading.Event(), threading.Event()

    def at_step(step):
        if step == 0:
            building.set()
            assert waited.wait(30)

    machine.at_step = at_step
    second._options.progress = lambda word: (words.append(word), waited.set())
    thread = threading.Thread(target=first.load)
    thread.start()
    assert building.wait(30)
    second.load()
    thread.join()
    assert machine.builds == 1
    assert words == ["waiting for another process that builds its plan"]


def test_nobody_waits_for_a_plan_once_the_server_stops(engine, machine, onnx_models):
    """Neither for another process nor for its own build."""
    path = onnx_models.make_linear_model()
    first, second = engine(path), engine(path)
    stopping = threading.Event()
    first._options.stopping = second._options.stopping = stopping.is_set
    building = threading.Event()

    def at_step(step):
        building.set()
        assert stopping.wait(30)

    machine.at_step = at_step
    said = []
    thread = threading.Thread(target=lambda: said.append(refusal(first)))
    thread.start()
    assert building.wait(30)
    second._options.progress = lambda _words: stopping.set()  # it waits now
    assert refusal(second) == "nobody waits any more for a plan that another process builds"
    thread.join()
    assert said == [f"{path}: the build of its plan was ended"]
    machine.at_step = None
    engine(path).load()
    assert machine.builds == 2  # nothing was kept of the first


def test_a_version_compatible_plan_runs_in_the_lean_runtime(engine, machine, onnx_models):
    """It is built without code for the host."""
    made = engine(onnx_models.make_linear_model(), version_compatible=True)
    made.load()
    assert {flag.name for flag in machine.builder_told["flags"]} == {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}
    assert made._plan.library.lean
    x = np.ones((2, 64), np.float32)
    assert np.array_equal(infer(made.instance(), x)[0], onnx_models.linear(x))


def test_the_build_is_told_what_the_owner_wants(engine, machine, onnx_models):
    """Strongly typed always, without TF32 and further streams if nothing is said."""
    engine(onnx_models.make_linear_model()).load()
    told = machine.builder_told
    assert (told["network"], told["flags"], told["pools"], told["level"], told["aux"]) == (2, set(), {}, 3, 0)
    engine(onnx_models.make_linear_model(), tf32=True, workspace_mib=64, optimization_level=1).load()
    told = machine.builder_told
    assert {flag.name for flag in told["flags"]} == {"TF32"}
    assert {pool.name: size for pool, size in told["pools"].items()} == {"WORKSPACE": 64 << 20}
    assert told["level"] == 1


def test_onnx_that_the_parser_refuses(engine, onnx_models, machine):
    """Its own messages are shown, three of them, with their nodes."""
    path = onnx_models.save(
        "odd",
        [helper.make_node(f"Odd{n}", ["x"], [f"y{n}"], domain="nobody") for n in range(5)],
        [("x", TensorProto.FLOAT, ["N", 3])],
        [("y0", TensorProto.FLOAT, ["N", 3])],
    )
    assert refusal(engine(path)) == (
        f"{path}: TensorRT's parser refuses it: node 0: Plugin not found: Odd0; node 1: Plugin not found: Odd1; "
        "node 2: Plugin not found: Odd2 (and 2 more)"
    )
    assert machine.builds == 0


def test_a_file_that_is_no_onnx(engine, tmp_path):
    """Told before TensorRT sees it."""
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"\xff" * 100)
    assert refusal(engine(path)).startswith(f"{path}: not a whole ONNX file: ")


def test_weights_in_other_files_must_be_allowed(engine, machine, onnx_models):
    """As with ONNX Runtime; and they are part of the key."""
    path = onnx_models.make_linear_model()
    model = onnx.load(path)
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert refusal(engine(path)) == (
        f"{path}: wants to read the file 'weights.bin'; set the engine option external_data = true to allow it"
    )
    engine(path, external_data=True).load()
    weights = path.with_name("weights.bin")
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    engine(path, external_data=True).load()
    assert machine.builds == 2


def test_a_type_that_can_not_be_served(engine, onnx_models, machine):
    """FP8 has no place in the contract."""
    path = onnx_models.make_identity_model("FLOAT8E4M3FN")
    assert refusal(engine(path)) == f"{path}: the input 'x' is of the type FP8, which can't be served"
    assert machine.builds == 0


def test_a_build_that_fails(engine, machine, onnx_models):
    """With TensorRT's reason; nothing is kept."""
    path = onnx_models.make_linear_model()
    machine.failures["build_serialized_network"] = (ErrorCodeTRT.INTERNAL_ERROR, "Could not find any implementation.")
    assert refusal(engine(path)) == f"{path}: TensorRT can't build its plan: Could not find any implementation"
    machine.failures["build_serialized_network"] = (ErrorCodeTRT.UNSPECIFIED_ERROR, "CUDA error: out of memory")
    assert refusal(engine(path)) == f"{path}: no memory to build its plan: CUDA error: out of memory"
    engine(path).load()
    assert machine.builds == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"optimization_level": 6}, "engine option 'optimization_level' must be 0 to 5, not 6"),
        ({"workspace_mib": -1}, "engine option 'workspace_mib' must not be negative, but is -1"),
        ({"profiles": "two"}, "engine option 'profiles' must be one of bucket, one, not 'two'"),
        ({"hardware": "all"}, "engine option 'hardware' must be one of same, ampere+, not 'all'"),
    ],
)
def test_wrong_options(engine, plan, options, sentence):
    """One sentence, before anything else."""
    assert refusal(engine(plan(), **options)) == sentence


def test_an_unknown_option(engine, plan):
    """With those that there are."""
    assert refusal(engine(plan(), fp16=True)).startswith("the engine 'tensorrt' has no option fp16; it has best_rows, ")


def test_batches_of_a_fixed_size(engine, machine, onnx_models):
    """A fixed dimension 0 is the batch only if the owner says so; then there is one size."""
    path = onnx_models.make_linear_model(batch=8)
    made = engine(path)
    assert not made.load().batched
    assert machine.builder_told["profiles"] == []
    made = engine(path, batching={"batch_dimension": "first"})
    made.load()
    assert list(made.batch_sizes) == [8]


def test_one_row_at_a_time_is_still_a_batch(engine, onnx_models):
    """The sidecar remembers what dimension 0 is where the plan does not show it."""
    made = engine(
        onnx_models.make_sequence_model(), batching={"max_batch_size": 1}, buckets={"shapes": {"x": [[3], [5]]}}
    )
    assert made.load().batched
    assert list(made.batch_sizes) == [1]


def test_buckets_of_an_unknown_input(engine, onnx_models):
    """The settings' own words."""
    with pytest.raises(ConfigError, match="the model has no input 'ids'; it has x"):
        engine(onnx_models.make_sequence_model(), buckets={"shapes": {"ids": [[3]]}}).load()
