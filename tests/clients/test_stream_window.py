"""What a stream holds, and what its messages do, without any call."""

import numpy as np
import pytest
from google.rpc import status_pb2

from forebay.v1 import inference_pb2
from forebay_client import Unavailable
from forebay_client._core import RequestBuilder
from forebay_client._stream import BYTES_PER_MESSAGE
from forebay_client._stream_plan import StreamPlan
from tests.clients.stream_cores import REQUEST, delivered, made, results, sent


@pytest.fixture
def core():
    """One that does not connect again."""
    return made(outage=0)


def test_room_is_made_by_delivery_not_by_arrival(core):
    """Results that nobody takes must not let the source run ahead."""
    for _ in range(4):
        assert core.room
        core.take(REQUEST)
    assert not core.room
    core.next_message(1)
    core.receive(results(0, 1))
    assert not core.room
    core.deliver()
    assert core.room


def of(size):
    """A request with inputs of so many bytes."""
    return RequestBuilder("m").build({"x": np.zeros(size, np.uint8)})


def test_bytes_of_inputs_close_the_window_too():
    """Looked at before an item is taken, so that one at most goes beyond it; and opened by delivery, not by arrival."""
    core = made(outage=0, window=100, window_bytes=1000)
    for size in (400, 599):
        core.take(of(size))
        assert core.room
    core.take(of(500))
    assert not core.room
    assert sent(core, 1) == [0, 1, 2]
    core.receive(results(0, 1, 2))
    assert not core.room
    core.deliver()  # 1,099 are left
    assert not core.room
    core.deliver()
    assert core.room
    core.take(of(500))
    assert not core.room


def test_an_item_larger_than_the_window_is_taken():
    """A stream that could never go on would be no help."""
    core = made(outage=0, window_bytes=1)
    assert core.room
    core.take(of(1000))
    assert not core.room
    core.take(of(0))  # being read as the window closed
    sent(core, 1)
    core.receive(results(0))
    core.deliver()
    assert core.room


def test_items_that_fail_make_room_as_well():
    """Whatever an item came to, what it held is free when that is delivered."""
    core = made(outage=10, window_bytes=1000)
    core.take(of(1000))
    core.end(Unavailable("gone"))
    core.begin()
    assert not core.room
    assert sent(core, 2) == [0]
    error = inference_pb2.StreamResult(id=0, error=status_pb2.Status(code=3, message="no"))
    core.receive(inference_pb2.StreamPredictResponse(results=[error]))
    assert delivered(core) == [("InvalidRequest", 0)]
    assert core.room


@pytest.mark.parametrize(
    ("inputs", "size"),
    [
        ({}, 0),
        ({"x": np.zeros((3, 5), np.float32), "y": np.zeros((2, 0), np.int64)}, 60),
        ({"x": np.zeros((), np.float64)}, 8),
        ({"x": np.array([b"abc", "\u00fc"], object), "y": np.ones(2, bool)}, 4 + 3 + 4 + 2 + 2),
    ],
)
def test_the_bytes_of_an_item_are_those_of_its_tensors(inputs, size):
    """As they are sent: shapes tell it for all types but BYTES, whose elements have lengths of their own."""
    request = RequestBuilder("m").build(inputs)

    assert sum(len(tensor.data) for tensor in request.inputs) == size
    core = made(outage=0, window_bytes=size + 1)
    core.take(request)
    assert core.room
    core.take(of(1))
    assert not core.room


def test_without_options_a_stream_is_bounded_by_both():
    """256 items, 64 MiB of inputs, 32 items in a message."""
    core = StreamPlan("m").core(clock=lambda: 1000.0, chance=lambda: 0.0)
    core.begin()
    small = of(0)
    for _ in range(255):
        core.take(small)
    assert core.room
    core.take(small)
    assert not core.room
    assert [len(core.next_message(1).items) for _ in range(8)] == [32] * 8

    core = StreamPlan("m").core(clock=lambda: 1000.0, chance=lambda: 0.0)
    large = of(16 << 20)
    for _ in range(3):
        core.take(large)
    core.take(of((16 << 20) - 1))
    assert core.room
    core.take(of(1))
    assert not core.room


@pytest.mark.parametrize(
    ("sizes", "messages"),
    [
        ([BYTES_PER_MESSAGE // 2, BYTES_PER_MESSAGE // 2, 1, 3 * BYTES_PER_MESSAGE, 1], [[0, 1], [2], [3], [4]]),
        ([3 * BYTES_PER_MESSAGE, 0, 0], [[0], [1, 2]]),
        ([BYTES_PER_MESSAGE + 1], [[0]]),
        ([1, 1, 1], [[0, 1, 2]]),
        ([0, 0, 0, 0, 0], [[0, 1, 2, 3], [4]]),
    ],
)
def test_messages_hold_a_mebibyte_unless_an_item_alone_has_more(sizes, messages):
    """A message has a limit, and so many large items would be over it."""
    core = made(outage=10, window=100, window_bytes=1 << 30, items_per_message=4)
    for size in sizes:
        core.take(of(size))
    assert [[item.id for item in message.items] for message in iter(lambda: core.next_message(1), None)] == messages
    core.lost(1)
    core.end(Unavailable("gone"))
    core.begin()  # and so they are sent again
    assert [[item.id for item in message.items] for message in iter(lambda: core.next_message(2), None)] == messages


def test_messages_hold_what_waits_up_to_the_limit(core):
    """Options go with the first message alone."""
    for _ in range(3):
        core.take(REQUEST)
    first, second = core.next_message(1), core.next_message(1)

    assert [[item.id for item in message.items] for message in (first, second)] == [[0, 1], [2]]
    assert first.options.max_in_flight == 4
    assert not second.HasField("options")
    assert core.next_message(1) is None
