"""Fixtures for everyone: ONNX models made on the spot, and the commands in this process."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from forebay_server.cli import main

pytest_plugins = ["tests.nvml", "tests.postgres"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell without job control has what it starts in the background ignore SIGINT, and its children would, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


class OnnxModels:
    """Makes small ONNX files in a folder. Every method gives the path of the file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make_linear_model(self, inputs=64, outputs=10, *, batch="N", name="linear") -> Path:
        """`y = x @ W + b` with `W[i, j] = (i + j) % 5 - 2` and `b[j] = j`: exact in FP32 for small integers."""
        weights = ((np.arange(inputs)[:, None] + np.arange(outputs)) % 5 - 2).astype(np.float32)
        bias = np.arange(outputs, dtype=np.float32)
        return self.save(
            name,
            [helper.make_node("Gemm", ["x", "W", "b"], ["y"])],
            [("x", TensorProto.FLOAT, [batch, inputs])],
            [("y", TensorProto.FLOAT, [batch, outputs])],
            [numpy_helper.from_array(weights, "W"), numpy_helper.from_array(bias, "b")],
        )

    @staticmethod
    def linear(x, outputs=10):
        """What `make_linear_model` computes."""
        weights = ((np.arange(x.shape[-1])[:, None] + np.arange(outputs)) % 5 - 2).astype(np.float32)
        return x @ weights + np.arange(outputs, dtype=np.float32)

    def make_identity_model(self, dtype="FLOAT", shape=("N", 3), *, name=None) -> Path:
        """`y = x`; `dtype` is the name of an ONNX type, such as `FLOAT` or `STRING`."""
        kind = TensorProto.DataType.Value(dtype)
        node = helper.make_node("Identity", ["x"], ["y"])
        return self.save(name or f"identity_{dtype.lower()}", [node], [("x", kind, shape)], [("y", kind, shape)])

    def make_coupled_model(self, *, name="coupled") -> Path:
        """`y = x - mean of x over the batch`: a row's answer depends on its neighbours."""
        nodes = [
            helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "m"], ["y"]),
        ]
        tensors = [("x", TensorProto.FLOAT, ["N", 4])], [("y", TensorProto.FLOAT, ["N", 4])]
        return self.save(name, nodes, *tensors)

    def make_two_input_model(self, *, second="N", name="two") -> Path:
        """`total = a + b` and `product = a * b`, of FP32; `second` is the batch dimension's name in `b`."""
        nodes = [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Mul", ["a", "b"], ["product"])]
        return self.save(
            name,
            nodes,
            [("a", TensorProto.FLOAT, ["N", 3]), ("b", TensorProto.FLOAT, [second, 3])],
            [("total", TensorProto.FLOAT, ["N", 3]), ("product", TensorProto.FLOAT, ["N", 3])],
        )

    def make_string_model(self, *, name="strings") -> Path:
        """`y = x` of strings, two a row."""
        return self.make_identity_model("STRING", ("N", 2), name=name)

    def make_sequence_model(self, *, name="sequence") -> Path:
        """`y = x + 1` for rows of any length: shapes `[N, S]`."""
        one = numpy_helper.from_array(np.array(1, np.float32), "one")
        tensors = [("x", TensorProto.FLOAT, ["N", "S"])], [("y", TensorProto.FLOAT, ["N", "S"])]
        return self.save(name, [helper.make_node("Add", ["x", "one"], ["y"])], *tensors, [one])

    def make_embedding_model(self, *, vocabulary=5, name="embedding") -> Path:
        """`y = table[ids]`: integers over `vocabulary` make it fail."""
        table = numpy_helper.from_array(np.arange(vocabulary * 2, dtype=np.float32).reshape(vocabulary, 2), "table")
        node = helper.make_node("Gather", ["table", "ids"], ["y"])
        return self.save(
            name, [node], [("ids", TensorProto.INT64, ["N", 3])], [("y", TensorProto.FLOAT, ["N", 3, 2])], [table]
        )

    def save(self, name, nodes, inputs, outputs, initializers=()) -> Path:
        """Writes a graph; inputs and outputs are (name, type, shape), or value infos."""

        def infos(tensors):
            return [
                helper.make_tensor_value_info(*tensor) if isinstance(tensor, tuple) else tensor for tensor in tensors
            ]

        graph = helper.make_graph(nodes, name, infos(inputs), infos(outputs), list(initializers))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path = self.folder / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        return path


@pytest.fixture
def onnx_models(tmp_path) -> OnnxModels:
    """Makes ONNX files in the test's own folder."""
    return OnnxModels(tmp_path)


class Ended(NamedTuple):
    """How a command has ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def forebay(capsys, monkeypatch) -> Callable[..., Ended]:
    """Runs a command in this process. No variable of the machine's own is seen."""
    for variable in list(os.environ):
        if variable.startswith("FOREBAY_"):
            monkeypatch.delenv(variable)

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Ended(code, *capsys.readouterr())

    return run
