"""What comes up of a call and what goes down, in short: `tests/wire` has it at length, for both front ends."""

import math
import os
import threading
import time

import grpc
import pytest

pytest.importorskip("forebay_native", reason="the native front end is not built")

from forebay_server.wire import port
from forebay_server.wire.port import CALL, CREDIT, FAIL, FINISH, HALF_CLOSE, MESSAGE, OPEN, RESPOND, SEND, Failure
from tests.server.wire.native.rig import PATIENCE, SERVER, bidi, failure, frame, nothing, take, unary
from tests.waiting import eventually

pytestmark = pytest.mark.native


def test_unary_call(start, dial):
    """A unary call comes up whole, with deadline, peer and metadata, and is answered."""
    wire, address = start()
    before = time.monotonic()
    call = unary(dial(address), b"question", timeout=5, metadata=(("tenant", "a"), ("trace-bin", b"\x00\xff")))
    kind, number, method, body, deadline, peer, metadata = take(wire)[0]
    assert (kind, method, body) == (CALL, 0, b"question")
    assert number > 0
    assert before + 4.5 < deadline < time.monotonic() + 5.1  # grpcio rounds up
    assert isinstance(peer, port.Peer)
    assert peer.exposure == 0
    assert peer.address.startswith("127.0.0.1:")
    assert peer.identity is None
    assert metadata == [("tenant", "a"), ("trace-bin", b"\x00\xff")]
    assert wire.answer([(RESPOND, number, b"answer")]) == []
    assert call.result() == b"answer"
    eventually(lambda: wire.figures().calls == 0)
    figures = wire.figures()
    assert (figures.calls_total, figures.connections, figures.held_bytes) == (1, 1, 0)
    assert figures.received_bytes_total == len(frame(b"question"))
    assert figures.sent_bytes_total == len(frame(b"answer"))
    assert figures.refused_total == 0


def test_without_deadline_and_metadata(start, raw):
    """A call without grpc-timeout has an endless deadline; gRPC's own keys are not the caller's metadata."""
    wire, address = start()
    client = raw(address)
    stream = client.call(headers=[("user-agent", "x"), ("grpc-accept-encoding", "gzip"), ("grpc-encoding", "identity")])
    client.send(stream, frame(b""), end=True)
    event = take(wire)[0]
    assert event[3] == b""
    assert event[4] == math.inf
    assert event[6] is None


@pytest.mark.parametrize("size", [0, 1, 20_000, 300_000, 5_000_000])
def test_sizes_both_ways(start, dial, size):
    """Messages of all sizes arrive as they were sent, in both directions."""
    wire, address = start()
    message = os.urandom(size)
    call = unary(dial(address), message)
    event = take(wire)[0]
    assert event[3] == message
    wire.answer([(RESPOND, event[1], event[3])])
    assert call.result() == message


def test_one_peer_per_connection(start, dial):
    """The calls of a connection share one Peer object."""
    wire, address = start()
    channel = dial(address)
    calls = [unary(channel, b"x") for _ in range(3)]
    events = take(wire, 3)
    assert events[0][5] is events[1][5] is events[2][5]
    wire.answer([(RESPOND, event[1], b"") for event in events])
    assert [call.result() for call in calls] == [b"", b"", b""]


def test_server_stream(start, dial):
    """A server-streaming call comes as CALL, and is answered by messages and an end."""
    wire, address = start()
    call = dial(address).unary_stream(SERVER)(b"go", timeout=PATIENCE)
    kind, number, method, body, *_ = take(wire)[0]
    assert (kind, method, body) == (CALL, 1, b"go")
    wire.answer([(SEND, number, b"1"), (SEND, number, b"2" * 40_000)])
    wire.answer([(SEND, number, b"3"), (FINISH, number, None)])
    assert list(call) == [b"1", b"2" * 40_000, b"3"]


def test_bidi_stream(start, dial):
    """A stream: OPEN, messages against credit, HALF_CLOSE without credit, results, end."""
    wire, address = start()
    _, results = bidi(dial(address), [b"a", b"b", b"c"])
    opened = take(wire)[0]
    assert opened[0] == OPEN
    assert opened[3] is None
    nothing(wire)
    wire.answer([(CREDIT, opened[1], 2)])
    assert [(event[0], event[3]) for event in take(wire, 2)] == [(MESSAGE, b"a"), (MESSAGE, b"b")]
    nothing(wire)
    wire.answer([(CREDIT, opened[1], 1)])
    assert [(event[0], event[3]) for event in take(wire, 2)] == [(MESSAGE, b"c"), (HALF_CLOSE, None)]
    wire.answer([(SEND, opened[1], b"x"), (FINISH, opened[1], None)])
    assert results.result(PATIENCE) == [b"x"]


def test_failure_with_details(start, dial):
    """A Failure arrives with its code, unescaped message, details and further trailers."""
    wire, address = start()
    call = unary(dial(address), b"x")
    text = "50 % of the \u00e4 \u2014 \n"
    wire.answer([(FAIL, take(wire)[0][1], Failure(8, text, b"\x08\x08\xff", (("grpc-retry-pushback-ms", "17"),)))])
    error = failure(call)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == text
    trailers = dict(error.trailing_metadata())
    assert trailers["grpc-status-details-bin"] == b"\x08\x08\xff"
    assert trailers["grpc-retry-pushback-ms"] == "17"


def test_an_action_on_a_dead_call_is_dropped(start, dial):
    """Ids are never used twice, so a late answer meets nobody."""
    wire, address = start()
    channel = dial(address)
    first = unary(channel, b"1")
    number = take(wire)[0][1]
    wire.answer([(RESPOND, number, b"1")])
    assert first.result() == b"1"
    second = unary(channel, b"2")
    other = take(wire)[0][1]
    assert other != number
    wire.answer([(RESPOND, number, b"wrong"), (FAIL, number, Failure(13, "wrong")), (RESPOND, 12345, b"wrong")])
    wire.answer([(RESPOND, other, b"2")])
    assert second.result() == b"2"


@pytest.mark.parametrize(
    ("action", "error"),
    [
        ((9, 1, None), ValueError),
        ((SEND, 1, "text"), TypeError),
        ((FAIL, 1, Failure(3, "x", None, (("not a key", "y"),))), ValueError),
        ("no tuple", TypeError),
    ],
)
def test_malformed_actions(start, dial, action, error):
    """A malformed action is an exception, and none of its batch is carried out."""
    wire, address = start()
    call = unary(dial(address), b"x")
    number = take(wire)[0][1]
    with pytest.raises(error):
        wire.answer([(RESPOND, number, b"early"), action])
    wire.answer([(RESPOND, number, b"late")])
    assert call.result() == b"late"


def test_wake_ends_take(start):
    """`wake` ends a waiting take early, from any thread, and a take that comes later."""
    wire, _ = start()
    threading.Timer(0.05, wire.wake).start()
    before = time.monotonic()
    assert wire.take(1, PATIENCE) == []
    wire.wake()
    assert wire.take(1, PATIENCE) == []
    assert time.monotonic() - before < PATIENCE / 2
