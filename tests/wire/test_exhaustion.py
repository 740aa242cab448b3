"""Resources that run out, and what only the native adapter can do about it.

Descriptors, connections, memory for unpacked messages, and patience with peers that are dead or old.
"""

import contextlib
import gzip
import os
import resource
import selectors
import socket
import struct
import subprocess
import sys
import textwrap
import time

import grpc
import hpack
import psutil
import pytest

from forebay_server.wire.port import CALL, CANCEL
from tests.waiting import eventually

pytestmark = pytest.mark.native

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATIENCE = 10.0  # seconds that anything may take on a busy machine


@pytest.fixture
def adapter():
    """The native one only."""
    pytest.importorskip("forebay_native", reason="native front end not installed")
    return "native"


def frame(kind, stream=0, payload=b"", flags=0):
    """An HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


# --- descriptors -----------------------------------------------------------------------------------------------------

ECHO_SERVER = """
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))

    from forebay_server.wire.native import NativeWire
    from forebay_server.wire.port import RESPOND, Exposure, Failure, Method, MethodKind, Refusals, WireConfig

    no = Failure(13, "no")
    refusals = Refusals(message_too_large=no, response_too_large=no, bytes_held=no, deadline_expired=no,
                        slow_reader=no, slow_sender=no, draining=no, compressed=no)
    echo = Method(path="/test.T/Echo", kind=MethodKind.UNARY)
    exposure = Exposure(name="public", address="127.0.0.1:0", methods=frozenset({echo.path}))
    wire = NativeWire(WireConfig(methods=(echo,), exposures=(exposure,), refusals=refusals))
    print(*wire.start(), flush=True)
    while True:
        wire.answer([(RESPOND, event[1], event[3]) for event in wire.take(100, 60.0) if event[0] == 1])
"""


@pytest.fixture
def small_server():
    """A process with 48 descriptors that echoes; gives it and its address."""
    command = [sys.executable, "-c", textwrap.dedent(ECHO_SERVER)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield psutil.Process(process.pid), process.stdout.readline().strip()
        finally:
            process.kill()


def test_out_of_descriptors(small_server):
    """Without descriptors the accept loop rests instead of spinning, live connections go on, and later all is well."""
    process, address = small_server
    host, _, number = address.rpartition(":")

    def echo(channel):
        return channel.unary_unary("/test.T/Echo")(b"good", timeout=PATIENCE)

    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options) as channel, contextlib.ExitStack() as greedy:
        assert echo(channel) == b"good"
        for _ in range(100):
            greedy.enter_context(socket.create_connection((host, int(number)), PATIENCE))
        until = time.monotonic() + PATIENCE
        while process.num_fds() < 48:
            assert time.monotonic() < until, "the limit was not reached"
            time.sleep(0.01)
        spent = sum(process.cpu_times()[:2])
        time.sleep(1.0)
        assert sum(process.cpu_times()[:2]) - spent < 0.3
        assert echo(channel) == b"good"
        greedy.close()
        with grpc.insecure_channel(address, options) as another:
            assert another.unary_unary("/test.T/Echo")(b"good", timeout=PATIENCE, wait_for_ready=True) == b"good"


# --- connections -----------------------------------------------------------------------------------------------------


def test_a_thousand_connections(server):
    """A thousand connections with a call each are served at once, and leave nothing behind."""
    count = 1000
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 3 * count:
        pytest.skip("too few descriptors for both ends")
    me = psutil.Process()
    descriptors, threads, resident = me.num_fds(), me.num_threads(), me.memory_info().rss
    request = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/wire.test.Test/Hold"),
        (":authority", "test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
    body = struct.pack(">BI", 0, 4) + b"call"
    opening = PREFACE + frame(4) + frame(1, 1, hpack.Encoder().encode(request), 0x4) + frame(0, 1, body, 0x1)
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for _ in range(count):
            sock = stack.enter_context(server.connect())
            sock.sendall(opening)
            selector.register(sock, selectors.EVENT_READ, bytearray())
        held = server.wait(CALL, "Hold", count=count)
        assert server.wire.figures().connections == count
        assert server.wire.figures().calls == count
        server.answer([(1, event[1], b"%08d" % index) for index, event in enumerate(held)])
        answers, until = set(), time.monotonic() + PATIENCE
        while len(answers) < count:
            assert time.monotonic() < until, f"{len(answers)} answers"
            for key, _ in selector.select(1.0):
                key.data.extend(key.fileobj.recv(4096))
                at = key.data.find(struct.pack(">BI", 0, 8))
                if at >= 0 and len(key.data) >= at + 13:
                    answers.add(bytes(key.data[at + 5 : at + 13]))
    assert answers == {b"%08d" % index for index in range(count)}
    eventually(lambda: server.wire.figures().connections == 0, "all gone")
    eventually(lambda: me.num_fds() <= descriptors, "descriptors as before")
    assert me.num_threads() <= threads
    assert me.memory_info().rss - resident < 96 << 20


def test_connections_over_the_limit_are_closed(serve, raw):
    """Connections over `max_connections` are closed at once; the others go on, and when one goes another may come."""
    server = serve(max_connections=3)
    clients = [raw(server) for _ in range(3)]
    assert [client.echo() for client in clients] == [0, 0, 0]
    for _ in range(5):
        with server.connect() as refused:
            assert refused.recv(100) == b""
    assert [client.echo() for client in clients] == [0, 0, 0]
    clients[0].close()
    eventually(lambda: server.wire.figures().connections == 2, "one gone")
    assert raw(server).echo() == 0


# --- gzip ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, 200_000], ids=["empty", "one", "small", "on another thread"])
def test_gzip_is_unpacked(serve, raw, size):
    """Packed messages come up as they were, whether they are unpacked on the spot or on another thread."""
    server = serve(accept_gzip=True)
    client = raw(server)
    body = os.urandom(size)
    stream = client.request("Hold", ("grpc-encoding", "gzip"))
    packed = client.frame(gzip.compress(body), flag=1)
    for start in range(0, len(packed), 16_000):
        client.until(lambda client: client.h2.local_flow_control_window(stream) >= 16_000)
        client.data(stream, packed[start : start + 16_000], end=start + 16_000 >= len(packed))
    event = server.wait(CALL, "Hold")[0]
    assert event[3] == body
    server.answer([(1, event[1], b"")])
    assert client.status(stream) == 0


@pytest.mark.parametrize("size", [4 << 20, 256 << 20], ids=["on the spot", "on another thread"])
def test_a_gzip_bomb_is_refused(serve, raw, size):
    """A message that would unpack beyond `max_receive_bytes` is refused at that size, with no more memory."""
    server = serve(accept_gzip=True, max_receive_bytes=1 << 20)
    client = raw(server)
    bomb = gzip.compress(bytes(size), 6)
    resident = psutil.Process().memory_info().rss
    stream = client.request("Hold", ("grpc-encoding", "gzip"))
    packed = client.frame(bomb, flag=1)
    for start in range(0, len(packed), 16_000):
        client.until(lambda client: client.h2.local_flow_control_window(stream) >= 16_000)
        client.data(stream, packed[start : start + 16_000], end=start + 16_000 >= len(packed))
    assert client.status(stream) == 8
    assert psutil.Process().memory_info().rss - resident < 32 << 20
    assert server.of(CALL) == []
    assert client.echo() == 0


# --- peers that are dead or old --------------------------------------------------------------------------------------


def test_a_peer_that_answers_no_ping_is_given_up(serve, raw):
    """A peer that reads but never acknowledges a ping loses its connection, and its call is cancelled."""
    server = serve(keepalive_time=0.2, keepalive_timeout=0.3)
    dead, alive = raw(server), raw(server)
    assert dead.echo() == 0
    assert alive.echo() == 0
    held = dead.request("Hold")
    dead.data(held, dead.frame(b"x"), end=True)
    number = server.wait(CALL, "Hold")[0][1]
    dead.sock.settimeout(0.05)
    until = time.monotonic() + PATIENCE
    gone = False
    while not gone and time.monotonic() < until:
        alive.pump(0.01)  # acknowledges
        try:
            gone = dead.sock.recv(1 << 16) == b""  # read, and thrown away
        except TimeoutError:
            continue
        except ConnectionError:
            gone = True
    assert gone
    server.wait(CANCEL, call=number)
    eventually(lambda: server.wire.figures().connections == 1, "only the live one")
    assert alive.echo() == 0


def test_an_old_connection_ends_without_an_error(serve, call, raw):
    """A connection over its age is told to go; calls in progress end well, and callers go on with another."""
    server = serve(max_connection_age=0.3, max_connection_age_grace=5.0)
    client = raw(server)
    held = client.request("Hold")
    client.data(held, client.frame(b"x"), end=True)
    number = server.wait(CALL, "Hold")[0][1]
    channel = server.channel()
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        assert call(channel, "Echo", b"good", wait_for_ready=True) == b"good"
        time.sleep(0.01)
    assert server.wire.figures().connections_total >= 4
    server.answer([(1, number, b"late")])
    client.sock.settimeout(PATIENCE)
    received = bytearray()
    while b"late" not in received:
        data = client.sock.recv(1 << 16)
        assert data, "closed with a call in progress"
        received += data
    eventually(lambda: server.wire.figures().connections <= 2, "the old ones gone")
