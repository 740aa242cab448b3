"""How a stream and its items end, without any call."""

import pytest
from google.rpc import status_pb2

from forebay.v1 import inference_pb2
from forebay_client import BadResponse, Draining, InternalError, Unavailable
from tests.clients.stream_cores import REQUEST, delivered, made, results


@pytest.fixture
def core():
    """One that does not connect again."""
    return made(outage=0)


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
