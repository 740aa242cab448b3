"""Calls of the lesser services are seen to end, whichever way they end, and once."""

import math

import pytest

from forebay_server.services.calls import CallOutbox
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


class Watched:
    """A service of one method under a clock that the test moves, and a watcher of its calls."""

    def __init__(self, on_call=lambda _event: None):
        self.now = 10.0
        self.sent = []
        self.told = []
        self.seen = []
        self.outbox = CallOutbox(self.sent, lambda: self.now)
        endpoint = Endpoint(
            method=Method(path=f"/{LIST}", kind=MethodKind.UNARY),
            on_call=on_call,
            on_message=self.seen.append,
            on_half_close=self.seen.append,
            on_cancel=self.seen.append,
        )
        service = Service(name="forebay.v1.ModelService", endpoints=[endpoint])
        (self.endpoint,) = self.outbox.watched(service, self).endpoints

    def begun(self, event, method):
        assert method.path == f"/{LIST}"
        self.told.append(event[1])

    def ended(self, call, method, code, seconds):
        self.told.append((call, method, code, seconds))

    def call(self, number, deadline=math.inf):
        self.endpoint.on_call((CALL, number, 0, b"", deadline, Peer(0, "unix:", None), None))


@pytest.fixture
def watched():
    return Watched()


@pytest.mark.parametrize(
    ("kind", "argument", "code"),
    [
        (RESPOND, b"answer", "OK"),
        (FINISH, None, "OK"),
        (FAIL, Failure(5, "there is no such model"), "NOT_FOUND"),
        (FAIL, Failure(14, "draining"), "UNAVAILABLE"),
    ],
)
def test_an_end_is_told_with_its_code_and_time(watched, kind, argument, code):
    """The action goes on as it was."""
    watched.call(1)
    watched.now = 10.25
    watched.outbox.append((kind, 1, argument))

    assert watched.told == [1, (1, LIST, code, 0.25)]
    assert watched.sent == [(kind, 1, argument)]


def test_what_is_sent_on_the_way_is_no_end(watched):
    """A stream ends with FINISH, however many messages it had."""
    watched.call(1)
    watched.outbox.append((SEND, 1, b"first"))
    watched.outbox.append((SEND, 1, b"second"))
    assert watched.told == [1]
    watched.now = 13.0
    watched.outbox.append((FINISH, 1, None))

    assert watched.told == [1, (1, LIST, "OK", 3.0)]
    assert len(watched.sent) == 3


@pytest.mark.parametrize(
    ("deadline", "code"), [(math.inf, "CANCELLED"), (10.6, "CANCELLED"), (10.5, "DEADLINE_EXCEEDED")]
)
def test_a_call_that_is_gone(watched, deadline, code):
    """By its caller, or by its deadline; the service hears of it, and an answer after all is no second end."""
    watched.call(1, deadline)
    cancel = (CANCEL, 1, 0, None, math.inf, None, None)
    watched.now = 10.5
    watched.endpoint.on_cancel(cancel)
    watched.outbox.append((RESPOND, 1, b"too late"))

    assert watched.told == [1, (1, LIST, code, 0.5)]
    assert watched.seen == [cancel]


def test_a_handler_that_fails_is_internal():
    """The dispatcher gets the exception and answers; its answer is no second end."""

    def fail(_event):
        raise ZeroDivisionError

    watched = Watched(fail)
    with pytest.raises(ZeroDivisionError):
        watched.call(1)
    watched.outbox.append((FAIL, 1, Failure(13, "internal error")))

    assert watched.told == [1, (1, LIST, "INTERNAL", 0.0)]


def test_calls_do_not_mix(watched):
    """Each has a beginning of its own, and calls of others pass through without being seen."""
    watched.call(1)
    watched.now = 11.0
    watched.call(2)
    watched.now = 12.0
    watched.outbox.append((RESPOND, 2, b""))
    watched.outbox.append((RESPOND, 3, b"inference, say"))
    watched.outbox.append((FAIL, 1, Failure(7, "no")))

    assert watched.told == [1, 2, (2, LIST, "OK", 1.0), (1, LIST, "PERMISSION_DENIED", 2.0)]
    assert len(watched.sent) == 3


def test_other_events_are_the_services_own(watched):
    """Messages and the end of a stream reach it unchanged."""
    events = [(MESSAGE, 1, 0, b"m", math.inf, None, None), (HALF_CLOSE, 1, 0, None, math.inf, None, None)]
    watched.endpoint.on_message(events[0])
    watched.endpoint.on_half_close(events[1])

    assert watched.seen == events
    assert watched.told == []


def test_an_answer_in_the_handler_itself():
    """Most of these services answer at once; the watcher has been told of the beginning by then."""
    watched = Watched(lambda event: watched.outbox.append((RESPOND, event[1], b"")))
    watched.call(7)

    assert watched.told == [7, (7, LIST, "OK", 0.0)]
    assert watched.sent == [(RESPOND, 7, b"")]


def test_every_watcher_is_told(watched):
    """In the order in which they were given; a service that nobody watches is as it was."""
    other = Watched()
    method = Method(path=f"/{LIST}", kind=MethodKind.UNARY)
    service = Service(name="s", endpoints=[Endpoint(method=method)])
    (endpoint,) = watched.outbox.watched(service, watched, other).endpoints
    endpoint.on_call((CALL, 5, 0, b"", math.inf, None, None))
    watched.outbox.append((RESPOND, 5, b""))

    assert watched.told == other.told == [5, (5, LIST, "OK", 0.0)]
