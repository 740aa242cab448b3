"""`forebay build-plan` with a make-believe TensorRT: the plan, its sidecar, progress, Ctrl-C, and what it refuses."""

import json
import signal
import threading

import pytest

from forebay_server.cli import build_plan
from forebay_server.cli.stages import Stop
from tests.server.engines.tensorrt.conftest import device, install, machine  # noqa: F401  # fixtures
from tests.server.engines.tensorrt.fake_builder import plan_of


@pytest.fixture
def build(forebay, tmp_path):
    """Runs it with a cache of the test's own."""
    return lambda *arguments: forebay("build-plan", *arguments, "--cache-dir", tmp_path / "cache")


def test_a_plan_and_its_sidecar(build, machine, onnx_models):  # noqa: F811  # a fixture
    """Beside the ONNX file; the options decide what is built, and the phases are told."""
    path = onnx_models.make_linear_model()
    ended = build(path, "--max-batch-size", 4, "--best-rows", 2, "--optimization-level", 5)

    plan = path.with_suffix(".plan")
    assert (ended.code, ended.err) == (0, "Building Engine, 4 steps\n")
    assert ended.out == f"{plan}: 0.0 MiB, for TensorRT 10.16.1.11, compute capability 9.0\n"
    assert machine.builder_told["profiles"] == [{"x": [[1, 64], [2, 64], [4, 64]]}]
    assert machine.builder_told["level"] == 5
    said = json.loads(plan.with_name("linear.plan.json").read_text())
    assert (said["size"], said["tensorrt"], said["batched"]) == (plan.stat().st_size, "10.16.1.11", True)
    assert (plan.stat().st_mode & 0o777) == 0o644


def test_buckets_come_from_options(build, machine, onnx_models):  # noqa: F811  # as above
    """Smallest first, whatever order they are given in."""
    path = onnx_models.make_sequence_model()
    ended = build(path, "--bucket", "x=9", "--bucket", "x=3", "--max-batch-size", 2, "--profiles", "one")

    assert ended.code == 0
    assert machine.builder_told["profiles"] == [{"x": [[1, 3], [2, 9], [2, 9]]}]


def test_settings_come_from_the_file_beside_the_model(build, machine, onnx_models):  # noqa: F811  # as above
    """Where no option says otherwise; what only matters for serving is left alone."""
    path = onnx_models.make_sequence_model()
    path.with_suffix(".toml").write_text(
        "[batching]\nmax_batch_size = 16\n[buckets]\nshapes.x = [[5]]\n"
        "[engine]\nname = 'tensorrt'\noptions = { optimization_level = 1, tf32 = true, graphs = false }\n"
    )
    ended = build(path, "--optimization-level", 2, "-o", path.with_name("other.plan"))

    assert ended.code == 0
    assert machine.builder_told["profiles"] == [{"x": [[1, 5], [16, 5], [16, 5]]}]
    assert machine.builder_told["level"] == 2
    assert {flag.name for flag in machine.builder_told["flags"]} == {"TF32"}
    assert path.with_name("other.plan.json").exists()


def test_a_plan_that_is_there_is_not_built_again(build, machine, onnx_models):  # noqa: F811  # as above
    """It comes out of the cache that the server has, too."""
    path = onnx_models.make_linear_model()
    assert build(path).code == 0
    plan = path.with_suffix(".plan").read_bytes()
    path.with_suffix(".plan").unlink()
    assert build(path).code == 0
    assert machine.builds == 1
    assert path.with_suffix(".plan").read_bytes() == plan


def test_for_the_lean_runtime_on_more_gpus(build, machine, onnx_models):  # noqa: F811  # as above
    """The sidecar says so."""
    path = onnx_models.make_linear_model()
    ended = build(path, "--version-compatible", "--hardware", "ampere+")

    assert ended.out.endswith(", for TensorRT 10.16.1.11, also for the lean runtime, any GPU from Ampere on\n")
    said = json.loads(path.with_name("linear.plan.json").read_text())
    assert (said["version_compatible"], said["hardware"]) == (True, "ampere+")


def test_a_plan_of_others_gets_a_sidecar(forebay, machine, onnx_models, tmp_path):  # noqa: F811  # as above
    """If it loads here; it is not touched."""
    plan = tmp_path / "theirs.engine"
    data = plan_of(onnx_models.make_linear_model(), machine, [{"x": [[1, 64], [8, 64], [8, 64]]}])
    plan.write_bytes(data)
    ended = forebay("build-plan", plan)

    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"{plan}.json: 0.0 MiB, for TensorRT 10.16.1.11")
    assert plan.read_bytes() == data
    assert json.loads((tmp_path / "theirs.engine.json").read_text())["batched"] is None

    ended = forebay("build-plan", plan, "--max-batch-size", 4)
    assert ended.code == 2
    assert ended.err.startswith(f"forebay: {plan}: it is built already; only --device, --version-compatible and ")


def test_ctrl_c_ends_the_build(build, machine, onnx_models, tmp_path, monkeypatch):  # noqa: F811  # as above
    """At TensorRT's next step; nothing is written."""
    path = onnx_models.make_linear_model()
    heard = threading.Event()

    class Watched(Stop):
        def set(self):
            super().set()
            heard.set()

    def at_step(step):
        if step == 1:
            signal.raise_signal(signal.SIGINT)
            assert heard.wait(30)

    machine.at_step = at_step
    monkeypatch.setattr(build_plan, "Stop", Watched)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background
    try:
        ended = build(path)
    finally:
        signal.signal(signal.SIGINT, before)

    assert ended.code == 130
    assert not path.with_suffix(".plan").exists()
    assert list((tmp_path / "cache" / "tensorrt").glob("*.plan")) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--bucket", "x"], "--bucket x: write it as INPUT=SHAPE, such as ids=128 or image=3x224x224"),
        (["--bucket", "x=3y"], "--bucket x=3y: write it as INPUT=SHAPE, such as ids=128 or image=3x224x224"),
        (["--bucket", "z=3"], "buckets.shapes: the model has no input 'z'; it has x"),
        (["--device", "1"], "there is no device cuda:1; the process sees 1 (see CUDA_VISIBLE_DEVICES)"),
    ],
)
def test_what_it_refuses(build, machine, onnx_models, arguments, sentence):  # noqa: F811  # as above
    """One sentence, exit code 2."""
    ended = build(onnx_models.make_sequence_model(), *arguments)
    assert (ended.code, ended.err.splitlines()[-1]) == (2, f"forebay: {sentence}")
    assert machine.builds == 0


def test_without_a_driver(forebay, onnx_models):
    """On this machine there is neither driver nor GPU; TensorRT is not even looked for."""
    ended = forebay("build-plan", onnx_models.make_linear_model())
    assert ended.code == 2
    assert ended.err.startswith("forebay: ")
    assert ended.err.count("\n") == 1
