"""Everybody gets the answer to what they asked, whoever else asks at the same time."""

import itertools
import random
import threading

import grpc
import numpy as np
import pytest

from forebay.v1 import inference_pb2, tensor_pb2
from forebay_client import Client
from forebay_server.config.tree import BatchingConfig, BucketsConfig, EngineConfig, ModelConfig
from tests.serving import array_of, request_of, row, synthetic

CALLERS = 16
CALLS = 60

INLINE = {"run": "inline"}
WORKER = {"run": "worker"}
TWO = {"run": "worker", "instances": 2}


def unique(random_, numbers):
    """Rows that nobody else sends."""
    rows = random_.choice([1, 1, 1, 2, 3, 7])
    return np.array([[next(numbers)] * 4 for _ in range(rows)], np.float32)


@pytest.mark.parametrize("engine", [INLINE, WORKER, TWO], ids=["inline", "worker", "two"])
def test_nobody_gets_a_neighbours_answer(serve, call, together, engine):  # noqa: C901  # one scenario
    """Unary calls and streams of many threads, cancelled and expired ones among them, each get their own rows back."""
    server = serve(synthetic(engine=engine, base_ms=0.2, batching=BatchingConfig(max_batch_size=8)))
    callers = [call(server) for _ in range(4)]
    numbers = itertools.count(1)

    def unary(index):
        random_ = random.Random(index)
        answered = 0
        for turn in range(CALLS):
            sent = unique(random_, numbers)
            ident = f"{index}-{turn}"
            timeout = 0.002 if turn % 10 == 7 else 20
            future = callers[index % 4].later("model", sent, timeout=timeout, request_id=ident)
            if turn % 10 == 3:
                future.cancel()
            try:
                response = future.result()
            except (grpc.RpcError, grpc.FutureCancelledError):
                assert turn % 10 in (3, 7), future
                continue
            assert response.request_id == ident
            assert np.array_equal(array_of(response.outputs[0]), sent)
            answered += 1
        return answered

    def stream(index):
        random_ = random.Random(index)
        sent = {ident: unique(random_, numbers) for ident in random_.sample(range(10_000), CALLS)}

        def messages():
            items = [
                inference_pb2.StreamItem(id=ident, request=request_of("model", array)) for ident, array in sent.items()
            ]
            for start in range(0, len(items), 7):
                yield inference_pb2.StreamPredictRequest(items=items[start : start + 7])

        answered = 0
        for message in callers[index % 4].inference.StreamPredict(messages(), timeout=30):
            for result in message.results:
                assert np.array_equal(array_of(result.response.outputs[0]), sent.pop(result.id))
                answered += 1
        assert not sent
        return answered

    def work(index):
        return stream(index) if index % 4 == 0 else unary(index)

    answered = together(work, range(CALLERS))
    assert sum(answered) >= CALLERS * CALLS * 0.75


def test_a_stream_in_order_gives_results_in_the_order_of_its_items(serve, call):
    """An ordered stream keeps the order of the items, though two instances finish them in another."""
    server = serve(synthetic(engine=TWO, base_ms=1, batching=BatchingConfig(max_batch_size=2)))
    idents = random.Random(1).sample(range(10**9), 200)
    options = inference_pb2.StreamOptions(order=inference_pb2.RESULT_ORDER_AS_SENT)

    def messages():
        yield inference_pb2.StreamPredictRequest(options=options)
        for ident in idents:
            item = inference_pb2.StreamItem(id=ident, request=request_of("model", row(ident % 9999)))
            yield inference_pb2.StreamPredictRequest(items=[item])

    results = [
        result for message in call(server).inference.StreamPredict(messages(), timeout=30) for result in message.results
    ]
    assert [result.id for result in results] == idents
    assert all(np.array_equal(array_of(r.response.outputs[0]), row(r.id % 9999)) for r in results)


@pytest.mark.parametrize("engine", [INLINE, TWO], ids=["inline", "two"])
def test_more_rows_than_a_batch_are_split_and_joined(serve, call, together, engine):
    """A request of many batches comes back whole and in order, while others send the same."""
    server = serve(synthetic(engine=engine, batching=BatchingConfig(max_batch_size=8)))
    caller = call(server)

    def one(index):
        sent = np.arange(index, index + 101 * 4, dtype=np.float32).reshape(101, 4)
        response = caller.predict("model", sent, report_timings=True)
        assert response.timings.batch_rows <= 8
        return np.array_equal(array_of(response.outputs[0]), sent)

    assert all(together(one, [1000 * index for index in range(8)]))


def test_models_do_not_mix(serve, call, together):
    """Several models in one server each give their own answers."""
    factors = {"one": 1.0, "two": 2.0, "three": 3.0}
    server = serve(*(synthetic(name, scale=factor) for name, factor in factors.items()))
    caller = call(server)

    def one(index):
        name = list(factors)[index % 3]
        response = caller.predict(name, row(index))
        return response.model == name and np.array_equal(array_of(response.outputs[0]), row(index * factors[name]))

    assert all(together(one, range(48)))


def test_padding_is_cut_back(serve, call, together, onnx_models):
    """Requests of different lengths share a padded bucket, and each gets an answer of its own length."""
    path = onnx_models.make_sequence_model()
    buckets = BucketsConfig(shapes={"x": [[4], [16]]}, outputs={"y": [0]}, pad_value=-7)
    server = serve(ModelConfig(path=str(path), buckets=buckets, batching=BatchingConfig(max_delay_ms=5)))
    caller = call(server)

    def one(index):
        length = 1 + index % 16
        sent = np.arange(2 * length, dtype=np.float32).reshape(2, length) + 100 * index
        response = caller.predict("sequence", sent)
        return np.array_equal(array_of(response.outputs[0]), sent + 1)

    assert all(together(one, range(32)))
    error = caller.fails(request_of("sequence", np.zeros((1, 17), np.float32)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_text_through_the_contract_and_the_client(serve, call, onnx_models, together):
    """Strings of any length and content come back as they were, in the raw form, the readable one and by the client."""
    server = serve(ModelConfig(path=str(onnx_models.make_string_model())))
    caller = call(server)
    strings = ["", "häuser", "x" * 3000, "a,b"]
    tensor = tensor_pb2.Tensor(name="x", data_type=tensor_pb2.DATA_TYPE_BYTES, shape=[2, 2], strings=strings)
    request = inference_pb2.PredictRequest(model="strings", inputs=[tensor], readable=True)
    assert list(caller.inference.Predict(request, timeout=10).outputs[0].strings) == strings
    with Client(server.addresses["public"]) as client:

        def one(index):
            sent = np.array([[f"{index}", "é" * index], [b"", f"{index}" * 9]], dtype=object)
            got = client.predict("strings", sent)["y"]
            return [[element.decode() for element in line] for line in got] == [
                [element.decode() if isinstance(element, bytes) else element for element in line] for line in sent
            ]

        assert all(together(one, range(16)))


def test_an_onnx_model_of_several_inputs_and_outputs(serve, call, together, onnx_models):
    """Inputs are taken by name in any order, outputs given in the order asked for."""
    server = serve(ModelConfig(path=str(onnx_models.make_two_input_model())))
    caller = call(server)

    def tensor(name, array):
        return request_of("two", array, name=name).inputs[0]

    def one(index):
        a, b = row(index, 3, 3), row(index + 1, 3, 3)
        request = inference_pb2.PredictRequest(
            model="two", inputs=[tensor("b", b), tensor("a", a)], outputs=["product", "total"]
        )
        response = caller.inference.Predict(request, timeout=10)
        assert [output.name for output in response.outputs] == ["product", "total"]
        return np.array_equal(array_of(response.outputs[0]), a * b) and np.array_equal(
            array_of(response.outputs[1]), a + b
        )

    assert all(together(one, range(24)))
    alone = inference_pb2.PredictRequest(
        model="two", inputs=[tensor("a", row(2, 1, 3)), tensor("b", row(3, 1, 3))], outputs=["product"]
    )
    (output,) = caller.inference.Predict(alone, timeout=10).outputs
    assert array_of(output).tolist() == [[6, 6, 6]]


def test_a_linear_onnx_model_answers_exactly(serve, call, together, onnx_models):
    """A model file without any settings answers what it computes, from many callers."""
    server = serve(ModelConfig(path=str(onnx_models.make_linear_model())))
    caller = call(server)

    def one(index):
        sent = (np.arange(64 * 3) % (index + 2)).astype(np.float32).reshape(3, 64)
        response = caller.predict("linear", sent)
        return np.array_equal(array_of(response.outputs[0]), onnx_models.linear(sent))

    assert all(together(one, range(32)))


def test_a_python_model(serve, call, tmp_path, together):
    """A Python class answers, sees the parameters of its batch, and nobody else's."""
    (tmp_path / "e2e_python_model.py").write_text(
        "import numpy as np\n"
        "from forebay_server.engines.python import model\n"
        "@model(inputs={'x': ('FP32', (-1, 4))}, outputs={'y': ('FP32', (-1, 4))})\n"
        "class Plus:\n"
        "    def infer(self, x, parameters):\n"
        "        return x + np.float32(parameters.get('plus', 0))\n"
    )
    model = ModelConfig(
        path=f"python:{tmp_path / 'e2e_python_model.py'}:Plus", engine=EngineConfig(instances=2, run="worker")
    )
    server = serve(model)
    caller = call(server)

    def one(index):
        plus = index % 3
        parameters = {"plus": inference_pb2.Parameter(int_value=plus)} if plus else {}
        response = caller.predict("Plus", row(index), parameters=parameters)
        return np.array_equal(array_of(response.outputs[0]), row(index + plus))

    assert all(together(one, range(48)))


def test_the_client_streams_exactly(serve):
    """The Python client's streams, ordered and not, several at a time, give each item its own result."""
    server = serve(synthetic(base_ms=0.2), synthetic("slow", base_ms=2))
    failed = []
    with Client(server.addresses["public"]) as client:

        def run(offset, ordered):
            sent = [row(offset + index) for index in range(150)]
            got = [None] * len(sent)
            for index, prediction in enumerate(client.stream("model", sent, ordered=ordered)):
                got[index if ordered else prediction.index] = prediction["y"]
            if not all(np.array_equal(a, b) for a, b in zip(sent, got, strict=True)):
                failed.append(offset)

        threads = [threading.Thread(target=run, args=(1000 * n, n % 2 == 0)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    assert failed == []
