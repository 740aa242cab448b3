"""The decisions of a stream, without any call."""

import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from forebay.v1 import inference_pb2
from forebay_client import BadResponse, DeadlineExceeded, Draining, InternalError, Unavailable
from forebay_client._core import RequestBuilder
from forebay_client._stream import BYTES_PER_MESSAGE, StreamCore
from forebay_client._stream_plan import StreamPlan

REQUEST = RequestBuilder("m").build({"x": np.zeros(1, np.float32)})


class Clock:
    """Moved by the tests alone."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def made(outage, clock=lambda: 1000.0, until=2000.0, window=4, window_bytes=1 << 20, items_per_message=2):
    """A stream whose first call has begun."""
    core = StreamCore(
        window=window,
        window_bytes=window_bytes,
        items_per_message=items_per_message,
        ordered=True,
        deadline=1.0,
        until=until,
        outage=outage,
        clock=clock,
        chance=lambda: 0.0,
    )
    core.begin()
    return core


@pytest.fixture
def core():
    """One that does not connect again."""
    return made(outage=0)


def results(*ids):
    return inference_pb2.StreamPredictResponse(
        results=[inference_pb2.StreamResult(id=index, response=inference_pb2.PredictResponse()) for index in ids]
    )


def delivered(core):
    found = []
    while (outcome := core.deliver()) is not None:
        found.append((type(outcome).__name__, outcome.index))
    return found


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


def test_the_end_with_ok_after_all_is_answered_is_quiet(core):
    """Nothing more is delivered or raised."""
    core.take(REQUEST)
    core.exhaust()
    core.next_message(1)
    core.receive(results(0))
    core.end()

    assert delivered(core) == [("Prediction", 0)]
    assert core.final_error() is None


def test_an_error_after_all_is_answered_is_quiet(core):
    """The caller has everything, so a connection that breaks afterwards is not his business."""
    core.take(REQUEST)
    core.exhaust()
    core.next_message(1)
    core.receive(results(0))
    core.end(Unavailable("gone"))

    assert delivered(core) == [("Prediction", 0)]
    assert core.final_error() is None


def test_a_drain_leaves_what_was_sent_to_the_server_and_takes_no_more(core):
    """Items never sent fail with Draining at the end, after the others; the rest begins at `taken`."""
    for _ in range(3):
        core.take(REQUEST)
    core.next_message(1)
    notice = results(0)
    notice.drain.SetInParent()
    core.receive(notice)
    assert core.closed
    assert core.next_message(1) is None
    core.take(REQUEST)  # the source was being read when the notice came
    core.receive(results(1))
    core.end()

    assert delivered(core) == [("Prediction", 0), ("Prediction", 1), ("Draining", 2)]
    error = core.final_error()
    assert isinstance(error, Draining)
    assert (error.taken, error.index) == (3, None)
    assert core.final_error() is None


def test_a_drain_after_the_last_item_raises_nothing(core):
    """There is no rest to be sent elsewhere."""
    core.take(REQUEST)
    core.next_message(1)
    core.exhaust()
    notice = results(0)
    notice.drain.SetInParent()
    core.receive(notice)
    core.end()

    assert delivered(core) == [("Prediction", 0)]
    assert core.final_error() is None


def test_each_item_has_an_exception_of_its_own(core):
    """The same object raised twice would mix up tracebacks."""
    core.take(REQUEST)
    core.take(REQUEST)
    core.end(Unavailable("gone", reason="ENGINE_UNAVAILABLE"))
    first, second = core.deliver(), core.deliver()

    assert first is not second
    assert (first.reason, first.index, second.index) == ("ENGINE_UNAVAILABLE", 0, 1)


def test_a_result_is_accepted_once(core):
    """A second one for the same item is a fault of the server."""
    core.take(REQUEST)
    core.next_message(1)
    core.receive(results(0))
    with pytest.raises(BadResponse, match="item 0, which is not in flight"):
        core.receive(results(0))


def test_what_was_not_sent_yet_has_no_result(core):
    """A server that answers it can't be trusted with the rest, and the item has its one outcome."""
    for _ in range(3):
        core.take(REQUEST)
    core.next_message(1)  # of two items
    with pytest.raises(BadResponse, match="item 2, which is not in flight") as caught:
        core.receive(results(0, 2))
    core.end(caught.value)

    assert delivered(core) == [("Prediction", 0), ("BadResponse", 1), ("BadResponse", 2)]


def test_a_result_without_outcome_is_an_error_of_its_item(core):
    """The contract wants one of two."""
    core.take(REQUEST)
    core.next_message(1)
    core.receive(inference_pb2.StreamPredictResponse(results=[inference_pb2.StreamResult(id=0)]))

    assert delivered(core) == [("BadResponse", 0)]


def test_an_items_error_keeps_its_unknown_code(core):
    """A code that gRPC does not have is UNKNOWN, and no crash."""
    core.take(REQUEST)
    core.next_message(1)
    error = status_pb2.Status(code=99, message="what")
    core.receive(inference_pb2.StreamPredictResponse(results=[inference_pb2.StreamResult(id=0, error=error)]))

    outcome = core.deliver()
    assert type(outcome) is InternalError
    assert str(outcome) == "item 0: UNKNOWN: what"


def test_the_sources_exception_wins_over_the_streams(core):
    """It is the cause that the caller can mend."""
    core.take(REQUEST)
    failure = LookupError("x")
    core.fail_source(failure)
    core.end(Unavailable("gone"))

    assert delivered(core) == [("Unavailable", 0)]
    assert core.final_error() is failure


def sent(core, call):
    """The items of everything that waits to be sent on a call."""
    found = []
    while (message := core.next_message(call)) is not None:
        found.extend(item.id for item in message.items)
    return found


def refusal(index):
    """A result of a server that drains."""
    error = status_pb2.Status(code=14, message="draining")
    info = error_details_pb2.ErrorInfo(reason="DRAINING", domain="forebay")
    error.details.add().Pack(info)
    return inference_pb2.StreamResult(id=index, error=error)


def test_only_what_has_no_answer_is_sent_again():
    """On the next call, in order, with the options of the stream; the number of the call tells its sender apart."""
    core = made(outage=10)
    for _ in range(4):
        core.take(REQUEST)
    assert sent(core, 1) == [0, 1, 2, 3]
    core.receive(results(0, 1))
    core.lost(1)
    assert core.sent(1)
    assert core.end(Unavailable("gone")) == 0.05
    assert not core.ended
    assert core.begin() == (2, 1000.0)
    assert core.next_message(1) is None
    message = core.next_message(2)
    assert ([item.id for item in message.items], message.options.max_in_flight) == ([2, 3], 4)
    core.receive(results(2, 3))
    core.exhaust()
    assert core.end() is None

    assert delivered(core) == [("Prediction", index) for index in range(4)]
    assert core.final_error() is None


def test_what_is_taken_between_two_calls_goes_with_the_next():
    """The source is read while nobody is connected, as far as the window goes."""
    core = made(outage=10)
    core.end(Unavailable("gone"))
    core.take(REQUEST)
    assert core.next_message(1) is None
    core.begin()

    assert sent(core, 2) == [0]


def test_what_a_draining_server_did_not_take_goes_with_the_next_call():
    """Its refusal is no outcome; what it took, it answers."""
    core = made(outage=10)
    for _ in range(3):
        core.take(REQUEST)
    assert sent(core, 1) == [0, 1, 2]
    notice = results(0)
    notice.drain.SetInParent()
    core.receive(notice)
    core.take(REQUEST)
    assert core.sent(1)
    assert sent(core, 1) == []
    core.receive(inference_pb2.StreamPredictResponse(results=[refusal(1), refusal(2)]))
    assert core.end() == 0.05
    core.begin()

    assert sent(core, 2) == [1, 2, 3]
    assert delivered(core) == [("Prediction", 0)]


@pytest.mark.parametrize("answers", [False, True])
def test_an_outage_is_borne_for_its_time_at_a_stretch(answers):
    """An answer in between begins the time anew; then what was taken fails, and says where the rest begins."""
    clock = Clock()
    core = made(outage=1.0, clock=clock)
    core.take(REQUEST)
    pauses = []
    for call in range(1, 100):
        if answers and call == 4:
            assert sent(core, call) == [0]
            core.receive(results(0))
            core.deliver()
            core.take(REQUEST)
        pause = core.end(Unavailable("gone"))
        if pause is None:
            break
        pauses.append(pause)
        clock.now += pause
        core.begin()

    expected = [0.05, 0.1, 0.2, 0.05, 0.1, 0.2, 0.4] if answers else [0.05, 0.1, 0.2, 0.4]
    assert pauses == pytest.approx(expected)
    assert delivered(core) == [("Unavailable", 1 if answers else 0)]
    assert core.final_error().taken == (2 if answers else 1)


def test_nobody_owes_an_answer_to_an_idle_stream():
    """Calls that are lost while no item waits are no outage, however long that lasts; with an item it begins."""
    clock = Clock()
    core = made(outage=1.0, clock=clock, until=1e9)
    for _ in range(3):
        clock.now += 60
        assert core.end(Unavailable("gone")) is not None
        core.begin()
    core.take(REQUEST)
    pauses = 0
    while (pause := core.end(Unavailable("gone"))) is not None:
        clock.now += pause
        pauses += 1
        core.begin()
    assert pauses > 0
    assert delivered(core) == [("Unavailable", 0)]


def test_the_streams_deadline_bounds_all_calls():
    """The timeout of each call is what is left, and no pause goes beyond it."""
    clock = Clock()
    core = made(outage=10, clock=clock, until=1001.0)
    core.take(REQUEST)
    clock.now = 1000.75
    assert core.end(Unavailable("gone")) == 0.05
    assert core.begin() == (2, 0.25)
    clock.now = 1000.95
    assert core.end(Unavailable("gone")) is None
    assert delivered(core) == [("Unavailable", 0)]


@pytest.mark.parametrize("error", [InternalError("x"), BadResponse("x"), DeadlineExceeded("x")])
def test_only_an_absent_server_is_called_again(error):
    """Whatever else ends a stream would end the next one, too."""
    core = made(outage=10)
    core.take(REQUEST)

    assert core.end(error) is None
    assert core.ended


def test_there_is_no_call_for_nothing():
    """A server that goes away after the last answer is not missed."""
    core = made(outage=10)
    core.take(REQUEST)
    sent(core, 1)
    core.receive(results(0))
    core.exhaust()

    assert core.end(Unavailable("gone")) is None
    assert core.final_error() is None
