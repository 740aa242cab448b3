"""The onnxruntime engine: specifications, values of every type, options, and files that are no models."""

import contextlib
import os
import random
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from forebay_server.engines.base import EngineBatch, ModelLoadError, RejectInput
from forebay_server.engines.onnxruntime import OnnxRuntimeEngine
from forebay_server.engines.onnxruntime_computation import lacks_memory
from forebay_server.tensors import FREE, NUMPY_DTYPES, DataType, TensorSpec

TYPES = {
    "BOOL": DataType.BOOL,
    "UINT8": DataType.UINT8,
    "UINT16": DataType.UINT16,
    "UINT32": DataType.UINT32,
    "UINT64": DataType.UINT64,
    "INT8": DataType.INT8,
    "INT16": DataType.INT16,
    "INT32": DataType.INT32,
    "INT64": DataType.INT64,
    "FLOAT16": DataType.FP16,
    "BFLOAT16": DataType.BF16,
    "FLOAT": DataType.FP32,
    "DOUBLE": DataType.FP64,
}


def test_specification_of_a_linear_model(onnx_models, opened):
    """Names, types and shapes come from the file; a named dimension is free."""
    spec, _ = opened(OnnxRuntimeEngine, onnx_models.make_linear_model())
    assert spec.inputs == (TensorSpec(name="x", data_type=DataType.FP32, shape=(FREE, 64)),)
    assert spec.outputs == (TensorSpec(name="y", data_type=DataType.FP32, shape=(FREE, 10)),)
    assert spec.batched


@pytest.mark.parametrize(("batch", "batched"), [("N", True), (None, True), (8, False), (1, False)])
def test_dimension_0_is_the_batch_only_if_free(onnx_models, opened, batch, batched):
    """A fixed dimension 0 is not taken for the batch."""
    spec, _ = opened(OnnxRuntimeEngine, onnx_models.make_linear_model(batch=batch))
    assert spec.batched is batched


def test_dimension_0_is_the_batch_only_if_its_name_is_the_same_everywhere(onnx_models, opened):
    """Two names for dimension 0 are two different lengths."""
    assert opened(OnnxRuntimeEngine, onnx_models.make_two_input_model())[0].batched
    assert opened(OnnxRuntimeEngine, onnx_models.make_two_input_model(second=None))[0].batched
    assert not opened(OnnxRuntimeEngine, onnx_models.make_two_input_model(second="M"))[0].batched


def test_exact_values(onnx_models, opened):
    """The answers are the model's own, bit for bit."""
    _, infer = opened(OnnxRuntimeEngine, onnx_models.make_linear_model())
    x = np.arange(3 * 64, dtype=np.float32).reshape(3, 64) % 7
    assert np.array_equal(infer(x)[0], onnx_models.linear(x))


def test_several_inputs_and_outputs_keep_their_order(onnx_models, opened):
    """Inputs go in, and outputs come out, in the order of the specification."""
    spec, infer = opened(OnnxRuntimeEngine, onnx_models.make_two_input_model())
    assert [tensor.name for tensor in spec.inputs] == ["a", "b"]
    total, product = infer(np.full((2, 3), 5, np.float32), np.full((2, 3), 7, np.float32))
    assert (total.tolist(), product.tolist()) == ([[12.0] * 3] * 2, [[35.0] * 3] * 2)


@pytest.mark.parametrize("name", TYPES)
def test_every_type_goes_through_unchanged(onnx_models, opened, name):
    """Each type of the contract survives a model that does nothing, in memory that is not the input's."""
    spec, infer = opened(OnnxRuntimeEngine, onnx_models.make_identity_model(name))
    dtype = NUMPY_DTYPES[TYPES[name]]
    assert spec.inputs[0].data_type is TYPES[name]
    x = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype) if name == "BOOL" else np.arange(6).reshape(2, 3).astype(dtype)
    x = np.frombuffer(x.tobytes(), dtype).reshape(2, 3)  # read-only, as the collator gives it
    (y,) = infer(x)
    assert y.dtype == dtype
    assert np.array_equal(x, y)
    assert not np.shares_memory(x, y)


def test_bfloat16_keeps_its_special_values(onnx_models, opened):
    """NaN, infinities and negative zero of BF16 come back bit for bit."""
    _, infer = opened(OnnxRuntimeEngine, onnx_models.make_identity_model("BFLOAT16"))
    x = np.array([[np.nan, np.inf, -0.0]], ml_dtypes.bfloat16)
    assert infer(x)[0].tobytes() == x.tobytes()


def test_strings_are_bytes_of_utf8(onnx_models, opened):
    """Text comes back as the bytes that went in, NUL bytes and empty elements included."""
    spec, infer = opened(OnnxRuntimeEngine, onnx_models.make_string_model())
    assert spec.inputs[0].data_type is DataType.BYTES
    x = np.empty((2, 2), object)
    x[:] = [[b"", b"a\0b\0"], ["käse".encode(), b"x" * 1000]]
    assert infer(x)[0].tolist() == x.tolist()


def test_text_that_is_not_utf8_is_refused_with_its_row(onnx_models, opened):
    """The row of an element that is no text is named, so that its neighbours run."""
    _, infer = opened(OnnxRuntimeEngine, onnx_models.make_string_model())
    x = np.empty((3, 2), object)
    x[:] = [[b"a", b"b"], [b"c", b"\xff"], [b"d", b"e"]]
    with pytest.raises(RejectInput, match="'x' holds an element that is not UTF-8") as caught:
        infer(x)
    assert caught.value.rows == [1]


def test_instances_share_a_session_and_run_at_the_same_time(onnx_models, settings):
    """Batches of several instances in several threads don't mix."""
    engine = OnnxRuntimeEngine(onnx_models.make_linear_model(), settings(instances=4))
    engine.load()
    wrong = []

    def work(instance, value):
        x = np.full((5, 64), value, np.float32)
        expected = onnx_models.linear(x)
        answers = [instance.infer(EngineBatch([x], 5))[0] for _ in range(200)]
        wrong.extend(value for answer in answers if not np.array_equal(answer, expected))

    threads = [threading.Thread(target=work, args=(engine.instance(index), index)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert wrong == []


def test_options_are_passed_through(onnx_models, opened):
    """Known options and session entries are taken; the values stay right."""
    options = {
        "graph_optimization": "none",
        "providers": "CPUExecutionProvider",
        "inter_op_threads": 2,
        "session_per_instance": True,
        "session.intra_op.allow_spinning": True,
    }
    _, infer = opened(OnnxRuntimeEngine, onnx_models.make_linear_model(), **options)
    x = np.ones((1, 64), np.float32)
    assert np.array_equal(infer(x)[0], onnx_models.linear(x))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"colour": "red"}, "no option colour; it has providers, external_data"),
        ({"graph_optimization": "most"}, "must be one of none, basic, extended, all, not 'most'"),
        ({"graph_optimization": 3}, "'graph_optimization' must be a str, not 3"),
        ({"providers": "MoonExecutionProvider"}, "has no 'MoonExecutionProvider' here; it has"),
    ],
)
def test_wrong_options_are_one_sentence(onnx_models, opened, options, text):
    """An option that does not exist, or has the wrong type, is named."""
    with pytest.raises(ModelLoadError, match=text):
        opened(OnnxRuntimeEngine, onnx_models.make_linear_model(), **options)


def test_sequences_and_optionals_are_refused(onnx_models, opened):
    """Types that the contract has no tensor for are refused by name."""
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, ["N", 3])
    node = helper.make_node("SequenceLength", ["x"], ["y"])
    path = onnx_models.save("sequences", [node], [sequence], [("y", TensorProto.INT64, [])])
    with pytest.raises(ModelLoadError, match=r"input 'x' is of the type seq\(tensor\(float\)\), which can't be served"):
        opened(OnnxRuntimeEngine, path)
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 3]))
    node = helper.make_node("OptionalHasElement", ["x"], ["y"])
    path = onnx_models.save("optional", [node], [helper.make_value_info("x", kind)], [("y", TensorProto.BOOL, [])])
    with pytest.raises(ModelLoadError, match=r"input 'x' is of the type optional\(tensor\(float\)\)"):
        opened(OnnxRuntimeEngine, path)


def test_inputs_without_a_shape_are_refused(onnx_models, opened):
    """An input of unknown rank is not mistaken for a scalar; a scalar is taken."""
    with pytest.raises(ModelLoadError, match="the input 'x' has no shape"):
        opened(OnnxRuntimeEngine, onnx_models.make_identity_model(shape=None))
    spec, infer = opened(OnnxRuntimeEngine, onnx_models.make_identity_model(shape=()))
    assert (spec.inputs[0].shape, spec.batched) == ((), False)
    assert infer(np.array(3, "f4"), rows=1)[0] == 3


def test_no_memory_is_told_from_other_failures():
    """ONNX Runtime has no error code for it, so its text decides."""
    assert lacks_memory(RuntimeError("[ONNXRuntimeError] : Failed to allocate memory for requested buffer"))
    assert not lacks_memory(RuntimeError("Got invalid dimensions for input"))


def external_model(onnx_models, location, name="external"):
    weights = numpy_helper.from_array(np.ones((4, 4), np.float32), "W")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", str(location)), ("offset", "0"), ("length", "64")):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    node = helper.make_node("MatMul", ["x", "W"], ["y"])
    tensors = [("x", TensorProto.FLOAT, ["N", 4])], [("y", TensorProto.FLOAT, ["N", 4])]
    return onnx_models.save(name, [node], *tensors, [weights])


def test_external_data_needs_permission(onnx_models, opened, tmp_path):
    """Other files are read only if an option says so."""
    (tmp_path / "weights.bin").write_bytes(np.ones(16, "<f4").tobytes())
    path = external_model(onnx_models, "weights.bin")
    with pytest.raises(ModelLoadError, match=r"wants to read the file 'weights\.bin'; set the engine option"):
        opened(OnnxRuntimeEngine, path)
    _, infer = opened(OnnxRuntimeEngine, path, external_data=True)
    assert infer(np.ones((1, 4), np.float32))[0].tolist() == [[4.0] * 4]


def test_external_data_stays_in_the_models_folder(onnx_models, opened, tmp_path):
    """Even with permission nothing outside the model's folder is read, not through `..`, nor a path, nor a link."""
    outside = tmp_path.parent / f"{tmp_path.name}-secret.bin"
    outside.write_bytes(np.ones(16, "<f4").tobytes())
    (tmp_path / "link.bin").symlink_to(outside)
    for location in (f"../{outside.name}", outside, "link.bin"):
        with pytest.raises(ModelLoadError, match="outside its own folder"):
            opened(OnnxRuntimeEngine, external_model(onnx_models, location), external_data=True)
    with pytest.raises(ModelLoadError, match=r"data file 'none\.bin' is missing"):
        opened(OnnxRuntimeEngine, external_model(onnx_models, "none.bin"), external_data=True)


def test_external_data_in_a_subgraph_is_found(onnx_models, opened, tmp_path):
    """A tensor hidden in a node's attribute is looked at too."""
    constant = numpy_helper.from_array(np.ones(4, np.float32), "c")
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    entry = constant.external_data.add()
    entry.key, entry.value = "location", "hidden.bin"
    nodes = [helper.make_node("Constant", [], ["c"], value=constant), helper.make_node("Add", ["x", "c"], ["y"])]
    tensors = [("x", TensorProto.FLOAT, ["N", 4])], [("y", TensorProto.FLOAT, ["N", 4])]
    with pytest.raises(ModelLoadError, match=r"hidden\.bin"):
        opened(OnnxRuntimeEngine, onnx_models.save("hidden", nodes, *tensors))


def test_damaged_files_are_errors_never_crashes(onnx_models, opened, tmp_path):
    """16 truncations and 64 flipped bits each load or give one ModelLoadError; what loads also runs or raises."""
    whole = onnx_models.make_linear_model(8, 3).read_bytes()
    damaged = [whole[: len(whole) * sixteenth // 16] for sixteenth in range(1, 16)] + [b"\0"]
    chance = random.Random(7)
    for _ in range(64):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        damaged.append(bytes(flipped))
    sentences = []
    for number, data in enumerate(damaged):
        path = tmp_path / f"damaged{number}.onnx"
        path.write_bytes(data)
        try:
            spec, infer = opened(OnnxRuntimeEngine, path)
        except ModelLoadError as error:
            sentences.append((str(path), str(error)))
            continue
        inputs = []
        for tensor in spec.inputs:
            shape = tuple(1 if length == FREE else min(length, 1000) for length in tensor.shape)
            inputs.append(np.zeros(shape, NUMPY_DTYPES[tensor.data_type]))
        with contextlib.suppress(Exception):  # it may well fail; the process must not
            infer(*inputs)
    assert len(sentences) >= 30
    assert all(path in sentence and sentence.isprintable() for path, sentence in sentences)


@pytest.mark.parametrize("data", [b"not a model at all", b"PK\x03\x04" + b"\0" * 100, bytes(range(64))])
def test_other_files_are_refused(opened, tmp_path, data):
    """A file of another kind is a clear error."""
    path = tmp_path / "other.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelLoadError, match=r"other\.onnx"):
        opened(OnnxRuntimeEngine, path)


def test_the_library_s_telemetry_is_off(onnx_models, tmp_path):
    """What comes with ONNX Runtime for its maker writes nothing. The control shows that it would."""
    model = str(onnx_models.make_linear_model())
    commands = {"ours": ["-m", "forebay_server", "check", model], "bare": ["-c", "import onnxruntime"]}
    written = {}
    for name, command in commands.items():
        home = tmp_path / name
        home.mkdir()
        # Nothing of the caller's environment: by itself it is off where the variables of a CI are set.
        environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
        subprocess.run([sys.executable, *command], env=environment, check=True)
        written[name] = [path for path in home.rglob("*") if "onnxruntime" in path.name]
    assert written["bare"]
    assert not written["ours"]
