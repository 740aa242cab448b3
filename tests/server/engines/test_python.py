"""The python engine: functions and classes as models."""

import sys

import numpy as np
import pytest

from forebay_server.engines.base import EngineBatch, ModelLoadError, OutputMismatch, RejectInput
from forebay_server.engines.python import PythonEngine, model
from forebay_server.tensors import FREE, DataType, ModelSpec, TensorSpec

HEADER = """
import numpy as np
from forebay_server.engines.base import RejectInput
from forebay_server.engines.python import model
"""


@pytest.fixture
def module(tmp_path, request):
    """Writes a module and gives the path of one of its objects; afterwards Python forgets both."""
    before = list(sys.path)
    name = f"model_{abs(hash(request.node.nodeid))}"

    def write(source, target="predict"):
        (tmp_path / f"{name}.py").write_text(HEADER + source)
        return f"{tmp_path}/{name}.py:{target}"

    yield write
    sys.path[:] = before
    sys.modules.pop(name, None)


def test_a_function_of_arrays(module, opened):
    """A decorated function is a model; its inputs are its parameters, in whatever order."""
    path = module("""
@model(inputs={"a": ("FP32", (-1, 2)), "b": ("FP32", (-1, 2))}, outputs={"y": ("FP32", (-1, 2))})
def predict(b, a):
    return a - b
""")
    spec, infer = opened(PythonEngine, path)
    assert spec.batched
    assert spec.inputs[0] == TensorSpec(name="a", data_type=DataType.FP32, shape=(FREE, 2))
    assert infer(np.full((3, 2), 5, "f4"), np.full((3, 2), 2, "f4"))[0].tolist() == [[3, 3]] * 3


def test_module_object_with_a_path(module, opened, tmp_path):
    """`module:object` is found in the folder of the option `path`."""
    file, _, name = module(
        '@model(inputs={"x": ("INT64", (-1,))}, outputs={"y": ("INT64", (-1,))})\ndef predict(x):\n    return x + 1\n'
    ).rpartition(":")
    stem = file.rpartition("/")[2].removesuffix(".py")
    _, infer = opened(PythonEngine, f"{stem}:{name}", path=str(tmp_path))
    assert infer(np.array([1, 2]))[0].tolist() == [2, 3]


def test_a_class_lives_through_load_warm_up_infer_close(module, settings):
    """A class is made with the options, loaded, warmed up, called and closed, each instance with its own object."""
    path = module(
        """
from forebay_server.tensors import DataType, ModelSpec, TensorSpec
class Adder:
    spec = ModelSpec(
        inputs=(TensorSpec(name="x", data_type=DataType.FP32, shape=(-1,)),),
        outputs=(TensorSpec(name="y", data_type=DataType.FP32, shape=(-1,)),),
        batched=True,
    )
    log = []
    def __init__(self, amount):
        self.amount = amount
    def load(self):
        self.log.append("load")
    def warm_up(self):
        self.log.append("warm_up")
    def infer(self, x, parameters):
        return {"y": x + np.float32(self.amount * parameters.get("times", 1))}
    def close(self):
        self.log.append("close")
""",
        "Adder",
    )
    engine = PythonEngine(path, settings(instances=2, options={"amount": 3}))
    engine.load()
    first, second = engine.instance(0), engine.instance(1)
    x = np.array([1, 2], "f4")
    assert first.infer(EngineBatch([x], 2, {"times": 2}))[0].tolist() == [7, 8]
    assert second.infer(EngineBatch([x], 2))[0].tolist() == [4, 5]
    first.close()
    second.close()
    assert type(first._target).log == ["load", "warm_up", "load", "warm_up", "close", "close"]
    assert first._target is not second._target


def test_one_row_at_a_time(module, opened):
    """A per-row function sees rows without the batch dimension; rows that it refuses are named."""
    path = module("""
@model(inputs={"x": ("FP32", (-1, 2))}, outputs={"s": ("FP32", (-1,)), "n": ("INT64", (-1,))}, per_row=True)
def predict(x):
    assert x.shape == (2,)
    if x[0] < 0:
        raise RejectInput("must not be negative")
    return np.float32(x.sum()), int(x[0])
""")
    _, infer = opened(PythonEngine, path)
    total, number = infer(np.array([[1, 2], [3, 4]], "f4"))
    assert (total.tolist(), number.tolist()) == ([3, 7], [1, 3])
    with pytest.raises(RejectInput, match="must not be negative") as caught:
        infer(np.array([[1, 2], [-3, 4], [5, 6], [-7, 8]], "f4"))
    assert caught.value.rows == [1, 3]


def test_text_in_and_out(module, opened):
    """BYTES come as `bytes`; text that goes out is encoded."""
    path = module("""
@model(inputs={"x": ("BYTES", (-1,))}, outputs={"y": ("BYTES", (-1,))})
def predict(x):
    return [element.decode().upper() for element in x]
""")
    _, infer = opened(PythonEngine, path)
    x = np.empty(2, object)
    x[:] = ["straße".encode(), b""]
    assert infer(x)[0].tolist() == [b"STRASSE", b""]


def test_outputs_that_are_inputs_are_copied(module, opened):
    """A view of an input does not get out."""
    path = module("""
@model(inputs={"x": ("FP32", (-1, 2))}, outputs={"y": ("FP32", (-1, 2))})
def predict(x):
    return x[:, ::-1]
""")
    _, infer = opened(PythonEngine, path)
    x = np.array([[1, 2]], "f4")
    y = infer(x)[0]
    assert y.tolist() == [[2, 1]]
    assert not np.shares_memory(x, y)


def test_inputs_can_not_be_changed(module, opened):
    """Arrays that a model gets are read-only: they may be the caller's own memory."""
    path = module("""
@model(inputs={"x": ("FP32", (-1,))}, outputs={"y": ("FP32", (-1,))})
def predict(x):
    x += 1
    return x
""")
    _, infer = opened(PythonEngine, path)
    with pytest.raises(ValueError, match="read-only"):
        infer(np.zeros(1, "f4"))


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("x.astype('f8')", "is FP64, not FP32"),
        ("x[:1]", "has 1 rows for a batch of 2"),
        ("x[:, 0]", r"has the shape \[2\], not \[-1, 3\]"),
        ("np.zeros((2, 4), 'f4')", r"has the shape \[2, 4\]"),
        ("(x, x)", "returned 2 outputs, not 1"),
        ("{'z': x}", r"returned \['z'\], not \['y'\]"),
        ("x.astype('c8')", "of the numpy type complex64"),
        ("None", "is BYTES, not FP32"),
    ],
)
def test_outputs_are_held_to_the_specification(module, opened, expression, text):
    """What a model returns must have the promised number, type, rank and rows."""
    path = module(f"""
@model(inputs={{"x": ("FP32", (-1, 3))}}, outputs={{"y": ("FP32", (-1, 3))}})
def predict(x):
    return {expression}
""")
    _, infer = opened(PythonEngine, path)
    with pytest.raises(OutputMismatch, match=text):
        infer(np.zeros((2, 3), "f4"))


@pytest.mark.parametrize(
    ("source", "target", "text"),
    [
        ("def predict(x):\n    return x\n", "predict", "doesn't say what it takes and gives"),
        ("predict = 3\n", "predict", "neither a function nor a class"),
        ("", "predict", "has no predict"),
        ("raise OSError('no disk')\n", "predict", "raised OSError: no disk"),
        (
            '@model(inputs={"x": ("FP32", (-1,))}, outputs={"y": ("FP32", (-1,))})\ndef predict(z):\n    return z\n',
            "predict",
            "input 'x' is in its spec but not among its parameters",
        ),
        ("class predict:\n    def __init__(self):\n        raise RuntimeError('dead')\n", "predict", "dead"),
    ],
)
def test_what_is_no_model_is_one_sentence(module, opened, source, target, text):
    """Each way to name something else is a clear ModelLoadError."""
    with pytest.raises(ModelLoadError, match=text):
        opened(PythonEngine, module(source, target))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("no_such_module_here:f", "no module 'no_such_module_here' in PYTHONPATH"),
        ("no_colon", "not of the form module:object"),
        ("/nowhere/at_all.py:f", "no such file"),
    ],
)
def test_paths_that_lead_nowhere(opened, path, text):
    """A module that does not exist is named, with the way to say where it is."""
    with pytest.raises(ModelLoadError, match=text):
        opened(PythonEngine, path)


def test_declarations_are_checked():
    """A wrong declaration fails where it is written."""
    good = {"x": ("FP32", (-1,))}
    with pytest.raises(ValueError, match="no data type 'FLOAT'"):
        model(inputs={"x": ("FLOAT", (-1,))}, outputs=good)
    with pytest.raises(ValueError, match="dimension 0 of a batched model is -1"):
        model(inputs={"x": ("FP32", (4,))}, outputs=good)
    with pytest.raises(ValueError, match="per_row needs batched"):
        model(inputs=good, outputs=good, batched=False, per_row=True)
    declared = model(inputs=good, outputs=good)(lambda x: x)
    assert isinstance(declared.spec, ModelSpec)


def test_files_of_one_name_in_two_folders_are_two_models(opened, tmp_path, monkeypatch):
    """The second model of a name runs its own code, though Python has a module of that name already."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    infers = []
    for factor in (2, 3):
        folder = tmp_path / str(factor)
        folder.mkdir()
        (folder / "json.py").write_text(
            f"{HEADER}\n@model(inputs={{'x': ('FP32', (-1, 2))}}, outputs={{'y': ('FP32', (-1, 2))}})\n"
            f"def predict(x):\n    return x * {factor}\n"
        )
        infers.append(opened(PythonEngine, f"{folder}/json.py:predict")[1])
    x = np.ones((1, 2), np.float32)
    assert [infer(x)[0].tolist() for infer in infers] == [[[2, 2]], [[3, 3]]]
