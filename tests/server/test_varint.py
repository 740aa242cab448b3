"""Integers as protobuf writes them."""

from hypothesis import given
from hypothesis import strategies as st

from forebay.v1 import inference_pb2
from forebay_server.varint import varint


@given(st.integers(0, (1 << 64) - 1) | st.integers(0, 1 << 22))
def test_varints_are_what_protobuf_would_write(number):
    """Whichever way they are made."""
    assert varint(number) == inference_pb2.StreamItem(id=number).SerializeToString()[1:] or number == 0
