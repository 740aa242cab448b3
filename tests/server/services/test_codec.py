"""Responses that are put together from parts, against protobuf itself."""

from types import SimpleNamespace

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.v1 import inference_pb2
from forebay_server.engines.collate import BatchOutputs
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


@given(st.integers(0, 2**64 - 1), st.binary(max_size=20_000))
def test_stream_results_are_what_protobuf_would_write(item, payload):
    """Whatever the id and the length, a result parses back to what it was."""
    response = inference_pb2.PredictResponse(request_id=payload.hex())
    body = codec.result_part(item, response.SerializeToString())

    assert inference_pb2.StreamPredictResponse.FromString(body).results == [
        inference_pb2.StreamResult(id=item, response=response)
    ]


def test_results_are_joined():
    """Parts one after the other are one message."""
    body = codec.result_part(1, b"") + codec.error_part(300, b"\x08\x03")

    first, second = inference_pb2.StreamPredictResponse.FromString(body).results
    assert (first.id, first.WhichOneof("outcome"), second.id, second.error.code) == (1, "response", 300, 3)


def test_parameters():
    """Values come in their own types; none is None."""
    message = inference_pb2.PredictRequest()
    assert codec.parameters_of(message) is None
    message.parameters["a"].int_value = 0
    message.parameters["b"].bool_value = False
    message.parameters["c"].string_value = ""

    assert codec.parameters_of(message) == {"a": 0, "b": False, "c": ""}
    assert codec.parameters_of(message)["b"] is False


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=200), st.integers(0, 9)), max_size=4),
    st.binary(max_size=3),
)
def test_items_are_split_as_protobuf_parses_them(entries, rest):
    """What is split has the ids and requests that protobuf finds; nothing else is split."""
    message = inference_pb2.StreamPredictRequest()
    for ident, payload, extra in entries:
        item = message.items.add(id=ident, request=inference_pb2.PredictRequest(request_id=payload.hex()))
        if extra == 0:
            item.traceparent = "00"
        elif extra < 5:
            item.timeout.FromNanoseconds(extra * 1_500_000_000)
    body = message.SerializeToString() + rest

    parts = codec.split_items(body, 4)

    if parts is not None:
        parsed = inference_pb2.StreamPredictRequest.FromString(body)
        assert [
            (
                item.id,
                item.request.SerializeToString(),
                item.timeout.ToNanoseconds() / 1e9 if item.HasField("timeout") else None,
            )
            for item in parsed.items
        ] == parts
    elif not rest:
        assert any(extra == 0 or ident == 0 or ident >= 2**63 for ident, _, extra in entries)


def test_too_many_items_are_not_split():
    """The walk ends at the limit."""
    message = inference_pb2.StreamPredictRequest(items=[inference_pb2.StreamItem(id=1, request={}) for _ in range(5)])

    assert codec.split_items(message.SerializeToString(), 5) == [(1, b"", None)] * 5
    assert codec.split_items(message.SerializeToString(), 4) is None


@given(st.binary(max_size=40))
def test_bytes_that_are_split_are_a_message(body):
    """Whatever bytes come: if they are split, protobuf finds the same items, or refuses a request among them."""
    parts = codec.split_items(body, 40)
    if parts is not None:
        try:
            parsed = inference_pb2.StreamPredictRequest.FromString(body)
        except DecodeError:
            return
        assert [item.id for item in parsed.items] == [ident for ident, _, _ in parts]


@settings(max_examples=300, deadline=None)
@given(
    ids=st.one_of(
        st.lists(st.integers(1, 127), min_size=2, max_size=9),
        st.lists(st.integers(128, 16383), min_size=2, max_size=9),
        st.lists(st.integers(1 << 55, (1 << 56) - 1), min_size=2, max_size=9),
    ),
    size=st.integers(1, 300),
    timeout=st.booleans(),
    data=st.data(),
)
def test_ids_of_items_that_are_alike(ids, size, timeout, data):
    """They are those of the message parsed; a change of any byte but id and data is seen, or changes nothing."""
    message = inference_pb2.StreamPredictRequest()
    for ident in ids:
        item = message.items.add(id=ident)
        item.request.model = "some model"
        item.request.inputs.add(name="x", data=data.draw(st.binary(min_size=size, max_size=size)))
        if timeout:
            item.timeout.seconds = 300
    body = message.SerializeToString()
    first = codec.first_item(body)
    assert body[first.start : first.end] == message.items[0].request.SerializeToString()
    assert first.timeout == (300.0 if timeout else None)
    places = first.end - size, first.end
    assert codec.ids_of_alike(body, first, *places) == ids

    at = data.draw(st.integers(0, len(body) - 1))
    changed = bytearray(body)
    changed[at] ^= data.draw(st.integers(1, 255))
    body = bytes(changed)
    if codec.first_item(body) == first:
        found = codec.ids_of_alike(body, first, *places)
        parts = codec.split_items(body, 1000)
        if found is not None:
            begin, end = (place - first.start for place in places)
            assert found == [ident for ident, _, _ in parts]
            assert {part[:begin] + part[end:] for _, part, _ in parts} == {parts[0][1][:begin] + parts[0][1][end:]}
            assert {wait for _, _, wait in parts} == {first.timeout}
        else:
            assert not places[0] <= at % first.stop < places[1]


@pytest.mark.parametrize("width", [1, 200, 2000])
def test_rows_are_what_results_of_each_would_be(width):
    """The same bytes as `result_part` of `encode`, for ids and responses of all lengths."""
    array = np.arange(7 * width, dtype="<f4").reshape(7, width)
    spec = ModelSpec(
        inputs=(), outputs=(TensorSpec(name="y", data_type=DataType.FP32, shape=(FREE, FREE)),), batched=True
    )
    outputs = BatchOutputs([array], 7, [False], [None], True)
    encoder = Encoder("m", 3, spec)
    assert encoder.rows(outputs) is None  # Nothing is known about the shape.
    items = [(SimpleNamespace(ident=ident), row) for row, ident in enumerate((0, 1, 127, 128, 4096, 1 << 21, 1 << 63))]
    whole = [codec.result_part(item.ident, encoder.encode(outputs, row, 1)) for item, row in items]
    assert codec.row_parts(items, *encoder.rows(outputs)) == whole


@given(st.integers(0, (1 << 64) - 1) | st.integers(0, 1 << 22))
def test_varints_are_what_protobuf_would_write(number):
    """Whichever way they are made."""
    assert codec.varint(number) == inference_pb2.StreamItem(id=number).SerializeToString()[1:] or number == 0
