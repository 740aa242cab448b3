"""Start, exposures, waiting and waking, the watchdog, drain and close."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import grpc
import pytest

from forebay_server.errors import ConfigError
from forebay_server.wire.port import CALL, CANCEL, CREDIT, FINISH, MESSAGE, OPEN, RESPOND, SEND, Exposure
from tests.waiting import eventually

TEST = "/wire.test.Test/"
CHECK = "/wire.test.Probe/Check"


def exposure(name, *methods, address="127.0.0.1:0", **options):
    return Exposure(name=name, address=address, methods=frozenset(methods), **options)


# --- exposures -------------------------------------------------------------------------------------------------------


def test_an_exposure_offers_its_methods_only(serve, call, error):
    """A method is UNIMPLEMENTED on an exposure that does not list it, and each call says where it came in."""
    server = serve(exposures=[exposure("public", TEST + "Echo"), exposure("probe", CHECK)])
    public, probe = server.channel(0), server.channel(1)
    assert call(public, "Echo", b"a") == b"a"
    assert call(probe, CHECK, b"b") == b"b"
    assert error(public, CHECK).code() is grpc.StatusCode.UNIMPLEMENTED
    assert error(probe, "Echo").code() is grpc.StatusCode.UNIMPLEMENTED
    assert [event[5].exposure for event in server.of(CALL)] == [0, 1]


def test_any_free_port_is_resolved(serve):
    """Port 0 becomes the port that was bound, with the host as it was given."""
    server = serve(exposures=[exposure("public", CHECK), exposure("all", CHECK, address="0.0.0.0:0")])
    assert server.addresses[0].rpartition(":")[0] == "127.0.0.1"
    assert server.addresses[1].rpartition(":")[0] == "0.0.0.0"
    assert all(int(address.rpartition(":")[2]) > 0 for address in server.addresses)


def test_ipv6(serve, call):
    """IPv6 addresses are written in brackets, in the exposure and in the peer."""
    server = serve(exposures=[exposure("public", TEST + "Echo", address="[::1]:0")])
    assert call(server.channel(), "Echo", b"a") == b"a"
    assert server.of(CALL)[0][5].address.startswith("[::1]:")


def test_unix_sockets(serve, call, tmp_path):
    """An exposure may be a Unix socket; its callers have no address."""
    address = f"unix:{tmp_path / 'forebay.sock'}"
    server = serve(exposures=[exposure("operator", TEST + "Echo", address=address)])
    assert server.addresses == [address]
    assert call(server.channel(), "Echo", b"a") == b"a"
    assert server.of(CALL)[0][5].address == "unix:"


@pytest.mark.parametrize("adapter", ["grpc.aio"], indirect=True)
def test_unix_sockets_with_grpcios_own_authority(serve, call, tmp_path):
    """grpcio names a Unix socket by its path, escaped.

    Not on the native adapter: HTTP/2 libraries in Rust refuse such an authority, so that a grpcio caller has to set
    `grpc.default_authority`, as the other tests do.
    """
    path = str(tmp_path / "forebay.sock")
    server = serve(exposures=[exposure("operator", TEST + "Echo", address=f"unix:{path}")])
    assert call(server.channel(authority=path.replace("/", "%2F")), "Echo", b"a") == b"a"


def test_the_socket_of_a_dead_server_is_replaced(serve, call, tmp_path):
    """A socket file that nobody listens on is in nobody's way."""
    path = tmp_path / "forebay.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = serve(exposures=[exposure("operator", TEST + "Echo", address=f"unix:{path}")])
    assert call(server.channel(), "Echo", b"a") == b"a"


def test_a_taken_port_is_an_error(serve, server, channel, call):
    """A second server on a port fails with one sentence that names the exposure; the first is not harmed."""
    with pytest.raises(ConfigError) as caught:
        serve(exposures=[exposure("probe", CHECK), exposure("public", TEST + "Echo", address=server.address)])
    assert server.address in str(caught.value)
    assert "public" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert call(channel, "Echo", b"good") == b"good"


def test_a_taken_unix_socket_is_an_error(serve, call, tmp_path):
    """A second server on a socket file fails as well, and leaves the first its file."""
    exposures = [exposure("operator", TEST + "Echo", address=f"unix:{tmp_path / 'forebay.sock'}")]
    server = serve(exposures=exposures)
    with pytest.raises(ConfigError):
        serve(exposures=exposures)
    assert call(server.channel(), "Echo", b"good") == b"good"


def test_a_file_is_not_a_socket(serve, tmp_path):
    """A file that is not a socket is never removed to make room for one."""
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigError):
        serve(exposures=[exposure("operator", CHECK, address=f"unix:{path}")])
    assert path.read_text() == "data"


def test_ports_can_be_shared_where_asked_for(serve, call):
    """With `reuse_port` two servers share a port."""
    first = serve(exposures=[exposure("public", TEST + "Echo", reuse_port=True)])
    second = serve(exposures=[exposure("public", TEST + "Echo", address=first.address, reuse_port=True)])
    assert second.address == first.address
    assert call(second.channel(), "Echo", b"a") == b"a"


# --- take and wake ---------------------------------------------------------------------------------------------------


def test_take_waits_for_its_timeout(server):
    """`take` returns nothing at its timeout, and only looks with a timeout of 0."""
    server.stop()
    started = time.monotonic()
    assert server.wire.take(10, 0.0) == []
    assert time.monotonic() - started < 0.05
    assert server.wire.take(10, 0.1) == []
    assert 0.09 < time.monotonic() - started < 2
    server.close()


def test_take_gives_out_no_more_than_asked(server, channel):
    """`take` gives out at most `most` events, in order; the rest waits."""
    server.stop()
    futures = []
    for index in range(5):
        futures.append(channel.unary_unary(TEST + "Echo").future(b"%d" % index, timeout=10))
        eventually(lambda index=index: server.wire.figures().calls == index + 1, "the call is there")
    events = []
    while len(events) < 5:
        batch = server.wire.take(2, 5.0)
        assert 1 <= len(batch) <= 2
        events += batch
    assert [event[3] for event in events] == [b"%d" % index for index in range(5)]
    server.wire.answer([(RESPOND, event[1], event[3]) for event in events])
    assert [future.result() for future in futures] == [b"%d" % index for index in range(5)]
    server.close(1.0)


def test_wake_ends_a_wait(server):
    """`wake` from another thread ends the present `take`, or else the next one."""
    server.stop()
    timer = threading.Timer(0.1, server.wire.wake)
    started = time.monotonic()
    timer.start()
    assert server.wire.take(10, 30.0) == []
    assert time.monotonic() - started < 5
    timer.join()
    server.wire.wake()
    assert server.wire.take(10, 30.0) == []
    assert time.monotonic() - started < 5
    server.close()


def test_waiting_does_not_hold_the_gil(server):
    """While one thread waits in `take`, others run Python."""
    before = time.thread_time()
    count = 0
    until = time.monotonic() + 0.1
    while time.monotonic() < until:
        count += 1
    assert count > 1000
    assert time.thread_time() - before > 0.01


# --- the watchdog ----------------------------------------------------------------------------------------------------

WATCHED = """
    import sys, time
    from forebay_server.wire.choose import open_wire
    from forebay_server.wire.port import *

    no = Failure(13, "")
    refusals = Refusals(message_too_large=no, response_too_large=no, bytes_held=no, deadline_expired=no,
                        slow_reader=no, slow_sender=no, draining=no, compressed=no)
    exposure = Exposure(name="public", address="127.0.0.1:0", methods=frozenset())
    wire = open_wire(sys.argv[1], WireConfig(methods=[], exposures=[exposure], refusals=refusals))
    wire.start()
    wire.watch(0.4)
    wire.take(1, 1.5)       # waiting in `take` does not count
    for _ in range(10):     # nor does work in small pieces
        time.sleep(0.1)
        wire.take(1, 0.0)
    wire.watch(None)
    time.sleep(1.0)         # nor does anything while it rests
    wire.watch(0.4)
    print("stuck", flush=True)
    time.sleep(30)
    print("alive")
"""


def test_the_watchdog_ends_a_process_that_is_stuck(adapter):
    """A process whose `take` is not called within the budget ends with its code, and shows where it was."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WATCHED), adapter],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stdout.split() == ["stuck"]
    assert done.returncode == {"native": 70, "grpc.aio": 1}[adapter]
    assert "most recent call first" in done.stderr


# --- drain and close -------------------------------------------------------------------------------------------------


def test_a_drain_lets_calls_end(serve, call, error):
    """While draining, delivered calls are answered, later ones are UNAVAILABLE, and the probe goes on."""
    server = serve(
        exposures=[
            exposure("public", *(TEST + name for name in ("Echo", "Hold", "Manual"))),
            exposure("probe", CHECK, outlives_drain=True),
        ]
    )
    channel = server.channel()
    held = channel.unary_unary(TEST + "Hold").future(b"held", timeout=10)
    stream = channel.stream_stream(TEST + "Manual")(iter([b"a"]), timeout=10)
    number, streamed = server.wait(CALL, "Hold")[0][1], server.wait(OPEN)[0][1]
    server.wire.drain()
    late = server.channel()
    assert error(late, "Echo", timeout=2).code() is grpc.StatusCode.UNAVAILABLE
    assert call(server.channel(1), CHECK, b"alive") == b"alive"
    server.answer([(CREDIT, streamed, 1)])
    server.wait(MESSAGE, call=streamed)
    server.answer([(RESPOND, number, b"answered"), (SEND, streamed, b"last"), (FINISH, streamed, None)])
    assert held.result() == b"answered"
    assert list(stream) == [b"last"]
    assert server.of(CANCEL) == []


def test_no_call_is_lost_by_a_drain(server, call, adapter):
    """Under load, every call that was delivered before or during a drain is answered; others are UNAVAILABLE.

    On grpcio, those that meet a connection before its GOAWAY are CANCELLED instead.
    """
    refused = {grpc.StatusCode.UNAVAILABLE} | ({grpc.StatusCode.CANCELLED} if adapter == "grpc.aio" else set())
    channel = server.channel()
    outcomes = []
    go_on = True

    def load():
        while go_on:
            try:
                outcomes.append(call(channel, "Echo", b"x") == b"x")
            except grpc.RpcError as exc:
                outcomes.append(exc.code())
                return

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    server.wire.drain()
    time.sleep(0.1)
    go_on = False
    for thread in threads:
        thread.join()
    assert outcomes.count(True) > 8
    assert set(outcomes) <= {True} | refused
    assert outcomes.count(True) == len(server.of(CALL))


def test_close_sends_what_was_answered(server, channel, call):
    """What was answered just before `close` still arrives."""
    call(channel, "Echo")
    future = channel.unary_unary(TEST + "Hold").future(b"", timeout=10)
    number = server.wait(CALL, "Hold")[0][1]
    server.stop()
    server.wire.answer([(RESPOND, number, bytes(1 << 20))])
    server.close(5.0)
    assert future.result() == bytes(1 << 20)


def test_close_fails_what_is_left(server, channel):
    """Calls that nobody answered get the prepared refusal, and `close` does not wait for them."""
    held = channel.unary_unary(TEST + "Hold").future(b"", timeout=10)
    stream = channel.stream_stream(TEST + "Manual")(iter([b"a"]), timeout=10)
    server.wait(CALL, "Hold")
    server.wait(OPEN)
    started = time.monotonic()
    server.close(5.0)
    assert time.monotonic() - started < 4
    assert (held.code(), held.details()) == (grpc.StatusCode.UNAVAILABLE, "refusal: draining")
    assert (stream.code(), stream.details()) == (grpc.StatusCode.UNAVAILABLE, "refusal: draining")


def test_close_does_not_wait_for_ever(serve, raw):
    """A caller that does not read its answer holds up `close` no longer than the grace."""
    server = serve()
    client = raw(server, window=1000)
    stream = client.request("Sized")
    client.data(stream, client.frame(b"1000000"), end=True)
    server.wait(CALL)
    started = time.monotonic()
    server.close(0.2)
    assert 0.15 < time.monotonic() - started < 3


def test_a_closed_address_is_free(serve, call):
    """After `close` the address can be listened on again."""
    first = serve()
    call(first.channel(), "Echo")
    first.hang_up()
    first.close()
    second = serve(exposures=[exposure("public", TEST + "Echo", address=first.address)])
    assert call(second.channel(), "Echo", b"a") == b"a"


def test_signals_interrupt_a_wait_of_the_main_thread(server):
    """A Python signal handler runs while the main thread waits in `take`, given `set_wakeup_fd` and `wake`."""
    server.stop()
    seen = []
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    previous = signal.signal(signal.SIGUSR2, lambda *_: seen.append(True))
    old_fd = signal.set_wakeup_fd(writer.fileno())
    waker = threading.Thread(target=lambda: (reader.recv(1), server.wire.wake()))
    waker.start()
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR2)).start()
        started = time.monotonic()
        server.wire.take(1, 20.0)
        assert time.monotonic() - started < 5
        assert seen == [True]
    finally:
        signal.set_wakeup_fd(old_fd)
        signal.signal(signal.SIGUSR2, previous)
        waker.join(5)
        reader.close()
        writer.close()
    server.close()


def test_old_connections_are_told_to_go(serve, call, raw):
    """A connection over `max_connection_age` is told to go away and closed; its callers just connect again."""
    server = serve(max_connection_age=0.3, max_connection_age_grace=0.3)
    client = raw(server)
    assert client.echo() == 0
    client.until(lambda client: client.closed, patience=5)
    assert client.closed
    assert call(server.channel(), "Echo", b"good") == b"good"
