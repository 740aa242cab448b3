"""Makes the models of the bench, and the requests that are sent to them with the answers that must come back.

`python -m bench.models DIRECTORY` writes, per model, `NAME.onnx`, `NAME.calls` (requests and expected answers for
`forebay-loadgen`; `bench/loadgen/src/calls.rs` reads it) and `NAME.timed.calls` (the same, asking for timings); for
ghz `NAME.predict.bin`, `NAME.stream.bin` and `NAME.submit.bin`, and once `forebay.binpb`, the contract as a descriptor
set. Everything has fixed seeds. It measures nothing; `run` and the tests call it.

The comparison servers import it, too, and their start is measured: what they do without is imported where it is used.
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf import descriptor_pb2
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from forebay.v1 import inference_pb2, tensor_pb2

Floats = npt.NDArray[np.float32]

OPSET = 17
IR_VERSION = 8
STREAM_ITEMS = 32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BenchModel:
    """One model of the bench.

    `row` is the shape of one request, without the batch; `distinct` the number of different requests; `messages` the
    number of stream messages for ghz.
    """

    name: str
    row: tuple[int, ...]
    distinct: int
    messages: int
    build: Callable[[np.random.Generator], onnx.GraphProto]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where the files of one model are."""

    model: Path
    calls: Path
    timed_calls: Path
    ghz_predict: Path
    ghz_stream: Path
    ghz_submit: Path


def _graph(name: str, row: tuple[int, ...], nodes: list[Any], weights: dict[str, npt.NDArray[Any]]) -> onnx.GraphProto:
    return helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *row])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )


def _weights(random: np.random.Generator, *shape: int) -> Floats:
    weights: Floats = (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
    return weights


def _small(random: np.random.Generator) -> onnx.GraphProto:
    """A digits classifier: 8x8 pixels, 32 hidden units, 10 probabilities."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("Gemm", ["h2", "w2", "b2"], ["h3"]),
        helper.make_node("Softmax", ["h3"], ["y"], axis=1),
    ]
    weights = {
        "w1": _weights(random, 64, 32),
        "b1": _weights(random, 32),
        "w2": _weights(random, 32, 10),
        "b2": _weights(random, 10),
    }
    return _graph("small", (64,), nodes, weights)


MEDIUM_BLOCKS = 6
MEDIUM_TOKENS = 64
MEDIUM_WIDTH = 256


def _medium(random: np.random.Generator) -> onnx.GraphProto:
    """Feed-forward blocks over 64 tokens: 0.4 GFLOP a row, and already at its best speed with one row."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axis1"], ["row"]),
        helper.make_node("Mul", ["row", "positions"], ["t0"]),
    ]
    weights: dict[str, npt.NDArray[Any]] = {
        "axis1": np.array([1], np.int64),
        "positions": random.standard_normal((MEDIUM_TOKENS, MEDIUM_WIDTH)).astype(np.float32),
    }
    for block in range(MEDIUM_BLOCKS):
        weights[f"up{block}"] = _weights(random, MEDIUM_WIDTH, 4 * MEDIUM_WIDTH)
        weights[f"down{block}"] = _weights(random, 4 * MEDIUM_WIDTH, MEDIUM_WIDTH) * np.float32(0.3)
        nodes += [
            helper.make_node("MatMul", [f"t{block}", f"up{block}"], [f"a{block}"]),
            helper.make_node("Relu", [f"a{block}"], [f"r{block}"]),
            helper.make_node("MatMul", [f"r{block}", f"down{block}"], [f"d{block}"]),
            helper.make_node("Add", [f"t{block}", f"d{block}"], [f"t{block + 1}"]),
        ]
    weights["head"] = _weights(random, MEDIUM_WIDTH, 10)
    nodes += [
        helper.make_node("ReduceMean", [f"t{MEDIUM_BLOCKS}"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["y"]),
    ]
    return _graph("medium", (MEDIUM_WIDTH,), nodes, weights)


def _large_message(random: np.random.Generator) -> onnx.GraphProto:
    """An image of 602,112 bytes, averaged per channel: next to no compute."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "head"], ["y"]),
    ]
    return _graph("large-message", (3, 224, 224), nodes, {"head": _weights(random, 3, 10)})


MODELS = {
    model.name: model
    for model in (
        BenchModel(name="small", row=(64,), distinct=64, messages=50, build=_small),
        BenchModel(name="medium", row=(MEDIUM_WIDTH,), distinct=16, messages=4, build=_medium),
        BenchModel(name="large-message", row=(3, 224, 224), distinct=4, messages=1, build=_large_message),
    )
}


def files(name: str, directory: Path) -> Files:
    """Where `make` puts the files of a model."""
    return Files(
        model=directory / f"{name}.onnx",
        calls=directory / f"{name}.calls",
        timed_calls=directory / f"{name}.timed.calls",
        ghz_predict=directory / f"{name}.predict.bin",
        ghz_stream=directory / f"{name}.stream.bin",
        ghz_submit=directory / f"{name}.submit.bin",
    )


def stream_items(name: str) -> int:
    """Items of one of the stream messages for ghz. Some requests are 600 KB: a message must stay below the limit."""
    return min(STREAM_ITEMS, MODELS[name].distinct)


def protoset(path: Path) -> None:
    """Writes the contract as a descriptor set, so that ghz need not ask the server for it."""
    from forebay.v1 import inference_service_pb2, job_service_pb2  # noqa: PLC0415  # see the top
    from tools.transcoding import with_imports  # noqa: PLC0415  # see the top

    services = [inference_service_pb2.DESCRIPTOR, job_service_pb2.DESCRIPTOR]
    path.write_bytes(descriptor_pb2.FileDescriptorSet(file=with_imports(services).values()).SerializeToString())


def session(path: Path, threads: int = 1) -> Any:
    """An onnxruntime session with a fixed number of threads that do not spin."""
    import onnxruntime  # noqa: PLC0415  # see the top

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def tensor(name: str, array: Floats) -> tensor_pb2.Tensor:
    """An array as the contract's tensor."""
    return tensor_pb2.Tensor(
        name=name, data_type=tensor_pb2.DATA_TYPE_FP32, shape=array.shape, data=array.astype("<f4").tobytes()
    )


def inputs(model: BenchModel) -> Floats:
    """The different requests of a model, a row each."""
    random = np.random.default_rng(2)
    return random.standard_normal((model.distinct, *model.row)).astype(np.float32)


def make(name: str, directory: Path) -> Files:
    """Writes the files of one model and tells where they are."""
    from forebay.v1 import job_service_pb2  # noqa: PLC0415  # see the top

    model = MODELS[name]
    paths = files(name, directory)
    directory.mkdir(parents=True, exist_ok=True)
    graph = model.build(np.random.default_rng(1))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(proto)
    onnx.save(proto, str(paths.model))

    rows = inputs(model)
    run = session(paths.model).run
    # One row at a time: the answer that a caller would get alone.
    answers = [run(None, {"x": row[np.newaxis]})[0] for row in rows]
    requests = [inference_pb2.PredictRequest(model=name, inputs=[tensor("x", row[np.newaxis])]) for row in rows]
    responses = [inference_pb2.PredictResponse(outputs=[tensor("y", answer)]) for answer in answers]
    paths.calls.write_bytes(b"".join(map(_pair, requests, responses)))

    paths.ghz_predict.write_bytes(requests[0].SerializeToString())
    paths.ghz_submit.write_bytes(job_service_pb2.SubmitRequest(request=requests[0]).SerializeToString())
    # Ids must be unique among the items in flight, which may be those of all messages.
    items = stream_items(name)
    paths.ghz_stream.write_bytes(
        b"".join(
            _delimited(
                inference_pb2.StreamPredictRequest(
                    items=[
                        inference_pb2.StreamItem(id=message * items + item, request=requests[item % len(requests)])
                        for item in range(items)
                    ]
                )
            )
            for message in range(model.messages)
        )
    )

    for request in requests:
        request.report_timings = True
    paths.timed_calls.write_bytes(b"".join(map(_pair, requests, responses)))
    return paths


def read_calls(path: Path) -> list[tuple[bytes, bytes]]:
    """The requests and expected answers of a file of calls."""
    data, position, messages = path.read_bytes(), 0, []
    while position < len(data):
        start = position + 4
        position = start + int.from_bytes(data[position:start], "little")
        messages.append(data[start:position])
    return list(zip(messages[::2], messages[1::2], strict=True))


def _framed(message: Message) -> bytes:
    data = message.SerializeToString()
    return len(data).to_bytes(4, "little") + data


def _pair(request: Message, response: Message) -> bytes:
    return _framed(request) + _framed(response)


def _delimited(message: Message) -> bytes:
    data = message.SerializeToString()
    return _varint(len(data)) + data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Make the models of the bench and their requests.")
    parser.add_argument("directory", type=Path, help="where to write them")
    directory: Path = parser.parse_args().directory
    for name in MODELS:
        print(make(name, directory).model)
    protoset(directory / "forebay.binpb")


if __name__ == "__main__":
    main()
