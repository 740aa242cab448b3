"""Plans that are not for this place, or damaged, and places that are not for plans: one sentence, and no crash."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from forebay_server.engines.base import ModelLoadError
from forebay_server.engines.tensorrt import sidecar
from tests.server.engines.tensorrt import fake_builder
from tests.server.engines.tensorrt.fake_builder import plan_of
from tests.server.engines.tensorrt.fake_tensorrt import Crash, ErrorCodeTRT, ILogger, Machine
from tests.server.engines.tensorrt.helpers import RANGE, infer, refusal


def test_a_version_compatible_plan_of_an_older_minor_version(engine, plan, install):
    """Runs; one of a newer version, or of another major one, does not."""
    install("10.16.1.11")
    header = {"version_compatible": True}
    made = engine(plan(header=header, version_compatible=True, tensorrt="10.13.2.6"))
    made.load()
    for version in ("10.16.2.0", "9.3.0.1", "11.0.0.114"):
        with pytest.raises(ModelLoadError) as caught:
            engine(plan(header=header, version_compatible=True, tensorrt=version)).load()
        assert str(caught.value).endswith(
            f"model.plan: built by TensorRT {version}, and takes a runtime of the same major version that is not "
            "older; 10.16.1.11 is installed"
        )


def test_code_for_the_host_runs_only_if_the_owner_says_so(engine, plan):
    """The full library loads a version-compatible plan with its own lean runtime then."""
    path = plan(header={"version_compatible": True}, version_compatible=True)
    made = engine(path, host_code=True)
    made.load()
    assert not made._plan.library.lean


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            {"compute_capability": "8.0"},
            "built for compute capability 8.0, but cuda:0 (Make-believe) has 9.0; build it on this GPU",
        ),
        ({"tensorrt": "10.13.2.6"}, "built by TensorRT 10.13.2.6, but 10.16.1.11 is installed; build it with that"),
        ({"sha256": "0" * 64}, "its SHA-256 is not that of its sidecar: it is damaged, or another one"),
    ],
    ids=["capability", "version", "digest"],
)
def test_a_plan_that_is_not_for_this_place(engine, plan, machine, said, sentence):
    """TensorRT does not see it: it would crash."""
    path = plan(**said)
    assert refusal(engine(path)) == f"{path}: {sentence}"
    assert machine.log == []


def test_a_truncated_plan(engine, plan, machine):
    """Told from another one by its length."""
    path = plan()
    data = path.read_bytes()
    path.write_bytes(data[:100])
    assert refusal(engine(path)) == f"{path}: it has 100 bytes and its sidecar says {len(data)}: it is cut off"
    path.write_bytes(data + b"x")
    assert refusal(engine(path)).endswith(f"its sidecar says {len(data)}: it is another one")
    assert machine.log == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "model.plan: its sidecar model.plan.json is missing; `forebay build-plan` writes it"),
        ("{", "model.plan.json: not the sidecar of a plan: Input data was truncated"),
        ("{}", "model.plan.json: not the sidecar of a plan: Object missing required field `sha256`"),
        ("\xff", "model.plan.json: not the sidecar of a plan: "),
    ],
    ids=["missing", "truncated", "empty", "binary"],
)
def test_a_wrong_sidecar(engine, plan, machine, text, sentence):
    """Without its word no plan is loaded."""
    path = plan()
    file = sidecar.path_of(path)
    if text is None:
        file.unlink()
    else:
        file.write_bytes(text.encode("latin-1"))
    assert sentence in refusal(engine(path))
    assert machine.log == []


def test_a_sidecar_of_a_later_format(engine, plan):
    """Is not guessed at."""
    path = plan(format=2)
    assert refusal(engine(path)) == f"{sidecar.path_of(path)}: its format is 2, and this Forebay reads 1"


def test_what_ampere_plus_means(engine, plan, device):
    """Any GPU from Ampere on, and none before."""
    path = plan(header={"hardware": "AMPERE_PLUS"}, hardware="ampere+", compute_capability="8.0")
    engine(path).load()
    device.compute_capability = (7, 5)
    assert refusal(engine(path)) == (
        f"{path}: built for compute capability 8.0 or higher, but cuda:0 (Make-believe) has 7.5"
    )


def test_a_shape_as_input_can_not_be_served(engine, onnx_models, plan):
    """Of an ONNX file and of a plan: TensorRT wants it in host memory."""
    tensors = [("shape_of", TensorProto.INT64, ["N"])], [("y", TensorProto.INT64, ["N"])]
    path = onnx_models.save("shapes", [helper.make_node("Identity", ["shape_of"], ["y"])], *tensors)
    said = "the input {!r} is a shape, which TensorRT wants in host memory; that can't be served"
    assert refusal(engine(path)) == f"{path}: {said.format('shape_of')}"
    built = plan(header={"host": ["x"]})
    assert refusal(engine(built)) == f"{built}: {said.format('x')}"


def test_a_profile_that_does_not_fit_the_buckets(engine, plan, onnx_models):
    """The plan's path, what is wanted and what there is."""
    path = plan(onnx_models.make_sequence_model(), [{"x": [[1, 3], [4, 3], [4, 3]]}])
    made = engine(path, buckets={"shapes": {"x": [[3], [5]]}})
    assert refusal(made) == (
        f"{path}: no profile of the plan holds x [4, 5]; it has x [1, 3] to [4, 3]: change buckets.shapes or "
        "batching.max_batch_size, or build it again"
    )
    assert refusal(engine(path, batching={"max_batch_size": 5})) == (
        f"{path}: batching.max_batch_size is 5, but the plan takes at most 4 rows"
    )


def test_no_such_device(engine, plan, machine):
    """The device is asked before TensorRT is touched."""
    made = engine(plan())
    made._options.device = "cuda:3"
    assert refusal(made) == "there is no device cuda:3; the process sees 1 (see CUDA_VISIBLE_DEVICES)"
    assert machine.log == []


def test_tensorrt_is_not_installed(engine, install, plan, onnx_models):
    """Neither to run nor to build; and the lean one on its own can't build."""
    path = plan()
    install(full=False)
    told = "TensorRT is not installed (pip install 'forebay[tensorrt]'; docs/tensorrt.md says from where)"
    assert refusal(engine(path)) == told
    assert refusal(engine(onnx_models.make_linear_model())) == told
    install(lean=False)
    assert "lean runtime is not installed (pip install tensorrt-lean-cu13-bindings" in refusal(
        engine(plan(header={"version_compatible": True}, version_compatible=True))
    )


def test_tensorrt_is_too_old(engine, install, plan):
    """Its interface lacks what is used."""
    install("10.9.0.34")
    assert refusal(engine(plan())) == "TensorRT 10.9.0.34 is too old: it takes 10.13 or newer"


def test_no_memory_for_the_weights(engine, plan, machine):
    """TensorRT says None, and the recorder says why."""
    path = plan()
    machine.failures["deserialize_cuda_engine"] = (ErrorCodeTRT.FAILED_ALLOCATION, "Requested size was 5 bytes.")
    assert refusal(engine(path)) == f"{path}: no memory on cuda:0 for its weights: Requested size was 5 bytes"


def test_a_plan_that_tensorrt_refuses(engine, plan, machine):
    """With its own words, in one line."""
    path = plan()
    machine.failures["deserialize_cuda_engine"] = (ErrorCodeTRT.INTERNAL_ERROR, "Version tag\ndoes not match.")
    assert refusal(engine(path)) == f"{path}: TensorRT 10.16.1.11 can't load it: Version tag does not match"


def test_no_memory_for_an_instance(engine, plan, machine, device):
    """Its contexts' memory is taken when it is made; the instances that there are go on."""
    made = engine(plan())
    made.load()
    first = made.instance()
    device.total = device.used + machine.activations - 1
    with pytest.raises(ModelLoadError, match="no memory on cuda:0 for instance 1: "):
        made.instance(1)
    assert infer(first, np.ones((1, 64), np.float32))[0].shape == (1, 10)


def test_a_budget_that_is_too_small(engine, plan):
    """The owner's limit counts activations, too."""
    made = engine(plan(), memory=1000)
    made.load()
    with pytest.raises(ModelLoadError, match="would be over the model's budget of 1000"):
        made.instance()


def test_a_context_that_can_not_be_made(engine, plan, machine, device):
    """Or whose profile can't be selected; nothing of the instance is left."""
    made = engine(plan())
    made.load()
    used, opened = device.used, device.open
    for call in ("create_execution_context", "set_optimization_profile_async"):
        machine.failures[call] = (ErrorCodeTRT.INTERNAL_ERROR, "no")
        with pytest.raises(ModelLoadError, match=r": no$"):
            made.instance()
        assert (device.used, device.open) == (used, opened)


def test_the_make_believe_library_is_strict(machine, device, onnx_models):
    """Positive control: what would crash the process fails these tests, too."""
    device.use()
    runtime = fake_builder.module(machine).Runtime(ILogger())
    with pytest.raises(Crash, match="damaged"):
        runtime.deserialize_cuda_engine(b"nonsense")
    data = plan_of(onnx_models.make_linear_model(), Machine(device, "9.0"), [RANGE])
    with pytest.raises(Crash, match="another version"):
        runtime.deserialize_cuda_engine(data)
    no_driver = fake_builder.module(Machine(None))
    with pytest.raises(Crash, match="no driver"):
        no_driver.Runtime(ILogger())
