"""Calls of the lesser services are counted when they end, whichever way they end, and once."""

import math

import pytest

from forebay_server.services.counting import CountingOutbox
from forebay_server.services.service import Endpoint, Service
from forebay_server.wire.port import (
    CALL,
    CANCEL,
    FAIL,
    FINISH,
    HALF_CLOSE,
    MESSAGE,
    RESPOND,
    SEND,
    Failure,
    Method,
    MethodKind,
    Peer,
)

LIST = "forebay.v1.ModelService/ListModels"


class Counted:
    """A service of one method under a clock that the test moves."""

    def __init__(self, on_call=lambda _event: None):
        self.now = 10.0
        self.sent = []
        self.ended = []
        self.seen = []
        self.outbox = CountingOutbox(self.sent, lambda *end: self.ended.append(end), lambda: self.now)
        endpoint = Endpoint(
            method=Method(path=f"/{LIST}", kind=MethodKind.UNARY),
            on_call=on_call,
            on_message=self.seen.append,
            on_half_close=self.seen.append,
            on_cancel=self.seen.append,
        )
        (self.endpoint,) = self.outbox.counted(Service(name="forebay.v1.ModelService", endpoints=[endpoint])).endpoints

    def call(self, number):
        self.endpoint.on_call((CALL, number, 0, b"", math.inf, Peer(0, "unix:", None), None))


@pytest.fixture
def counted():
    return Counted()


@pytest.mark.parametrize(
    ("kind", "argument", "code"),
    [
        (RESPOND, b"answer", "OK"),
        (FINISH, None, "OK"),
        (FAIL, Failure(5, "there is no such model"), "NOT_FOUND"),
        (FAIL, Failure(14, "draining"), "UNAVAILABLE"),
        (FAIL, None, "CANCELLED"),
    ],
)
def test_an_end_is_told_with_its_code_and_time(counted, kind, argument, code):
    """The action goes on as it was."""
    counted.call(1)
    counted.now = 10.25
    counted.outbox.append((kind, 1, argument))

    assert counted.ended == [(LIST, code, 0.25)]
    assert counted.sent == [(kind, 1, argument)]


def test_what_is_sent_on_the_way_is_no_end(counted):
    """A stream ends with FINISH, however many messages it had."""
    counted.call(1)
    counted.outbox.append((SEND, 1, b"first"))
    counted.outbox.append((SEND, 1, b"second"))
    assert counted.ended == []
    counted.now = 13.0
    counted.outbox.append((FINISH, 1, None))

    assert counted.ended == [(LIST, "OK", 3.0)]
    assert len(counted.sent) == 3


def test_a_caller_who_gives_up(counted):
    """It is told, the service hears of it, and an answer that comes after all does not count again."""
    counted.call(1)
    cancel = (CANCEL, 1, 0, None, math.inf, None, None)
    counted.now = 10.5
    counted.endpoint.on_cancel(cancel)
    counted.outbox.append((RESPOND, 1, b"too late"))

    assert counted.ended == [(LIST, "CANCELLED", 0.5)]
    assert counted.seen == [cancel]


def test_a_handler_that_fails_is_internal():
    """The dispatcher gets the exception and answers; its answer does not count again."""

    def fail(_event):
        raise ZeroDivisionError

    counted = Counted(fail)
    with pytest.raises(ZeroDivisionError):
        counted.call(1)
    counted.outbox.append((FAIL, 1, Failure(13, "internal error")))

    assert counted.ended == [(LIST, "INTERNAL", 0.0)]


def test_calls_do_not_mix(counted):
    """Each has a beginning of its own, and calls of others pass through without being counted."""
    counted.call(1)
    counted.now = 11.0
    counted.call(2)
    counted.now = 12.0
    counted.outbox.append((RESPOND, 2, b""))
    counted.outbox.append((RESPOND, 3, b"inference, say"))
    counted.outbox.append((FAIL, 1, Failure(7, "no")))

    assert counted.ended == [(LIST, "OK", 1.0), (LIST, "PERMISSION_DENIED", 2.0)]
    assert len(counted.sent) == 3


def test_other_events_are_the_services_own(counted):
    """Messages and the end of a stream reach it unchanged."""
    events = [(MESSAGE, 1, 0, b"m", math.inf, None, None), (HALF_CLOSE, 1, 0, None, math.inf, None, None)]
    counted.endpoint.on_message(events[0])
    counted.endpoint.on_half_close(events[1])

    assert counted.seen == events
    assert counted.ended == []


def test_an_answer_in_the_handler_itself():
    """Most of these services answer at once."""
    counted = Counted(lambda event: counted.outbox.append((RESPOND, event[1], b"")))
    counted.call(7)

    assert counted.ended == [(LIST, "OK", 0.0)]
    assert counted.sent == [(RESPOND, 7, b"")]
