"""Items and results of streams, against protobuf itself."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.v1 import inference_pb2
from forebay_server.engines.collate import BatchOutputs
from forebay_server.services import framing
from forebay_server.services.codec import Encoder
from forebay_server.tensors import FREE, DataType, ModelSpec, TensorSpec


@given(st.integers(0, 2**64 - 1), st.binary(max_size=20_000))
def test_stream_results_are_what_protobuf_would_write(item, payload):
    """Whatever the id and the length, a result parses back to what it was."""
    response = inference_pb2.PredictResponse(request_id=payload.hex())
    body = framing.result_part(item, response.SerializeToString())

    assert inference_pb2.StreamPredictResponse.FromString(body).results == [
        inference_pb2.StreamResult(id=item, response=response)
    ]


def test_results_are_joined():
    """Parts one after the other are one message."""
    body = framing.result_part(1, b"") + framing.error_part(300, b"\x08\x03")

    first, second = inference_pb2.StreamPredictResponse.FromString(body).results
    assert (first.id, first.WhichOneof("outcome"), second.id, second.error.code) == (1, "response", 300, 3)


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
        if extra % 2:
            item.traceparent = "0" * (extra * 20)
        if extra < 5:
            item.timeout.FromNanoseconds(extra * 1_500_000_000)
    body = message.SerializeToString() + rest

    parts = framing.split_items(body, 4)

    if parts is not None:
        parsed = inference_pb2.StreamPredictRequest.FromString(body)
        assert [
            (
                item.id,
                item.request.SerializeToString(),
                item.timeout.ToNanoseconds() / 1e9 if item.HasField("timeout") else None,
                item.traceparent,
            )
            for item in parsed.items
        ] == parts
    elif not rest:
        assert any(extra in (7, 9) or ident == 0 or ident >= 2**63 for ident, _, extra in entries)


def test_too_many_items_are_not_split():
    """The walk ends at the limit."""
    message = inference_pb2.StreamPredictRequest(items=[inference_pb2.StreamItem(id=1, request={}) for _ in range(5)])

    assert framing.split_items(message.SerializeToString(), 5) == [(1, b"", None, "")] * 5
    assert framing.split_items(message.SerializeToString(), 4) is None


@given(st.binary(max_size=40))
def test_bytes_that_are_split_are_a_message(body):
    """Whatever bytes come: if they are split, protobuf finds the same items, or refuses a request among them."""
    parts = framing.split_items(body, 40)
    if parts is not None:
        try:
            parsed = inference_pb2.StreamPredictRequest.FromString(body)
        except DecodeError:
            return
        assert [item.id for item in parsed.items] == [ident for ident, *_ in parts]


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
    for ids in ([0, 1, 127, 128, 4096, 1 << 21, 1 << 63], [5, 0, 126], [4095, 128], [1 << 40]):
        rows = list(range(len(ids)))[::-1]
        whole = [
            framing.result_part(ident, encoder.encode(outputs, row, 1)) for ident, row in zip(ids, rows, strict=True)
        ]
        parts = framing.row_parts(ids, rows, *encoder.rows(outputs))
        assert [b"".join(parts[place : place + 4]) for place in range(0, len(parts), 4)] == whole
