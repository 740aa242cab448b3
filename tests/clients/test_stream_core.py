"""The decisions of a stream, without any call."""

import numpy as np
import pytest
from google.rpc import status_pb2

from forebay.v1 import inference_pb2
from forebay_client import BadResponse, Draining, InternalError, Unavailable
from forebay_client._core import RequestBuilder
from forebay_client._stream import StreamCore

REQUEST = RequestBuilder("m").build({"x": np.zeros(1, np.float32)})


@pytest.fixture
def core():
    return StreamCore(window=4, items_per_message=2, ordered=True, deadline=1.0)


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
    core.next_message()
    core.receive(results(0, 1))
    assert not core.room
    core.deliver()
    assert core.room


def test_messages_hold_what_waits_up_to_the_limit(core):
    """Options go with the first message alone."""
    for _ in range(3):
        core.take(REQUEST)
    first, second = core.next_message(), core.next_message()

    assert [[item.id for item in message.items] for message in (first, second)] == [[0, 1], [2]]
    assert first.options.max_in_flight == 4
    assert not second.HasField("options")
    assert core.next_message() is None


def test_the_end_with_ok_after_all_is_answered_is_quiet(core):
    """Nothing more is delivered or raised."""
    core.take(REQUEST)
    core.exhaust()
    core.next_message()
    core.receive(results(0))
    core.end()

    assert delivered(core) == [("Prediction", 0)]
    assert core.final_error() is None


def test_an_error_after_all_is_answered_is_quiet(core):
    """The caller has everything, so a connection that breaks afterwards is not his business."""
    core.take(REQUEST)
    core.exhaust()
    core.next_message()
    core.receive(results(0))
    core.end(Unavailable("gone"))

    assert delivered(core) == [("Prediction", 0)]
    assert core.final_error() is None


def test_a_drain_leaves_what_was_sent_to_the_server_and_takes_no_more(core):
    """Items never sent fail with Draining at the end, after the others; the rest begins at `taken`."""
    for _ in range(3):
        core.take(REQUEST)
    core.next_message()
    notice = results(0)
    notice.drain.SetInParent()
    core.receive(notice)
    assert core.closed
    assert core.next_message() is None
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
    core.next_message()
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
    core.next_message()
    core.receive(results(0))
    with pytest.raises(BadResponse, match="item 0, which is not in flight"):
        core.receive(results(0))


def test_a_result_without_outcome_is_an_error_of_its_item(core):
    """The contract wants one of two."""
    core.take(REQUEST)
    core.next_message()
    core.receive(inference_pb2.StreamPredictResponse(results=[inference_pb2.StreamResult(id=0)]))

    assert delivered(core) == [("BadResponse", 0)]


def test_an_items_error_keeps_its_unknown_code(core):
    """A code that gRPC does not have is UNKNOWN, and no crash."""
    core.take(REQUEST)
    core.next_message()
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
