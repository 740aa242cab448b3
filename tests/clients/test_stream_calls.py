"""A stream over several calls: what is sent again, and for how long, without any call."""

import pytest
from google.rpc import error_details_pb2, status_pb2

from forebay.v1 import inference_pb2
from forebay_client import BadResponse, DeadlineExceeded, InternalError, Unavailable
from tests.clients.stream_cores import REQUEST, Clock, delivered, made, results, sent


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
