"""The native front end: what only it can do, and a sanity check of what both adapters do.

Most tests are the dispatcher themselves: a client's call runs in the background, the test takes its event and answers.
Raw HTTP/2 clients say what no decent client would.
"""

import contextlib
import datetime as dt
import gzip
import ipaddress
import math
import os
import pathlib
import socket
import ssl
import stat
import struct
import subprocess
import sys
import textwrap
import threading
import time
from concurrent import futures

import grpc
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

pytest.importorskip("forebay_native", reason="the native front end is not built")

from forebay_server.errors import ConfigError
from forebay_server.wire import port
from forebay_server.wire.native import NativeWire
from forebay_server.wire.port import (
    CALL,
    CANCEL,
    CREDIT,
    FAIL,
    FINISH,
    HALF_CLOSE,
    MESSAGE,
    OPEN,
    RESPOND,
    SEND,
    WRITABLE,
    Exposure,
    Failure,
    Limits,
    Method,
    MethodKind,
    Refusals,
    Tls,
    WireConfig,
)

pytestmark = pytest.mark.native

UNARY, SERVER, BIDI = "/test.T/Unary", "/test.T/Server", "/test.T/Bidi"
METHODS = (
    Method(path=UNARY, kind=MethodKind.UNARY),
    Method(path=SERVER, kind=MethodKind.SERVER_STREAM),
    Method(path=BIDI, kind=MethodKind.BIDI_STREAM),
)
REFUSALS = Refusals(
    message_too_large=Failure(8, "message too large", b"\x08\x08"),
    response_too_large=Failure(8, "response too large"),
    bytes_held=Failure(8, "bytes held", None, (("grpc-retry-pushback-ms", "100"),)),
    deadline_expired=Failure(4, "deadline expired"),
    slow_reader=Failure(8, "slow reader"),
    slow_sender=Failure(4, "slow sender"),
    draining=Failure(14, "draining"),
    compressed=Failure(12, "compressed"),
)
PATIENCE = 10.0  # seconds that a test waits for what has to come


def exposure(address="127.0.0.1:0", **options):
    return Exposure(**{"name": "public", "address": address, "methods": frozenset(m.path for m in METHODS), **options})


@pytest.fixture
def start():
    """Starts servers, and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def run(*exposures, **limits):
            config = WireConfig(
                methods=METHODS, exposures=exposures or (exposure(),), refusals=REFUSALS, limits=Limits(**limits)
            )
            wire = NativeWire(config)
            addresses = wire.start()
            stack.callback(wire.close, 0.0)
            return (wire, *addresses)

        yield run


@pytest.fixture
def dial():
    """Opens grpcio channels, and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def run(address, credentials=None, **options):
            made = {"grpc.enable_retries": 0, "grpc.max_receive_message_length": -1, **options}
            pairs = tuple(made.items())
            if credentials is None:
                channel = grpc.insecure_channel(address, options=pairs)
            else:
                channel = grpc.secure_channel(address, credentials, options=pairs)
            return stack.enter_context(channel)

        yield run


class Raw:
    """An HTTP/2 client without manners. All that came is in `events`."""

    def __init__(self, address):
        host, _, number = address.rpartition(":")
        self.socket = socket.create_connection((host, int(number)), timeout=PATIENCE)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.flush()
        self.events = []

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def call(self, path=UNARY, *, method="POST", content_type="application/grpc", end=False, headers=()):
        stream = self.h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "x")]
        own = [("content-type", content_type), ("te", "trailers"), *headers]
        self.h2.send_headers(stream, pseudo + own, end_stream=end)
        self.flush()
        return stream

    def send(self, stream, data, *, end=False):
        for begin in range(0, max(len(data), 1), 16_384):
            part = data[begin : begin + 16_384]
            self.h2.send_data(stream, part, end_stream=end and begin + len(part) == len(data))
        self.flush()

    def until(self, done, seconds=PATIENCE):
        """Reads until `done(events)`, and returns the events."""
        end = time.monotonic() + seconds
        while not done(self.events):
            self.socket.settimeout(max(0.01, end - time.monotonic()))
            data = self.socket.recv(65_536)
            assert data, "the server closed the connection"
            self.events += self.h2.receive_data(data)
            self.flush()
        return self.events

    def ended(self, stream):
        """Waits for the end of a stream. Returns its frames by name, and its last headers."""

        def of(events):
            return [event for event in events if getattr(event, "stream_id", None) == stream]

        last = (h2.events.StreamEnded, h2.events.StreamReset)
        found = of(self.until(lambda events: any(isinstance(event, last) for event in of(events))))
        frames = [type(event).__name__ for event in found]
        headers = {}
        for event in found:
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                headers |= dict(event.headers)
        return frames, headers

    def close(self):
        self.socket.close()


@pytest.fixture
def raw():
    """Opens raw clients, and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def run(address):
            client = Raw(address)
            stack.callback(client.close)
            return client

        yield run


def frame(message, flag=0):
    return struct.pack(">BI", flag, len(message)) + message


def take(wire, count=1, seconds=PATIENCE):
    """Takes exactly `count` events."""
    events = []
    end = time.monotonic() + seconds
    while len(events) < count:
        left = end - time.monotonic()
        assert left > 0, f"only {events} came"
        events += wire.take(count - len(events), left)
    return events


def nothing(wire, seconds=0.15):
    """Asserts that no event comes."""
    assert wire.take(10, seconds) == []


def unary(channel, message=b"", path=UNARY, timeout=PATIENCE, **options):
    """A call in the background."""
    return channel.unary_unary(path).future(message, timeout=timeout, **options)


def failure(call):
    """The error of a call in the background."""
    with pytest.raises(grpc.RpcError) as caught:
        call.result(timeout=PATIENCE)
    return caught.value


def bidi(channel, messages, timeout=PATIENCE):
    """A stream in the background: a call, and a future of all its results."""
    call = channel.stream_stream(BIDI)(iter(messages), timeout=timeout)
    pool = futures.ThreadPoolExecutor(1)
    results = pool.submit(lambda: list(call))
    pool.shutdown(wait=False)
    return call, results


def until(condition, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# --- Sanity ----------------------------------------------------------------------------------------------------------


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
    until(lambda: wire.figures().calls == 0)
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


# --- Refusals --------------------------------------------------------------------------------------------------------


def test_errors_are_trailers_only(start, raw):
    """An error before the first message is one HEADERS frame; a response is HEADERS, DATA, trailers."""
    wire, address = start()
    client = raw(address)
    failed, answered = client.call(), client.call()
    for stream in (failed, answered):
        client.send(stream, frame(b"x"), end=True)
    first, second = take(wire, 2)
    wire.answer([(FAIL, first[1], Failure(5, "not found")), (RESPOND, second[1], b"y")])
    frames, headers = client.ended(failed)
    assert frames == ["ResponseReceived", "StreamEnded"]
    assert headers == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-status": "5",
        "grpc-message": "not found",
    }
    frames, headers = client.ended(answered)
    assert frames == ["ResponseReceived", "DataReceived", "TrailersReceived", "StreamEnded"]
    assert headers == {":status": "200", "content-type": "application/grpc", "grpc-status": "0"}


def test_error_after_a_message(start, dial):
    """After a message an error comes in the trailers, behind what was sent."""
    wire, address = start()
    call = dial(address).unary_stream(SERVER)(b"", timeout=PATIENCE)
    number = take(wire)[0][1]
    wire.answer([(SEND, number, b"1"), (FAIL, number, Failure(10, "aborted"))])
    assert next(call) == b"1"
    with pytest.raises(grpc.RpcError):
        next(call)
    assert call.code() is grpc.StatusCode.ABORTED


@pytest.mark.parametrize(
    ("call", "body", "status"),
    [
        ({"path": "/test.T/Other"}, b"", "12"),
        ({}, b"", "12"),
        ({}, frame(b"a") + frame(b"b"), "12"),
        ({}, frame(b"abc")[:-1], "13"),
        ({}, frame(b"abc")[:3], "13"),
        ({}, frame(b"abc") + b"\x00\x00", "13"),
        ({}, frame(b"abc", flag=2), "13"),
        ({}, frame(b"abc", flag=1), "12"),
        ({"headers": [("grpc-encoding", "gzip")]}, frame(b"abc"), "12"),
        ({"headers": [("grpc-encoding", "snappy")]}, frame(b"abc"), "12"),
        ({"headers": [("grpc-timeout", "10")]}, frame(b""), "13"),
        ({"headers": [("grpc-timeout", "123456789S")]}, frame(b""), "13"),
        ({"headers": [("grpc-timeout", "0m")]}, frame(b""), "4"),
        ({"headers": [("some-bin", "***")]}, frame(b""), "13"),
        ({"headers": [("some", "gr\u00fc\u00df")]}, frame(b""), "13"),
        ({"headers": [("some", "x" * 20_000)]}, frame(b""), "8"),
    ],
)
def test_bad_calls(start, raw, call, body, status):
    """What is no proper call is refused with its status, trailers-only, and never comes up."""
    wire, address = start()
    client = raw(address)
    stream = client.call(**call)
    client.send(stream, body, end=True)
    frames, headers = client.ended(stream)
    assert headers["grpc-status"] == status
    assert frames[0] == "ResponseReceived"
    assert "TrailersReceived" not in frames
    if headers.get("grpc-message") == "compressed":
        assert headers["grpc-accept-encoding"] == "identity"
    nothing(wire)
    assert wire.figures().refused_total == 1
    until(lambda: wire.figures().held_bytes == 0)


@pytest.mark.parametrize(
    ("call", "status"),
    [
        ({"method": "GET"}, "405"),
        ({"content_type": "application/json"}, "415"),
        ({"content_type": "application/grpc-web"}, "415"),
    ],
)
def test_not_grpc(start, raw, call, status):
    """What is not gRPC gets an HTTP status."""
    _, address = start()
    client = raw(address)
    assert client.ended(client.call(end=True, **call))[1][":status"] == status


def test_methods_of_an_exposure(start, dial):
    """A method that an exposure does not offer is UNIMPLEMENTED there."""
    wire, public, probe = start(exposure(), exposure(name="probe", methods=frozenset({SERVER})))
    assert failure(unary(dial(probe), b"")).code() is grpc.StatusCode.UNIMPLEMENTED
    call = unary(dial(public), b"")
    wire.answer([(RESPOND, take(wire)[0][1], b"here")])
    assert call.result() == b"here"


def test_declared_size_takes_no_memory(start, raw):
    """A message over the limit is refused at its prefix; one that only claims to be large holds what has come."""
    wire, address = start(max_receive_bytes=1 << 30)
    client = raw(address)
    before = psutil.Process().memory_info().rss
    stream = client.call()
    client.send(stream, struct.pack(">BI", 0, 1 << 30) + b"abc")
    until(lambda: wire.figures().held_bytes == 8)
    assert psutil.Process().memory_info().rss - before < 64 << 20
    too_large = client.call()
    client.send(too_large, struct.pack(">BI", 0, (1 << 30) + 1))
    assert client.ended(too_large)[1]["grpc-message"] == "message too large"


def test_response_too_large(start, dial):
    """A response over the limit becomes the refusal; on a stream the service is told that the call is gone."""
    wire, address = start(max_send_bytes=100)
    channel = dial(address)
    call = unary(channel, b"")
    wire.answer([(RESPOND, take(wire)[0][1], b"x" * 101)])
    assert failure(call).details() == "response too large"
    nothing(wire)
    stream = channel.unary_stream(SERVER)(b"", timeout=PATIENCE)
    number = take(wire)[0][1]
    wire.answer([(SEND, number, b"x" * 100), (SEND, number, b"x" * 101)])
    assert take(wire)[0][:3] == (CANCEL, number, 1)
    assert next(stream) == b"x" * 100
    with pytest.raises(grpc.RpcError, match="response too large"):
        next(stream)


def test_held_bytes(start, dial):
    """Bytes that wait are counted until they are taken; over the limit calls are refused."""
    wire, address = start(max_held_bytes=1000)
    channel = dial(address)
    first = unary(channel, b"x" * 600)
    until(lambda: wire.figures().held_bytes == 605)
    error = failure(unary(channel, b"x" * 600))
    assert error.details() == "bytes held"
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "100"
    number = take(wire)[0][1]
    assert wire.figures().held_bytes == 0
    third = unary(channel, b"x" * 600)
    wire.answer([(RESPOND, number, b""), (RESPOND, take(wire)[0][1], b"ok")])
    assert (first.result(), third.result()) == (b"", b"ok")


def test_held_bytes_of_a_call_that_goes(start, raw):
    """What a caller sent before it went is held until its event is taken, or dropped with a message in parts."""
    wire, address = start()
    client = raw(address)
    whole, part = client.call(), client.call()
    client.send(whole, frame(b"x" * 1000), end=True)
    client.send(part, frame(b"x" * 1000)[:-1])
    until(lambda: wire.figures().held_bytes == 2009)
    client.close()
    until(lambda: wire.figures().calls == 0)
    assert wire.figures().held_bytes == 1005
    assert [event[0] for event in take(wire, 2)] == [CALL, CANCEL]
    assert wire.figures().held_bytes == 0


def test_gzip(start, raw):
    """Where gzip is enabled messages are unpacked; the unpacked size counts against the limit."""
    wire, address = start(accept_gzip=True, max_receive_bytes=100_000)
    client = raw(address)
    packed = [frame(gzip.compress(b"x" * size), flag=1) for size in (100_000, 100_001)]
    fine, large, corrupt = (client.call(headers=[("grpc-encoding", "gzip")]) for _ in range(3))
    client.send(fine, packed[0], end=True)
    assert take(wire)[0][3] == b"x" * 100_000
    client.send(large, packed[1], end=True)
    assert client.ended(large)[1]["grpc-message"] == "message too large"
    client.send(corrupt, frame(b"garbage", flag=1), end=True)
    assert client.ended(corrupt)[1]["grpc-status"] == "13"


# --- Time, and callers that go ---------------------------------------------------------------------------------------


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
    until(lambda: wire.figures().calls == 0)


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
    until(lambda: wire.figures().calls == 0)


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
    until(lambda: wire.figures().connections == 0)


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
    until(lambda: wire.figures().connections == 1)
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
    until(lambda: wire.figures().connections == 0)


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
    until(lambda: wire.figures().calls == 0)
    until(lambda: wire.figures().connections == 0)


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
    until(lambda: wire.figures().connections == 0)


# --- Back-pressure ---------------------------------------------------------------------------------------------------


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
    until(lambda: wire.figures().held_bytes == 0)


# --- Listening -------------------------------------------------------------------------------------------------------


def test_taken_port(start):
    """A taken port is one clear sentence."""
    _, address = start()
    with pytest.raises(ConfigError, match="is taken"):
        start(exposure(address))


def test_reuse_port(start, dial):
    """With SO_REUSEPORT two servers share a port."""
    first, address = start(exposure(reuse_port=True))
    second, again = start(exposure(address, reuse_port=True))
    assert again == address
    first.drain()
    time.sleep(0.05)
    call = unary(dial(address), b"")
    second.answer([(RESPOND, take(second)[0][1], b"second")])
    assert call.result() == b"second"


@pytest.mark.parametrize("address", ["256.0.0.1:0", "127.0.0.1", "192.0.2.1:1", "unix:/no/such/directory/x"])
def test_bad_address(start, address):
    """An address that can't be bound is one clear sentence."""
    with pytest.raises(ConfigError, match=r"^exposure public: can't listen on "):
        start(exposure(address))


def test_start_twice(start):
    """A server starts once."""
    wire, _ = start()
    with pytest.raises(ConfigError, match="already"):
        wire.start()


def test_unix_socket(start, dial, tmp_path):
    """A Unix socket is private, replaces a dead one, is never stolen, and goes at the end."""
    path = tmp_path / "forebay.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    wire, address = start(exposure(f"unix:{path}"))
    assert address == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    # grpcio's own authority for a Unix socket, `%2Fpath`, is no authority by the RFC: h2 resets such calls.
    call = unary(dial(address, **{"grpc.default_authority": "localhost"}), b"")
    event = take(wire)[0]
    assert event[5].address == "unix:"
    wire.answer([(RESPOND, event[1], b"here")])
    assert call.result() == b"here"
    with pytest.raises(ConfigError, match="is taken"):
        start(exposure(f"unix:{path}"))
    wire.close(1.0)
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(ConfigError, match="not a socket"):
        start(exposure(f"unix:{path}"))
    assert path.read_text() == "mine"


# --- TLS -------------------------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority for tests."""

    def __init__(self, directory):
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
        self.certificate = self._sign(self.name, self.key.public_key(), x509.BasicConstraints(ca=True, path_length=0))
        self.pem = self.certificate.public_bytes(Encoding.PEM)
        self.path = self._write("ca.pem", self.pem)

    def issue(self, name, *names):
        """Issues a certificate with these subject alternative names. Returns the PEM of both, and their files."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._sign(subject, key.public_key(), x509.SubjectAlternativeName(names))
        chain = made.public_bytes(Encoding.PEM)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return chain, secret, self._write(f"{name}.pem", chain), self._write(f"{name}.key", secret)

    def _sign(self, subject, public_key, extension):
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateBuilder(self.name, subject, public_key, x509.random_serial_number())
        builder = builder.not_valid_before(now - dt.timedelta(1)).not_valid_after(now + dt.timedelta(1))
        return builder.add_extension(extension, critical=False).sign(self.key, hashes.SHA256())

    def _write(self, name, content):
        path = self.directory / name
        path.write_bytes(content)
        return str(path)


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


LOCALHOST = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


@pytest.mark.parametrize(
    ("names", "identity"),
    [
        ((x509.DNSName("a.test"), x509.UniformResourceIdentifier("spiffe://test/a")), "spiffe://test/a"),
        ((x509.DNSName("b.test"), x509.DNSName("c.test")), "b.test"),
        ((LOCALHOST,), None),
    ],
)
def test_identity_from_mtls(start, dial, authority, names, identity):
    """The identity is the client certificate's first URI, else its first DNS name; without one nobody gets in."""
    *_, certificate, key = authority.issue("server", LOCALHOST)
    wire, address = start(exposure(tls=Tls(certificate=certificate, key=key, client_ca=authority.path)))
    chain, secret, *_ = authority.issue("client", *names)
    call = unary(dial(address, grpc.ssl_channel_credentials(authority.pem, secret, chain)), b"")
    event = take(wire)[0]
    assert event[5].identity == identity
    wire.answer([(RESPOND, event[1], b"known")])
    assert call.result() == b"known"
    stranger = unary(dial(address, grpc.ssl_channel_credentials(authority.pem)), b"", timeout=2)
    assert failure(stranger).code() is grpc.StatusCode.UNAVAILABLE
    nothing(wire)


def served(address, authority):
    """The serial number of the certificate that a handshake shows."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    host, _, number = address.rpartition(":")
    with (
        socket.create_connection((host, int(number)), timeout=PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname=host) as wrapped,
    ):
        assert wrapped.selected_alpn_protocol() == "h2"
        return x509.load_der_x509_certificate(wrapped.getpeercert(binary_form=True)).serial_number


def test_certificate_renewal(start, dial, authority):
    """New handshakes use renewed certificates, live connections go on; unusable ones leave all as it was."""
    chain, _, certificate, key = authority.issue("server", LOCALHOST)
    wire, address = start(exposure(tls=Tls(certificate=certificate, key=key)))
    channel = dial(address, grpc.ssl_channel_credentials(authority.pem))
    call = unary(channel, b"")
    first = take(wire)[0]
    wire.answer([(RESPOND, first[1], b"1")])
    assert call.result() == b"1"
    assert first[5].identity is None
    old = x509.load_pem_x509_certificate(chain).serial_number
    assert served(address, authority) == old

    _, other_secret, *_ = authority.issue("other", LOCALHOST)
    secret = pathlib.Path(key).read_bytes()
    pathlib.Path(key).write_bytes(other_secret)
    with pytest.raises(ConfigError, match="can't be used together"):
        wire.renew_certificates()
    pathlib.Path(key).unlink()
    with pytest.raises(ConfigError, match="can't be read"):
        wire.renew_certificates()
    assert served(address, authority) == old
    pathlib.Path(key).write_bytes(secret)

    chain, *_ = authority.issue("server", LOCALHOST)
    wire.renew_certificates()
    assert served(address, authority) == x509.load_pem_x509_certificate(chain).serial_number
    call = unary(channel, b"")
    second = take(wire)[0]
    assert second[5] is first[5]
    wire.answer([(RESPOND, second[1], b"2")])
    assert call.result() == b"2"


def test_bad_certificates(start, authority):
    """Certificates that can't be used are one clear sentence at the start."""
    *_, certificate, key = authority.issue("server", LOCALHOST)
    encrypted = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    bad = authority._write("encrypted.key", encrypted)
    empty = authority._write("empty.pem", b"nothing here")
    for files, text in (
        (Tls(certificate="/no/such/file", key=key), "/no/such/file: can't be read"),
        (Tls(certificate=certificate, key=bad), "encrypted keys are not supported"),
        (Tls(certificate=empty, key=key), "no certificate in it"),
        (Tls(certificate=certificate, key=certificate), "no private key in it"),
        (Tls(certificate=certificate, key=key, client_ca=empty), "no certificate in it"),
    ):
        with pytest.raises(ConfigError, match=text):
            start(exposure(tls=files))


def test_large_messages_over_tls(start, dial, authority):
    """Large messages pass TLS in both directions."""
    *_, certificate, key = authority.issue("server", LOCALHOST)
    wire, address = start(exposure(tls=Tls(certificate=certificate, key=key)))
    message = os.urandom(3_000_000)
    call = unary(dial(address, grpc.ssl_channel_credentials(authority.pem)), message)
    event = take(wire)[0]
    wire.answer([(RESPOND, event[1], event[3])])
    assert call.result() == message


# --- The end ---------------------------------------------------------------------------------------------------------


def test_drain(start, dial):
    """A drain ends listening and lets calls end; an exposure that outlives it goes on."""
    wire, public, probe = start(exposure(), exposure(name="probe", outlives_drain=True))
    channel, probing = dial(public), dial(probe)
    running = unary(channel, b"running")
    number = take(wire)[0][1]
    wire.drain()
    until(lambda: refuses(public))
    call = unary(probing, b"alive?")
    wire.answer([(RESPOND, take(wire)[0][1], b"alive")])
    assert call.result() == b"alive"
    wire.answer([(RESPOND, number, b"done")])
    assert running.result() == b"done"
    assert failure(unary(channel, b"late", timeout=2)).code() is grpc.StatusCode.UNAVAILABLE


def refuses(address):
    host, _, number = address.rpartition(":")
    try:
        socket.create_connection((host, int(number)), timeout=1).close()
    except (ConnectionRefusedError, ConnectionResetError):  # reset: it was in the backlog as that closed
        return True
    return False


def test_close(start, dial):
    """`close` sends what was answered, fails what is left, ends the thread, and is quick about it."""
    wire, address = start()
    channel = dial(address)
    answered, left = unary(channel, b"1"), unary(channel, b"2")
    stream = channel.unary_stream(SERVER)(b"", timeout=PATIENCE)
    by_body = {event[3]: event[1] for event in take(wire, 3)}
    wire.answer([(RESPOND, by_body[b"1"], b"x" * 2_000_000), (SEND, by_body[b""], b"part")])
    begin = time.monotonic()
    wire.close(5.0)
    assert time.monotonic() - begin < 4
    assert answered.result() == b"x" * 2_000_000
    error = failure(left)
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "draining")
    assert next(stream) == b"part"
    with pytest.raises(grpc.RpcError, match="draining"):
        next(stream)
    assert refuses(address)
    assert wire.figures().calls == 0
    wire.close(5.0)


def test_threads_and_descriptors_go(start, raw):
    """Starting and closing leaves no thread and no descriptor behind."""
    process = psutil.Process()

    def once():
        wire, address = start()
        client = raw(address)
        stream = client.call()
        client.send(stream, frame(b""), end=True)
        take(wire)
        wire.close(0.0)
        client.close()

    once()
    threads, descriptors = process.num_threads(), process.num_fds()
    for _ in range(3):
        once()
    assert process.num_threads() == threads
    assert process.num_fds() == descriptors


WATCHED = """
    import sys, time
    from forebay_server.wire.native import NativeWire
    from forebay_server.wire.port import Exposure, Failure, Limits, Refusals, WireConfig

    no = Failure(13, "no")
    refusals = Refusals(message_too_large=no, response_too_large=no, bytes_held=no, deadline_expired=no,
                        slow_reader=no, slow_sender=no, draining=no, compressed=no)
    exposure = Exposure(name="public", address="127.0.0.1:0", methods=frozenset())
    wire = NativeWire(WireConfig(methods=(), exposures=(exposure,), refusals=refusals))
    wire.start()
    wire.watch(0.3)
"""


def watched(script):
    """Runs a script with a watched server; what it prints and its exit code."""
    code = textwrap.dedent(WATCHED) + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout, done.stderr


def test_watchdog_ends_a_stuck_process():
    """A taker that does not come back, GIL held, is exit code 70 with all stacks on stderr."""
    code, _, errors = watched("""
        def stuck():
            sum(range(10**11))  # one bytecode for minutes: the GIL is never given

        wire.take(1, 0.0)
        stuck()
    """)
    assert code == 70
    assert "has not come back" in errors
    assert "in stuck" in errors


def test_watchdog_spares_who_comes_back():
    """Time inside `take` does not count, nor any time after `watch(None)`."""
    code, output, errors = watched("""
        wire.take(1, 1.0)
        for _ in range(4):
            time.sleep(0.15)
            wire.take(1, 0.0)
        wire.watch(None)
        time.sleep(0.7)
        wire.watch(0.3)
        time.sleep(0.1)
        wire.close(0.0)
        time.sleep(0.7)
        print("well")
    """)
    assert (code, output, errors) == (0, "well\n", "")


def test_a_server_that_is_forgotten():
    """A process that ends without `close` ends."""
    assert watched("wire.watch(None)")[0] == 0


def test_thread_name(start):
    """The I/O thread has its name, for those who look at a process."""
    start()
    names = {path.read_text().strip() for path in pathlib.Path("/proc/self/task").glob("*/comm")}
    assert "forebay-io" in names
