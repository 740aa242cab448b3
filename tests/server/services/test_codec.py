"""Responses that are put together from parts, against protobuf itself."""

import numpy as np
import pytest

from forebay.v1 import inference_pb2
from forebay_server.errors import InvalidRequest
from forebay_server.services import codec
from forebay_server.services.codec import Encoder
from forebay_server.tensors import FREE, DataType, ModelSpec, TensorSpec, encode_bytes_elements

SPEC = ModelSpec(
    inputs=(),
    outputs=(
        TensorSpec(name="p", data_type=DataType.FP32, shape=(FREE, 2)),
        TensorSpec(name="n", data_type=DataType.INT64, shape=(FREE,)),
        TensorSpec(name="t", data_type=DataType.BYTES, shape=(FREE, FREE)),
    ),
    batched=True,
)
Parse = inference_pb2.PredictResponse.FromString


class Texts:
    """Outputs of all three kinds for rows 0.."""

    def data(self, index, start, rows, shapes=None):
        numbers = np.arange(start, start + rows)
        if index == 0:
            return np.stack([numbers, -numbers], 1).astype("<f4").tobytes(), (rows, 2)
        if index == 1:
            return numbers.astype("<i8").tobytes(), (rows,)
        return encode_bytes_elements([b"row%d" % number for number in numbers]), (rows, 1)


def expected(start, rows, **fields):
    response = inference_pb2.PredictResponse(model="m", version=3, **fields)
    for index, spec in enumerate(SPEC.outputs):
        data, shape = Texts().data(index, start, rows)
        response.outputs.add(name=spec.name, data_type=int(spec.data_type), shape=shape, data=data)
    return response


@pytest.mark.parametrize(("start", "rows"), [(0, 1), (3, 1), (9, 2), (99, 1), (1000, 300)])
def test_response_is_what_protobuf_would_write(start, rows):
    """Parsed back, a response is the message built field by field, whichever shapes came before."""
    encoder = Encoder("m", 3, SPEC)
    encoder.encode(Texts(), 5, 1)
    encoder.encode(Texts(), 5, 2)

    body = encoder.encode(Texts(), start, rows, None, codec.request_id_part("an id"))

    assert Parse(body) == expected(start, rows, request_id="an id")
    assert Parse(encoder.encode(Texts(), start, rows)) == expected(start, rows)


def test_chosen_outputs_in_their_order():
    """Only what was asked for, as it was asked for."""
    body = Encoder("m", 3, SPEC, (2, 0)).encode(Texts(), 0, 1)

    assert [output.name for output in Parse(body).outputs] == ["t", "p"]


def test_no_rows():
    """Free dimensions of empty outputs are 0."""
    outputs = Parse(Encoder("m", 3, SPEC).empty()).outputs

    assert [(list(output.shape), output.data) for output in outputs] == [([0, 2], b""), ([0], b""), ([0, 0], b"")]


def test_remembered_shapes_are_bounded(monkeypatch):
    """A caller that sends ever new shapes makes nothing grow."""
    monkeypatch.setattr(codec, "MAX_HEADS", 4)
    encoder = Encoder("m", 3, SPEC)
    for rows in range(1, 20):
        assert Parse(encoder.encode(Texts(), 0, rows)) == expected(0, rows)

    assert all(len(output.heads) <= 4 for output in encoder._outputs)
    assert not encoder._outputs[2].heads


def test_readable():
    """Numbers and texts instead of data."""
    p, n, t = Parse(Encoder("m", 3, SPEC, readable=True).encode(Texts(), 1, 2)).outputs

    assert (list(p.numbers), list(n.numbers), list(t.strings)) == ([1, -1, 2, -2], [1, 2], ["row1", "row2"])
    assert list(t.shape) == [2, 1]
    assert p.data == n.data == t.data == b""


def test_readable_of_what_is_no_text():
    """Bytes that are no UTF-8 do not break the response."""

    class Bytes:
        def data(self, index, start, rows, shapes=None):
            return encode_bytes_elements([b"\xff"]), (1, 1)

    assert list(Parse(Encoder("m", 3, SPEC, (2,), readable=True).encode(Bytes(), 0, 1)).outputs[0].strings) == [
        "\ufffd"
    ]


def test_readable_and_too_large():
    """More elements than a person reads are refused."""
    with pytest.raises(InvalidRequest) as caught:
        Encoder("m", 3, SPEC, readable=True).encode(Texts(), 0, 2049)

    assert [field for field, _ in caught.value.violations] == ["readable"]


def test_parameters():
    """Values come in their own types; none is None."""
    message = inference_pb2.PredictRequest()
    assert codec.parameters_of(message) is None
    message.parameters["a"].int_value = 0
    message.parameters["b"].bool_value = False
    message.parameters["c"].string_value = ""

    assert codec.parameters_of(message) == {"a": 0, "b": False, "c": ""}
    assert codec.parameters_of(message)["b"] is False
