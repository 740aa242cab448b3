"""Messages of items that are alike, against protobuf itself."""

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.v1 import inference_pb2
from forebay_server.services import alike, framing


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
    first = alike.first_item(body)
    assert body[first.start : first.end] == message.items[0].request.SerializeToString()
    assert first.timeout == (300.0 if timeout else None)
    places = first.end - size, first.end
    layout = alike.Layout(body, first, *places)
    assert layout.timeout == first.timeout
    assert layout.ids(body) == ids
    assert [piece for (piece,) in layout.data(body)] == [item.request.inputs[0].data for item in message.items]

    at = data.draw(st.integers(0, len(body) - 1))
    changed = bytearray(body)
    changed[at] ^= data.draw(st.integers(1, 255))
    body = bytes(changed)
    found = layout.ids(body)
    if alike.first_item(body) == first:
        parts = framing.split_items(body, 1000)
        if found is not None:
            begin, end = (place - first.start for place in places)
            assert found == [ident for ident, *_ in parts]
            assert {part[:begin] + part[end:] for _, part, *_ in parts} == {parts[0][1][:begin] + parts[0][1][end:]}
            assert {wait for _, _, wait, _ in parts} == {first.timeout}
        else:
            assert not places[0] <= at % first.stop < places[1]
    else:
        assert found is None


def test_a_message_of_other_items_is_none_of_a_layout():
    """A layout is that of its items, not of longer or shorter ones, nor of nothing."""
    bodies = [
        inference_pb2.StreamPredictRequest(
            items=[inference_pb2.StreamItem(id=ident, request={"model": "m" * length}) for ident in (1, 2, 3)]
        ).SerializeToString()
        for length in (5, 6)
    ]
    first = alike.first_item(bodies[0])
    layout = alike.Layout(bodies[0], first, first.end - 5, first.end)
    assert layout.ids(bodies[0]) == [1, 2, 3]
    assert layout.ids(bodies[1]) is None
    assert layout.ids(bodies[0][:-1]) is None
    assert layout.ids(b"") is None
