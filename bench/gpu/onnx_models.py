"""The same models as ONNX files, put together node by node: for ONNX Runtime and TensorRT."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, TOKENS, HIDDEN, LAYERS, HEADS, INNER = 30_522, 128, 768, 12, 12, 3072
BLOCKS = (3, 4, 6, 3)
SEED = 20_260


class _Graph:
    """Nodes and weights of a graph that grows."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._random = np.random.default_rng(SEED)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output; its name."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, values: Any) -> str:
        """Values; their name."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def random(self, *shape: int, scale: float) -> str:
        """FP16 weights from a normal distribution."""
        return self.constant((self._random.standard_normal(shape, np.float32) * scale).astype(np.float16))

    def linear(self, x: str, entering: int, leaving: int) -> str:
        """x W + b."""
        product = self.add("MatMul", x, self.random(entering, leaving, scale=entering**-0.5))
        return self.add("Add", product, self.random(leaving, scale=0.02))

    def norm(self, x: str) -> str:
        """Layer normalisation."""
        one, zero = self.constant(np.ones(HIDDEN, np.float16)), self.constant(np.zeros(HIDDEN, np.float16))
        return self.add("LayerNormalization", x, one, zero, axis=-1)

    def convolution(self, x: str, entering: int, leaving: int, size: int, stride: int = 1) -> str:
        """A convolution with a bias."""
        weights = self.random(leaving, entering, size, size, scale=(2 / (entering * size * size)) ** 0.5)
        pads = [size // 2] * 4
        return self.add("Conv", x, weights, self.random(leaving, scale=0.02), strides=[stride] * 2, pads=pads)

    def save(self, file: Path, source: tuple[str, int, list[Any]], output: str, shape: list[Any], kind: int) -> Path:
        """Writes the file; the input is (name, type, shape)."""
        self.nodes.append(helper.make_node("Identity", [output], ["y"]))
        graph = helper.make_graph(
            self.nodes, file.stem, [helper.make_tensor_value_info(*source)],
            [helper.make_tensor_value_info("y", kind, shape)], self.weights,
        )  # fmt: skip
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        file.write_bytes(made.SerializeToString())
        return file


def bert(folder: Path) -> Path:
    """BERT-base's shape, FP16: ids INT64[N, 128] to y FP16[N, 2]."""
    graph = _Graph()
    words = graph.add("Gather", graph.random(VOCABULARY, HIDDEN, scale=1.0), "ids")
    x = graph.norm(graph.add("Add", words, graph.random(TOKENS, HIDDEN, scale=0.02)))
    split = graph.constant(np.array([0, 0, HEADS, HIDDEN // HEADS], np.int64))
    joined = graph.constant(np.array([0, 0, HIDDEN], np.int64))
    scale = graph.constant(np.float16((HIDDEN // HEADS) ** -0.5))
    half, one, root = (graph.constant(np.float16(value)) for value in (0.5, 1.0, 2**-0.5))
    for _ in range(LAYERS):
        parts = [graph.add("Reshape", graph.linear(x, HIDDEN, HIDDEN), split) for _ in range(3)]
        query = graph.add("Transpose", parts[0], perm=[0, 2, 1, 3])
        key = graph.add("Transpose", parts[1], perm=[0, 2, 3, 1])
        value = graph.add("Transpose", parts[2], perm=[0, 2, 1, 3])
        weights = graph.add("Softmax", graph.add("Mul", graph.add("MatMul", query, key), scale), axis=-1)
        attended = graph.add("Transpose", graph.add("MatMul", weights, value), perm=[0, 2, 1, 3])
        out = graph.linear(graph.add("Reshape", attended, joined), HIDDEN, HIDDEN)
        x = graph.norm(graph.add("Add", x, out))
        inner = graph.linear(x, HIDDEN, INNER)
        erf = graph.add("Add", graph.add("Erf", graph.add("Mul", inner, root)), one)
        activated = graph.add("Mul", graph.add("Mul", inner, erf), half)  # GELU
        x = graph.norm(graph.add("Add", x, graph.linear(activated, INNER, HIDDEN)))
    first = graph.add("Gather", x, graph.constant(np.int64(0)), axis=1)
    scores = graph.linear(first, HIDDEN, 2)
    return graph.save(
        folder / "bert.onnx", ("ids", TensorProto.INT64, ["N", TOKENS]), scores, ["N", 2], TensorProto.FLOAT16
    )


def resnet(folder: Path) -> Path:
    """ResNet-50's shape, FP16: image FP16[N, 3, 224, 224] to y FP16[N, 1000]."""
    graph = _Graph()
    x = graph.add("Relu", graph.convolution("image", 3, 64, 7, 2))
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    entering = 64
    for stage, count in enumerate(BLOCKS):
        width = 64 << stage
        for number in range(count):
            stride = 2 if stage and not number else 1
            beside = x
            if stride != 1 or entering != 4 * width:
                beside = graph.convolution(x, entering, 4 * width, 1, stride)
            y = graph.add("Relu", graph.convolution(x, entering, width, 1))
            y = graph.add("Relu", graph.convolution(y, width, width, 3, stride))
            x = graph.add("Relu", graph.add("Add", graph.convolution(y, width, 4 * width, 1), beside))
            entering = 4 * width
    pooled = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    scores = graph.linear(pooled, entering, 1000)
    return graph.save(
        folder / "resnet.onnx",
        ("image", TensorProto.FLOAT16, ["N", 3, 224, 224]),
        scores,
        ["N", 1000],
        TensorProto.FLOAT16,
    )


def identity(folder: Path, data_type: str, onnx_type: str) -> Path:
    """y = x of shape [N, S], in one type."""
    kind = getattr(onnx.TensorProto, onnx_type)
    graph = _Graph()
    return graph.save(folder / f"identity_{data_type.lower()}.onnx", ("x", kind, ["N", "S"]), "x", ["N", "S"], kind)


def linear(folder: Path, width: int, dtype: str) -> Path:
    """y = relu(x W + b) of shape [N, width], FP32 or FP16."""
    graph = _Graph()
    kind = TensorProto.FLOAT16 if dtype == "FP16" else TensorProto.FLOAT
    numbers = np.float16 if dtype == "FP16" else np.float32
    random = np.random.default_rng(SEED)
    weights = graph.constant((random.standard_normal((width, width)) * width**-0.5).astype(numbers))
    bias = graph.constant(random.standard_normal(width).astype(numbers))
    y = graph.add("Relu", graph.add("Add", graph.add("MatMul", "x", weights), bias))
    return graph.save(folder / f"linear_{dtype.lower()}.onnx", ("x", kind, ["N", width]), y, ["N", width], kind)
