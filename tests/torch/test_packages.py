"""Compiled packages, served for real: what `forebay compile` has made goes through `Predict`."""

import json
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from forebay_client import Client, InputRejected
from forebay_server.config.tree import BatchingConfig, EngineConfig, ModelConfig
from forebay_server.engines.base import EngineBatch, ModelLoadError, RejectInput
from forebay_server.engines.torch import TorchEngine, profile
from forebay_server.errors import ConfigError
from forebay_server.models.loader import EngineSettings, load
from forebay_server.tensors import DataType
from tests.torch.conftest import ROWS
from tests.torch.models import Mixed
from tests.waiting import eventually


def arrays_of(tensors):
    """Tensors by name as arrays by name."""
    return {name: array_of(tensor) for name, tensor in tensors.items()}


def array_of(tensor):
    """A tensor as an array; numpy has no BF16 of its own."""
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def expected_of(inputs):
    """What the module itself answers."""
    model = Mixed().eval()
    with torch.inference_mode():
        return arrays_of(model(**inputs))


@pytest.fixture
def opened(mixed):
    """An engine and an instance of the package."""
    engine = TorchEngine(mixed.path, EngineSettings(instances=1, threads=2, options={}))
    spec = engine.load()
    instance = engine.instance(0)
    yield engine, spec, instance
    instance.close()
    engine.close()


def staged(instance, spec, inputs):
    """A batch that was put together in the instance's own memory."""
    given = arrays_of(inputs)
    arrays = [given[tensor.name] for tensor in spec.inputs]
    places = instance.stage([array.shape for array in arrays])
    for place, array in zip(places, arrays, strict=True):
        place[...] = array
    return EngineBatch(places, len(arrays[0]))


def test_what_the_command_says(mixed):
    """`forebay compile` ends with what the package takes and gives."""
    assert mixed.said.splitlines()[1].startswith(
        "takes ids INT64[1 to 8, 2 to 16], mask BOOL[1 to 8, 2 to 16], flag BOOL["
    )
    assert "scores FP32[1 to 8, 3]" in mixed.said.splitlines()[2]


def test_the_specification(opened):
    """Names, types and the batch come out of the package."""
    engine, spec, _ = opened
    assert spec.batched
    assert [tensor.name for tensor in spec.inputs] == list(Mixed.INPUTS)
    assert {tensor.name: tensor.data_type for tensor in spec.outputs} == {
        "found": DataType.FP32,
        "total": DataType.FP32,
        "not_flag": DataType.BOOL,
        "small": DataType.INT8,
        "half": DataType.FP16,
        "brain": DataType.BF16,
        "scores": DataType.FP32,
        "double": DataType.FP64,
        "octet": DataType.UINT8,
        "sixteen": DataType.INT16,
        "thirtytwo": DataType.INT32,
        "same": DataType.FP32,
    }
    assert (engine.max_batch_size, engine.batch_sizes, engine.device) == (ROWS, (), "cpu")
    assert engine.version == torch.__version__


@pytest.mark.parametrize("rows", [1, 5, ROWS])
def test_answers_through_predict(serve, mixed, rows):
    """Every kind of tensor goes in and comes out as the module itself would have it, over a real socket."""
    server = serve(ModelConfig(path=str(mixed.path)))
    inputs = Mixed.example(rows, 7)
    with Client(server.addresses["public"]) as client:
        outputs = client.predict("mixed", arrays_of(inputs))
    expected = expected_of(inputs)
    assert set(outputs) == set(expected)
    for name, array in expected.items():
        assert (outputs[name].dtype, outputs[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_allclose(outputs[name].astype("f8"), array.astype("f8"), rtol=1e-6, err_msg=name)


def test_more_rows_than_the_package_takes_are_split(serve, mixed):
    """The package would compute 20 rows at once without a word; the server gives it 8 at a time."""
    server = serve(ModelConfig(path=str(mixed.path)))
    inputs = Mixed.example(20, 7)
    with Client(server.addresses["public"]) as client:
        outputs = client.predict("mixed", arrays_of(inputs))
        (figures,) = client.statistics("mixed")
    np.testing.assert_allclose(outputs["scores"], expected_of(inputs)["scores"], rtol=1e-6)
    assert max(figures.batch_sizes) <= ROWS


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ids": 17, "mask": 17}, "dimension 1 of the input 'ids' is 17, but the model was compiled for 2 to 16"),
        ({"mask": 6}, "dimension 1 of the input 'mask' is 6, but must be 5, as elsewhere in the request"),
    ],
)
def test_lengths_that_do_not_fit_are_the_callers_fault(serve, mixed, change, sentence):
    """A package would compute them, or read beyond the end of its inputs."""
    server = serve(ModelConfig(path=str(mixed.path)))
    inputs = arrays_of(Mixed.example(2, 5))
    for name, length in change.items():
        inputs[name] = np.zeros((2, length), inputs[name].dtype)
    with Client(server.addresses["public"]) as client:
        with pytest.raises(InputRejected, match=sentence):
            client.predict("mixed", inputs)
        client.predict("mixed", arrays_of(Mixed.example(2, 5)))  # and it goes on


def test_the_package_itself_checks_nothing(opened):
    """The positive control of what the profile is for: without it 9 rows are computed, not refused."""
    _, spec, instance = opened
    batch = staged(instance, spec, Mixed.example(ROWS + 1, 5))
    with pytest.raises(RejectInput, match="is 9, but the model was compiled for 1 to 8"):
        instance.infer(batch)
    unchecked = instance._run(list(instance._layout.tensors))
    assert [len(output) for output in unchecked] == [ROWS + 1] * len(spec.outputs)


def test_outputs_are_the_callers(opened):
    """They don't lie in memory that the next batch overwrites, even if the model returns its input."""
    _, spec, instance = opened
    names = [tensor.name for tensor in spec.outputs]
    first = instance.infer(staged(instance, spec, Mixed.example(4, 5)))
    kept = [array.copy() for array in first]
    second = instance.infer(staged(instance, spec, {name: x * 0 for name, x in Mixed.example(4, 5).items()}))
    for name, array, copy, other in zip(names, first, kept, second, strict=True):
        np.testing.assert_array_equal(array.astype("f8"), copy.astype("f8"), err_msg=name)
        assert not np.shares_memory(array, other), name


def test_nothing_is_copied_on_the_way(opened):
    """What collate writes is what torch reads, and what torch has computed is what comes out."""
    _, spec, instance = opened
    batch = staged(instance, spec, Mixed.example(3, 5))
    seen = []

    def run(tensors):
        seen.extend(tensors)
        return computed

    computed = list(instance._run(list(instance._layout.tensors)))
    instance._run = run
    outputs = instance.infer(batch)
    assert [tensor.data_ptr() for tensor in seen] == [array.ctypes.data for array in batch.inputs]
    same = [tensor.name for tensor in spec.outputs].index("same")
    for index, (tensor, array) in enumerate(zip(computed, outputs, strict=True)):
        assert (tensor.data_ptr() == array.ctypes.data) or index == same, spec.outputs[index].name


def test_batches_that_were_put_together_elsewhere(opened):
    """They are copied in; read-only arrays and views are fine."""
    _, spec, instance = opened
    inputs = Mixed.example(3, 5)
    given = arrays_of(inputs)
    outputs = instance.infer(EngineBatch([given[tensor.name] for tensor in spec.inputs], 3))
    expected = expected_of(inputs)
    for tensor, array in zip(spec.outputs, outputs, strict=True):
        np.testing.assert_allclose(array.astype("f8"), expected[tensor.name].astype("f8"), rtol=1e-6)


def test_threads_are_those_of_the_settings(opened):
    """In whichever thread the instance runs."""
    _, spec, instance = opened
    torch.set_num_threads(1)
    instance.infer(staged(instance, spec, Mixed.example(1, 5)))
    assert torch.get_num_threads() == 2


def test_a_larger_batch_is_refused_at_load(mixed):
    """The owner asks for batches that the package was not compiled for."""
    with pytest.raises(ConfigError, match="9 is above 8, the largest batch of"):
        load(ModelConfig(path=str(mixed.path), batching=BatchingConfig(max_batch_size=9)))


def altered(path, target, **changes):
    """A copy of a package whose metadata say something else."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as written:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("_metadata.json"):
                data = json.dumps({**json.loads(data), **changes}).encode()
            written.writestr(name, data)
    return target


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"AOTI_DEVICE_KEY": "cuda"}, "compiled for the device 'cuda', not for 'cpu'"),
        ({"AOTI_MACHINE": "riscv64"}, "compiled for riscv64, but this machine is "),
        ({"AOTI_CPU_ISA": "AVX4096"}, "compiled for a processor with avx4096, which this one lacks"),
    ],
)
def test_packages_for_elsewhere(mixed, tmp_path, changes, sentence):
    """Refused by what they say, before their code is loaded."""
    path = altered(mixed.path, tmp_path / "other.pt2", **changes)
    with pytest.raises(ModelLoadError, match=sentence):
        load(ModelConfig(path=str(path)))


def test_a_package_of_another_torch(mixed, tmp_path):
    """Its code is linked with another torch."""
    with zipfile.ZipFile(mixed.path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("_metadata.json"))
        made = json.loads(json.loads(archive.read(name))[profile.KEY])
    path = altered(mixed.path, tmp_path / "old.pt2", **{profile.KEY: json.dumps({**made, "torch": "2.1.0"})})
    with pytest.raises(ModelLoadError, match=r"compiled by torch 2\.1\.0, but here is .*; compile it again"):
        load(ModelConfig(path=str(path)))


def test_what_torch_can_not_load(mixed, tmp_path):
    """Torch's own words, in one sentence."""
    path = tmp_path / "empty.pt2"
    with zipfile.ZipFile(mixed.path) as source, zipfile.ZipFile(path, "w") as written:
        for name in source.namelist():
            written.writestr(name, source.read(name)[:64] if name.endswith(".so") else source.read(name))
    with pytest.raises(ModelLoadError, match=r"empty.pt2: torch can't load it: ") as caught:
        load(ModelConfig(path=str(path)))
    assert "\n" not in str(caught.value)


def test_an_exported_program_is_told_apart(mixed):
    """The suffix is the same."""
    with pytest.raises(ModelLoadError, match="an exported program, which is not compiled yet"):
        load(ModelConfig(path=str(mixed.program)))


def test_a_broken_package_does_not_stop_the_others(serve, mixed, tmp_path):
    """One model can't be loaded; the other one is served."""
    broken = tmp_path / "broken.pt2"
    broken.write_bytes(mixed.path.read_bytes()[:5000])
    server = serve(ModelConfig(path=str(mixed.path)), ModelConfig(path=str(broken)), ready=False)
    with Client(server.addresses["public"]) as client:
        eventually(lambda: client.health("model/mixed") == "SERVING", "the model that is whole is served", 60)
        assert len(client.predict("mixed", arrays_of(Mixed.example(2, 5)))["scores"]) == 2


def test_two_instances_of_a_package_are_one_on_the_cpu(mixed):
    """Its batches hold Python's lock, so a second instance would only wait for the first; that one answers."""
    loaded = load(ModelConfig(path=str(mixed.path), engine=EngineConfig(instances=2)))
    try:
        (only,) = loaded.instances
        answers = only.infer(staged(only, loaded.spec, Mixed.example(2, 5)))
        assert [len(answer) for answer in answers] == [2] * len(loaded.spec.outputs)
    finally:
        loaded.close()
