"""Nothing is read, and nothing kept to be sent, beyond what was allowed."""

import math

import pytest

pytest.importorskip("forebay_native", reason="the native front end is not built")

from forebay_server.wire.port import CREDIT, FINISH, HALF_CLOSE, SEND, WRITABLE
from tests.server.wire.native.rig import PATIENCE, SERVER, bidi, nothing, take
from tests.waiting import eventually

pytestmark = pytest.mark.native


def test_credit_pushes_back(start, dial):
    """Without credit a stream's messages stay with the caller, but for its window."""
    wire, address = start(stream_window_bytes=65_536)
    sent = []

    def messages():
        for index in range(100):
            sent.append(index)
            yield bytes([index]) * 20_000

    _, results = bidi(dial(address), messages())
    number = take(wire)[0][1]
    nothing(wire, 0.4)
    assert len(sent) < 20
    assert wire.figures().held_bytes <= 65_536
    for index in range(100):
        wire.answer([(CREDIT, number, 1)])
        assert take(wire)[0][3] == bytes([index]) * 20_000
    assert take(wire)[0][0] == HALF_CLOSE
    wire.answer([(FINISH, number, None)])
    assert results.result(PATIENCE) == []


def test_full_outbox(start, dial):
    """`answer` reports a full outbox; WRITABLE comes when it has drained below half."""
    wire, address = start(outbox_bytes=1 << 20)
    call = dial(address).unary_stream(SERVER)(b"", timeout=PATIENCE)
    number = take(wire)[0][1]
    assert wire.answer([(SEND, number, b"x" * 500_000)]) == []
    assert wire.answer([(SEND, number, b"x" * 16_000_000)]) == [number]
    got = [len(next(call)), len(next(call))]
    assert take(wire)[0] == (WRITABLE, number, 1, None, math.inf, None, None)
    assert got == [500_000, 16_000_000]
    wire.answer([(FINISH, number, None)])
    assert list(call) == []


def test_many_small_messages(start, dial):
    """Thousands of small messages on a stream keep their order and borders."""
    wire, address = start()
    count = 3000
    _, results = bidi(dial(address), [str(index).encode() for index in range(count)])
    number = take(wire)[0][1]
    wire.answer([(CREDIT, number, count)])
    events = take(wire, count + 1)
    wire.answer([(SEND, number, event[3]) for event in events[:-1]])
    wire.answer([(FINISH, number, None)])
    assert results.result(PATIENCE) == [str(index).encode() for index in range(count)]
    eventually(lambda: wire.figures().held_bytes == 0)
