"""Callers that mean harm, or are broken. The port must survive each, and good callers must not notice.

Each test makes good calls on another connection before, during and after the attack; a suite that passes with no server
running proves nothing. When the attackers are gone, descriptors, threads and memory must be back where they were.

Where an attack can be limited by the native adapter only, its docstring says why.
"""

import contextlib
import random
import socket
import struct
import time

import h2.events
import hpack
import psutil
import pytest

from forebay_server.wire.port import CALL, OPEN
from tests.waiting import eventually

native_only = pytest.mark.parametrize("adapter", [pytest.param("native", marks=pytest.mark.native)], indirect=True)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
MEBIBYTE = 1 << 20

REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/wire.test.Test/Hold"),
    (":authority", "test"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


def frame(kind, stream=0, payload=b"", flags=0, length=None):
    """An HTTP/2 frame, whose length may be a lie."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


@pytest.fixture
def process():
    """Checks descriptors, threads and memory around what happens in a block: `with process(server): ...`."""
    me = psutil.Process()

    @contextlib.contextmanager
    def check(server, memory=48 * MEBIBYTE):
        eventually(server.idle, "idle")
        descriptors, threads, resident = me.num_fds(), me.num_threads(), me.memory_info().rss
        yield
        eventually(server.idle, "idle")
        eventually(lambda: me.num_fds() <= descriptors, f"{descriptors} descriptors again")
        # grpcio's own pool of threads grows with its work, by a few.
        eventually(lambda: me.num_threads() <= threads + 8, f"{threads} threads again")
        assert me.memory_info().rss - resident < memory

    return check


@pytest.fixture
def good(call):
    """A good call must be answered: `good(channel)`."""

    def check(channel):
        started = time.monotonic()
        assert call(channel, "Echo", b"good", timeout=5) == b"good"
        assert time.monotonic() - started < 5

    return check


@pytest.fixture
def survive(process, good):
    """Runs attackers, each a function of an open socket, beside good calls: `survive(server, attack, count)`."""

    def run(server, attack, count=1, **options):
        channel = server.channel()
        good(channel)
        with process(server, **options):
            for _ in range(count):
                with contextlib.closing(server.connect()) as sock:
                    with contextlib.suppress(ConnectionError, BrokenPipeError):
                        attack(sock)
                    good(channel)
        good(channel)

    return run


def send_all(sock, data, patience=5.0):
    """Sends as much as the other side takes, and throws away what it says; says whether it was cut off."""
    view = memoryview(data)
    until = time.monotonic() + patience
    sock.setblocking(False)
    while view and time.monotonic() < until:
        try:
            view = view[sock.send(view[: 1 << 18]) :]
        except BlockingIOError:
            time.sleep(0.001)
        except ConnectionError:
            return True
        with contextlib.suppress(BlockingIOError):
            try:
                if sock.recv(1 << 16) == b"":
                    return True
            except ConnectionError:
                return True
    sock.settimeout(5)
    return False


def closed_within(sock, seconds):
    """Whether the other side hangs up in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sock.settimeout(max(until - time.monotonic(), 0.01))
        try:
            if sock.recv(1 << 16) == b"":
                return True
        except TimeoutError:
            return False
        except ConnectionError:
            return True
    return False


# --- what is not HTTP/2 ----------------------------------------------------------------------------------------------


def test_garbage(server, survive):
    """Random bytes reach nobody, and end their connection."""
    source = random.Random(1)
    calls = len(server.of(OPEN))
    survive(server, lambda sock: send_all(sock, source.randbytes(source.randrange(1, 5000)), 0.2), 30)
    assert len(server.of(OPEN)) == calls
    assert all(event[3] == b"good" for event in server.of(CALL))


def test_http_1(server, survive):
    """HTTP/1.1 requests are turned away."""

    def attack(sock):
        sock.sendall(b"POST /wire.test.Test/Echo HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello")
        assert closed_within(sock, 5)

    survive(server, attack, 3)


@pytest.mark.parametrize("length", [1, 10, 23])
def test_a_truncated_preface(server, survive, length):
    """A connection that ends inside the preface leaves nothing behind."""
    survive(server, lambda sock: sock.sendall(PREFACE[:length]), 5)


def test_a_silent_connection_is_closed(serve, survive):
    """Who says nothing within the handshake's time is cut off."""
    server = serve(handshake_timeout=0.3)

    def attack(sock):
        assert closed_within(sock, 5)

    survive(server, attack)


def test_a_slow_preface_is_closed(serve, survive):
    """Who sends the preface byte by byte is cut off all the same."""
    server = serve(handshake_timeout=0.3)

    def attack(sock):
        for byte in PREFACE[:-1]:
            sock.sendall(bytes([byte]))
            if closed_within(sock, 0.1):
                return
        pytest.fail("still open")

    survive(server, attack)


# --- broken HTTP/2 ---------------------------------------------------------------------------------------------------


def test_random_frames(server, survive):
    """Frames of random kinds, flags, streams and contents do no harm."""
    source = random.Random(2)

    def attack(sock):
        data = PREFACE + frame(SETTINGS)
        for _ in range(20):
            payload = source.randbytes(source.randrange(64))
            data += frame(
                source.randrange(12), source.choice([0, 1, 2, 3, 5, 2**31 - 1]), payload, source.randrange(256)
            )
        send_all(sock, data, 0.2)

    survive(server, attack, 40)


def _random_call(source):
    """The beginning of a connection with calls that are right in most bytes."""
    encoder = hpack.Encoder()
    data = PREFACE + frame(SETTINGS)
    for stream in range(1, 2 * source.randrange(1, 6), 2):
        headers = list(REQUEST)
        headers[2] = (":path", f"/wire.test.Test/{source.choice(['Echo', 'Chat', 'Manual', 'Hold'])}")
        if source.random() < 0.3:
            value = source.choice(["1m", "20m", "0S", "99999999H", "x"])
            headers.append(("grpc-timeout", value))
        data += frame(HEADERS, stream, encoder.encode(headers), 0x4)
        body = source.randbytes(source.randrange(200))
        length = len(body) + source.choice([0, 0, 0, -1, 1, 100_000])
        data += frame(DATA, stream, struct.pack(">BI", source.choice([0, 0, 0, 1, 7]), max(length, 0)) + body)
        for _ in range(source.randrange(4)):
            payload = source.randbytes(source.randrange(16))
            kind = source.choice([DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION])
            data += frame(kind, source.choice([0, stream]), payload, source.choice([0, 0, 1, 4, source.randrange(256)]))
    damaged = bytearray(data)
    for _ in range(source.choice([0, 0, 1, 3])):
        damaged[source.randrange(len(PREFACE), len(damaged))] = source.randrange(256)
    return bytes(damaged[: source.choice([len(damaged), source.randrange(len(damaged))])])


def _bad_callers_for(seconds, server, process, good):
    """Random callers, beside a good one, for some time; the seed is fixed, so each run sends the same."""
    source = random.Random(3)
    channel = server.channel()
    good(channel)
    sent = 0
    with process(server):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.ExitStack() as stack:
                for _ in range(source.randrange(1, 5)):
                    sock = stack.enter_context(server.connect())
                    with contextlib.suppress(ConnectionError, BrokenPipeError):
                        send_all(sock, _random_call(source), 0.05)
                    sent += 1
                good(channel)
    good(channel)
    return sent


def test_random_calls(server, process, good):
    """Calls that are damaged at random places harm nobody but themselves."""
    assert _bad_callers_for(1.0, server, process, good) > 10


@pytest.mark.long
@pytest.mark.timeout(180)
def test_random_calls_for_a_minute(server, process, good):
    """A minute of them changes nothing."""
    assert _bad_callers_for(60.0, server, process, good) > 1000


def test_lying_frame_lengths(server, survive):
    """Frames that are longer or shorter than they say end their connection at most."""

    def attack(sock):
        for lie in (0, 3, 100, 2**24 - 1):
            sock.sendall(PREFACE + frame(SETTINGS) + frame(HEADERS, 1, b"\x82\x86", 0x4, length=lie))

    survive(server, attack, 5)


def test_lying_message_lengths(server, raw, process, good):
    """A message that declares almost 16 MiB and sends nothing costs nothing."""
    channel = server.channel()
    good(channel)
    with process(server):
        client = raw()
        for _ in range(100):
            client.data(client.request("Echo"), client.frame(b"", length=(16 << 20) - 1))
        good(channel)
        client.close()
    good(channel)


def test_a_window_overflow(server, adapter, raw, process, good):
    """A window over 2^31-1 is an error of that connection; grpcio just goes on, which harms nobody."""
    channel = server.channel()
    good(channel)
    with process(server):
        client = raw()
        assert client.echo() == 0
        client.sock.sendall(frame(WINDOW_UPDATE, 0, struct.pack(">I", 2**31 - 1)) * 2)
        if adapter == "native":
            client.until(lambda client: client.closed or client.of(h2.events.ConnectionTerminated))
        client.close()
        good(channel)
    good(channel)


def test_data_beyond_the_window(serve, survive):
    """What a caller sends in spite of flow control is not kept."""
    server = serve(stream_window_bytes=65536)
    headers = hpack.Encoder().encode([*REQUEST[:2], (":path", "/wire.test.Test/Manual"), *REQUEST[3:]])
    flood = frame(DATA, 1, bytes(16384)) * 2560

    def attack(sock):
        send_all(sock, PREFACE + frame(SETTINGS) + frame(HEADERS, 1, headers, 0x4) + flood)

    survive(server, attack, memory=16 * MEBIBYTE)


def test_a_header_bomb(server, survive):
    """A header of 4 KiB that is referred to 10,000 times in a few bytes each is not unpacked into 40 MiB."""
    encoder = hpack.Encoder()
    big = encoder.encode([*REQUEST, ("x-bomb", "x" * 3500)])
    again = encoder.encode([("x-bomb", "x" * 3500)])
    assert len(again) < 4

    def attack(sock):
        send_all(sock, PREFACE + frame(SETTINGS) + frame(HEADERS, 1, big + again * 10_000, 0x5)[: 9 + 16384], 0.5)

    survive(server, attack, 3, memory=24 * MEBIBYTE)
    assert all(event[3] == b"good" for event in server.of(CALL))


# --- floods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flood",
    [
        frame(SETTINGS),
        frame(PING, 0, b"12345678"),
        frame(PRIORITY, 3, b"\x00\x00\x00\x01\x10"),
        frame(WINDOW_UPDATE, 0, b"\x00\x00\x00\x01"),
        frame(0x55, 0, b"unknown"),
    ],
    ids=["settings", "ping", "priority", "window_update", "unknown"],
)
def test_floods_of_frames(server, survive, flood):
    """Fifty thousand cheap frames are endured or cut off; good calls go through meanwhile."""
    survive(server, lambda sock: send_all(sock, PREFACE + frame(SETTINGS) + flood * 50_000, 3.0))


def test_a_flood_of_empty_data(server, survive):
    """Empty DATA frames on an open call cost no memory."""
    headers = frame(HEADERS, 1, hpack.Encoder().encode(REQUEST), 0x4)
    survive(server, lambda sock: send_all(sock, PREFACE + frame(SETTINGS) + headers + frame(DATA, 1) * 50_000, 3.0))


def test_a_flood_of_continuations(server, survive):
    """Headers that go on for ever are not kept."""
    head = frame(HEADERS, 1, hpack.Encoder().encode(REQUEST), 0)
    more = frame(CONTINUATION, 1, hpack.Encoder().encode([("x-more", "x" * 8000)]) * 2)

    def attack(sock):
        send_all(sock, PREFACE + frame(SETTINGS) + head + more * 1500, 3.0)

    survive(server, attack, memory=64 * MEBIBYTE)
    assert all(event[3] == b"good" for event in server.of(CALL))


def test_rapid_reset(server, survive):
    """Two thousand calls that are reset at once are endured or cut off, and none stays open."""
    encoder = hpack.Encoder()
    attackers = b"".join(
        frame(HEADERS, stream, encoder.encode(REQUEST), 0x4) + frame(RST_STREAM, stream, struct.pack(">I", 8))
        for stream in range(1, 4001, 2)
    )
    survive(server, lambda sock: send_all(sock, PREFACE + frame(SETTINGS) + attackers, 3.0))


def test_a_caller_that_cancels_much_is_served(server, raw, process, good):
    """A hundred cancellations in a row are not an attack: the connection stays."""
    channel = server.channel()
    good(channel)
    with process(server):
        client = raw()
        for _ in range(100):
            client.h2.reset_stream(client.request("Hold"), 8)
            client.flush()
        assert client.echo() == 0
        client.close()
    good(channel)


def test_made_you_reset(server, survive):
    """Calls that make the server reset them, by a bad window update each, are endured or cut off."""
    encoder = hpack.Encoder()
    attackers = b"".join(
        frame(HEADERS, stream, encoder.encode(REQUEST), 0x4) + frame(WINDOW_UPDATE, stream, bytes(4))
        for stream in range(1, 2001, 2)
    )
    survive(server, lambda sock: send_all(sock, PREFACE + frame(SETTINGS) + attackers, 3.0))


# --- slowness and numbers --------------------------------------------------------------------------------------------


@native_only
def test_a_slow_message_is_cut(serve, raw, process, good):
    """A message that is not complete in `read_stall` fails its call. Native only: grpcio does not show parts."""
    server = serve(read_stall=0.3)
    channel = server.channel()
    good(channel)
    with process(server):
        client = raw(server)
        stream = client.request("Echo")
        data = client.frame(bytes(1000))
        for index in range(50):
            if client.ended(stream):
                break
            client.data(stream, data[index : index + 1])
            client.pump(0.02)
        assert client.status(stream) == 4
        assert client.echo() == 0
        client.close()
    good(channel)


def test_slow_headers_block_nobody(server, raw, process, good):
    """Connections that send their headers byte by byte are in nobody's way, and leave nothing behind."""
    channel = server.channel()
    good(channel)
    headers = frame(HEADERS, 1, hpack.Encoder().encode(REQUEST), 0x4)
    with process(server), contextlib.ExitStack() as stack:
        socks = [stack.enter_context(contextlib.closing(server.connect())) for _ in range(20)]
        for sock in socks:
            sock.sendall(PREFACE + frame(SETTINGS))
        for byte in headers[:10]:
            for sock in socks:
                sock.sendall(bytes([byte]))
            good(channel)
    good(channel)


def test_a_reader_that_never_reads_its_socket(serve, process, good):
    """A connection whose answers are never read is bounded, and harms nobody."""
    server = serve(write_stall=0.3, outbox_bytes=100_000)
    channel = server.channel()
    good(channel)
    encoder = hpack.Encoder()
    path = (":path", "/wire.test.Test/Sized")
    body = struct.pack(">BI", 0, 7) + b"1000000"
    windows = frame(SETTINGS, 0, struct.pack(">HI", 4, 2**31 - 1)) + frame(WINDOW_UPDATE, 0, b"\x7f\x00\x00\x00")
    with process(server, memory=160 * MEBIBYTE), contextlib.closing(server.connect()) as sock:
        sock.sendall(PREFACE + windows)
        for stream in range(1, 80, 2):
            headers = encoder.encode([*REQUEST[:2], path, *REQUEST[3:]])
            sock.sendall(frame(HEADERS, stream, headers, 0x4) + frame(DATA, stream, body, 0x1))
        server.wait(CALL, "Sized", count=40)
        good(channel)
        time.sleep(0.5)
        good(channel)
    good(channel)


def test_a_thousand_connections(server, process, good):
    """A thousand connections at once are accepted, served, and forgotten."""
    channel = server.channel()
    good(channel)
    me = psutil.Process()
    with process(server, memory=256 * MEBIBYTE), contextlib.ExitStack() as stack:
        before = me.num_fds()
        for index in range(1000):
            sock = stack.enter_context(contextlib.closing(server.connect()))
            sock.sendall(PREFACE + frame(SETTINGS))
            if index % 250 == 0:
                good(channel)
        eventually(lambda: me.num_fds() >= before + 2000, "all accepted")
        good(channel)
    good(channel)


def test_connections_over_the_limit_are_closed(serve, good):
    """Connections beyond `max_connections` are closed at once, and give their place back when they end."""
    server = serve(max_connections=10)
    channel = server.channel()
    good(channel)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(contextlib.closing(server.connect())) for _ in range(30)]
        for sock in socks:
            with contextlib.suppress(ConnectionError):
                sock.sendall(PREFACE + frame(SETTINGS))
        refused = sum(closed_within(sock, 0.05) for sock in socks)
        assert 15 <= refused <= 25
        good(channel)
    time.sleep(0.1)
    good(server.channel())


@native_only
def test_the_bytes_held_are_limited(serve, raw, call, good):
    """Calls over `max_held_bytes` are shed. Native only: grpcio does not show what it has received in parts."""
    server = serve(max_held_bytes=300_000)
    channel = server.channel()
    good(channel)
    client = raw(server)
    streams = [client.request("Hold") for _ in range(3)]

    def send(stream, size):
        client.data(stream, client.frame(b"", length=200_000))
        for _ in range(size // 10_000):
            if client.ended(stream):
                break
            client.data(stream, bytes(10_000))
            client.pump(0.005)

    send(streams[0], 190_000)
    send(streams[1], 90_000)
    eventually(lambda: server.wire.figures().held_bytes == 280_010, "all there")
    send(streams[2], 100_000)
    assert client.status(streams[2]) == 8
    assert server.of(CALL, "Hold") == []
    # Taken, a message is not the front end's any more.
    client.data(streams[0], bytes(10_000), end=True)
    server.wait(CALL, "Hold")
    eventually(lambda: server.wire.figures().held_bytes == 90_005, "one given out")
    client.close()
    eventually(server.idle, "idle")
    good(channel)


def test_connections_killed_inside_a_message(server, process, good):
    """Connections that are reset in the middle of a message leave nothing behind."""
    channel = server.channel()
    good(channel)
    headers = frame(HEADERS, 1, hpack.Encoder().encode(REQUEST), 0x4)
    part = frame(DATA, 1, struct.pack(">BI", 0, 60_000) + bytes(16_000))
    with process(server):
        for _ in range(50):
            sock = server.connect()
            sock.sendall(PREFACE + frame(SETTINGS) + headers + part)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        good(channel)
    assert all(event[3] == b"good" for event in server.of(CALL))
