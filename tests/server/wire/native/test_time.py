"""Deadlines, slow and silent callers, and those that go."""

import contextlib
import math
import os
import socket
import time

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import pytest

pytest.importorskip("forebay_native", reason="the native front end is not built")

from forebay_server.wire.port import CANCEL, CREDIT, RESPOND, SEND
from tests.server.wire.native.rig import BIDI, PATIENCE, SERVER, UNARY, frame, nothing, take, unary
from tests.waiting import eventually

pytestmark = pytest.mark.native


def test_deadline(start, raw):
    """A call that passes its deadline is answered natively and cancelled upward, once."""
    wire, address = start()
    client = raw(address)
    stream = client.call(headers=[("grpc-timeout", "100m")])
    client.send(stream, frame(b"x"), end=True)
    number = take(wire)[0][1]
    assert take(wire)[0] == (CANCEL, number, 0, None, math.inf, None, None)
    assert client.ended(stream)[1]["grpc-message"] == "deadline expired"
    wire.answer([(RESPOND, number, b"late")])
    nothing(wire)


def test_deadline_of_an_incomplete_message(start, raw):
    """A deadline that passes before the message is complete is answered; nothing comes up."""
    wire, address = start()
    client = raw(address)
    stream = client.call(headers=[("grpc-timeout", "80m")])
    client.send(stream, frame(b"xyz")[:-1])
    assert client.ended(stream)[1]["grpc-status"] == "4"
    nothing(wire)


@pytest.mark.parametrize("how", ["reset", "disconnect"])
@pytest.mark.parametrize("path", [UNARY, BIDI])
def test_caller_goes(start, raw, how, path):
    """A caller that resets or disconnects is one CANCEL, never a HALF_CLOSE."""
    wire, address = start()
    client = raw(address)
    stream = client.call(path)
    if path == UNARY:
        client.send(stream, frame(b"x"), end=True)
    number = take(wire)[0][1]
    if path == BIDI:
        wire.answer([(CREDIT, number, 5)])
    if how == "reset":
        client.h2.reset_stream(stream, 8)
        client.flush()
    else:
        client.close()
    assert take(wire)[0] == (CANCEL, number, 0 if path == UNARY else 2, None, math.inf, None, None)
    nothing(wire)
    eventually(lambda: wire.figures().calls == 0)


def test_no_cancel_after_an_answer(start, dial):
    """A call that was ended by an action is never cancelled."""
    wire, address = start()
    channel = dial(address)
    call = unary(channel, b"")
    wire.answer([(RESPOND, take(wire)[0][1], b"")])
    call.result()
    channel.close()
    nothing(wire)


@pytest.mark.parametrize("path", [UNARY, BIDI])
def test_slow_sender(start, raw, path):
    """A message that does not complete in time is refused."""
    wire, address = start(read_stall=0.2)
    client = raw(address)
    stream = client.call(path)
    if path == BIDI:
        number = take(wire)[0][1]
        wire.answer([(CREDIT, number, 5)])
        client.send(stream, frame(b"whole"))
        assert take(wire)[0][3] == b"whole"
        nothing(wire, 0.4)  # between messages a stream may rest
    client.send(stream, frame(b"xyz")[:-1])
    assert client.ended(stream)[1]["grpc-message"] == "slow sender"
    if path == BIDI:
        assert take(wire)[0][:3] == (CANCEL, number, 2)
    nothing(wire)


@pytest.mark.parametrize("path", [UNARY, SERVER])
def test_slow_reader(start, raw, path):
    """A response that nobody reads is cut off; a stream's service is told."""
    wire, address = start(write_stall=0.3)
    client = raw(address)
    stream = client.call(path)
    client.send(stream, frame(b"x"), end=True)
    number = take(wire)[0][1]
    wire.answer([(RESPOND if path == UNARY else SEND, number, b"y" * 500_000)])
    # The client never opens its window of 64 KiB.
    assert client.ended(stream)[0][-1] == "StreamReset"
    if path == SERVER:
        assert take(wire)[0][:3] == (CANCEL, number, 1)
    nothing(wire)
    eventually(lambda: wire.figures().calls == 0)


def test_handshake_timeout(start):
    """A connection that says nothing, or not all of the preface, is closed in time."""
    wire, address = start(handshake_timeout=0.2)
    host, _, number = address.rpartition(":")
    for words in (b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[:-1]):
        with socket.create_connection((host, int(number)), timeout=PATIENCE) as silent:
            silent.sendall(words)
            begin = time.monotonic()
            while silent.recv(1000):
                pass
            assert time.monotonic() - begin < 3
    eventually(lambda: wire.figures().connections == 0)


def test_garbage(start, dial):
    """Bytes that are not HTTP/2 close their connection and harm nobody."""
    wire, address = start()
    host, _, number = address.rpartition(":")
    for words in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", os.urandom(4000)):
        with socket.create_connection((host, int(number)), timeout=PATIENCE) as client:
            client.sendall(words)
            with contextlib.suppress(ConnectionResetError):
                while client.recv(1000):
                    pass
    call = unary(dial(address), b"")
    wire.answer([(RESPOND, take(wire)[0][1], b"fine")])
    assert call.result() == b"fine"


def test_connection_limit(start, raw):
    """Connections over the limit are closed at accept; when one goes another may come."""
    wire, address = start(max_connections=2)
    kept = [raw(address), raw(address)]
    for client in kept:
        client.until(lambda events: events)
    host, _, number = address.rpartition(":")
    with socket.create_connection((host, int(number)), timeout=PATIENCE) as third:
        assert third.recv(1) == b""
    kept[0].close()
    eventually(lambda: wire.figures().connections == 1)
    raw(address).until(lambda events: events)


def test_connection_age(start, raw):
    """An old connection is told to go away; its calls end, within the grace at the latest."""
    wire, address = start(max_connection_age=0.2, max_connection_age_grace=0.3)
    client = raw(address)
    stream = client.call()
    client.send(stream, frame(b""), end=True)
    number = take(wire)[0][1]
    with pytest.raises(h2.exceptions.ProtocolError, match="CLOSED"):
        client.until(lambda _: False)  # h2 calls a connection closed that has seen a GOAWAY
    assert take(wire)[0][:2] == (CANCEL, number)
    eventually(lambda: wire.figures().connections == 0)


def test_keepalive(start, raw):
    """A connection that answers no ping is closed; one that does stays."""
    wire, address = start(keepalive_time=0.2, keepalive_timeout=0.2)
    silent, lively = raw(address), raw(address)
    with pytest.raises(TimeoutError):
        lively.until(lambda _: False, 0.8)
    assert wire.figures().connections == 1
    silent.close()


def test_a_reader_that_never_reads(start, raw):
    """A caller with endless windows that reads nothing from its socket loses its calls and its connection."""
    wire, address = start(write_stall=0.3, keepalive_time=0.3, keepalive_timeout=0.3)
    client = raw(address)
    client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
    client.h2.increment_flow_control_window(2**31 - 1 - 65_535)
    stream = client.call(SERVER)
    client.send(stream, frame(b"x"), end=True)
    number = take(wire)[0][1]
    for _ in range(4):
        wire.answer([(SEND, number, b"y" * 16_000_000)])
    assert take(wire)[0][:2] == (CANCEL, number)
    eventually(lambda: wire.figures().calls == 0)
    eventually(lambda: wire.figures().connections == 0)


def test_rapid_reset(start, raw):
    """A flood of resets ends its connection; a burst does not."""
    wire, address = start()
    client = raw(address)

    def resets(count):
        for _ in range(count):
            stream = client.h2.get_next_available_stream_id()
            pseudo = [(":method", "POST"), (":scheme", "http"), (":path", UNARY), (":authority", "x")]
            client.h2.send_headers(stream, [*pseudo, ("content-type", "application/grpc")])
            client.h2.reset_stream(stream, 8)
        client.flush()

    resets(100)
    stream = client.call()
    client.send(stream, frame(b"x"), end=True)
    number = take(wire)[0][1]
    wire.answer([(RESPOND, number, b"")])
    assert client.ended(stream)[1]["grpc-status"] == "0"
    with contextlib.suppress(ConnectionError):
        for _ in range(5):
            resets(400)
    eventually(lambda: wire.figures().connections == 0)
