"""Modules that a factory makes, served for real."""

import sys

import numpy as np
import pytest

from forebay_client import Client
from forebay_server.config.tree import EngineConfig, ModelConfig
from forebay_server.engines.base import EngineBatch, ModelLoadError
from forebay_server.models.loader import load

HEADER = """
import torch
from forebay_server.engines.python import model
from tests.torch.models import Scale
"""
SCALE = """
@model(inputs={"x": ("FP32", (-1, 4))}, outputs={"y": ("FP32", (-1, 4))})
def scale(factor=2):
    return Scale(factor)
"""


@pytest.fixture
def module(tmp_path, request):
    """Writes a Python module and gives the path of one of its objects; afterwards Python forgets both."""
    before = list(sys.path)
    name = f"factory_{abs(hash(request.node.nodeid))}"

    def write(source, target="scale"):
        (tmp_path / f"{name}.py").write_text(HEADER + source)
        return f"torch:{tmp_path}/{name}.py:{target}"

    yield write
    sys.path[:] = before
    sys.modules.pop(name, None)


def test_a_module_through_predict(serve, module):
    """The factory's keywords are the engine's options; the model is called as the factory is."""
    server = serve(ModelConfig(path=module(SCALE), engine=EngineConfig(options={"factor": 3})))
    x = np.arange(8, dtype="f4").reshape(2, 4)
    with Client(server.addresses["public"]) as client:
        assert client.predict("scale", {"x": x})["y"].tolist() == (x * 3).tolist()


def test_each_instance_has_a_module_of_its_own(module):
    """A module may keep what it likes between batches."""
    loaded = load(ModelConfig(path=module(SCALE), engine=EngineConfig(instances=2)))
    try:
        first, second = loaded.instances
        assert first._run is not second._run
    finally:
        loaded.close()


def test_modules_whose_rows_see_each_other(module):
    """They run with batches of one row, as models of every engine."""
    path = module("""
class Centre(torch.nn.Module):
    def forward(self, x):
        return x - x.mean(dim=0)

@model(inputs={"x": ("FP32", (-1, 4))}, outputs={"y": ("FP32", (-1, 4))})
def scale():
    return Centre()
""")
    loaded = load(ModelConfig(path=path))
    assert loaded.max_batch_size == 1
    loaded.close()


@pytest.mark.parametrize("returned", ["{'y': y, 'z': z}", "{'z': z, 'y': y}", "[y, z]", "(y, z)"])
def test_outputs_by_name_or_in_order(module, returned):
    """A mapping, or a sequence in the order of the outputs."""
    path = module(f"""
class Two(torch.nn.Module):
    def forward(self, a, b):
        y, z = a + b, (a * b).to(torch.bfloat16)
        return {returned}

@model(
    inputs={{"a": ("FP32", (-1, 2)), "b": ("FP32", (-1, 2))}},
    outputs={{"y": ("FP32", (-1, 2)), "z": ("BF16", (-1, 2))}},
)
def scale():
    return Two()
""")
    loaded = load(ModelConfig(path=path))
    try:
        a, b = np.full((3, 2), 5, "f4"), np.full((3, 2), 2, "f4")
        y, z = loaded.instances[0].infer(EngineBatch([a, b], 3))
        assert (y.tolist(), z.astype("f4").tolist(), z.dtype.name) == ([[7, 7]] * 3, [[10, 10]] * 3, "bfloat16")
    finally:
        loaded.close()


def factory(returned, *, data_type="FP32"):
    """A factory that returns this."""
    declared = f'@model(inputs={{"x": ("{data_type}", (-1, 4))}}, outputs={{"y": ("{data_type}", (-1, 4))}})'
    return f"{declared}\ndef scale():\n    return {returned}\n"


def answering(returned):
    """A factory of a module that answers so."""
    module = f"class Bad(torch.nn.Module):\n    def forward(self, x):\n        return {returned}\n"
    return module + factory("Bad()")


@pytest.mark.parametrize(
    ("source", "options", "sentence"),
    [
        (factory("1 / 0"), {}, "the factory raised ZeroDivisionError: division by zero"),
        (factory("'model'"), {}, "the factory gave a str, not a torch.nn.Module"),
        (SCALE, {"colour": 1}, "the factory raised TypeError: scale() got an unexpected keyword argument 'colour'"),
        ("def scale():\n    return Scale(1)\n", {}, "it doesn't say what its module takes and gives"),
        ("scale = 3\n", {}, "it can't be called, so it makes no module"),
        ("", {}, "has no scale"),
        (
            factory("Scale(1)", data_type="BYTES"),
            {},
            "'x' is BYTES, which torch has not",
        ),
        (answering("(x, x)"), {}, "it returned 2 outputs, not 1"),
        (
            answering("x.double()"),
            {},
            "the output 'y' is float64 of the shape [1, 4], not FP32 of [-1, 4]",
        ),
        (answering("{'z': x}"), {}, "it returned ['z'], not ['y']"),
        (answering("[3]"), {}, "it returned a list that does not hold tensors alone"),
    ],
)
def test_what_is_wrong_with_a_factory(module, source, options, sentence):
    """One clear sentence each, at load."""
    with pytest.raises(ModelLoadError) as caught:
        load(ModelConfig(path=module(source), engine=EngineConfig(options=options)))
    assert sentence in str(caught.value)


def test_no_such_module():
    """As the python engine says it."""
    with pytest.raises(ModelLoadError, match="no such file"):
        load(ModelConfig(path="torch:/nowhere/model.py:scale"))
