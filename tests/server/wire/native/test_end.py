"""How the native front end ends: drain, close, and the watchdog."""

import pathlib
import socket
import subprocess
import sys
import textwrap
import time

import grpc
import psutil
import pytest

pytest.importorskip("forebay_native", reason="the native front end is not built")

from forebay_server.wire.port import RESPOND, SEND
from tests.server.wire.native.rig import PATIENCE, SERVER, exposure, failure, frame, take, unary
from tests.waiting import eventually

pytestmark = pytest.mark.native


def test_drain(start, dial):
    """A drain ends listening and lets calls end; an exposure that outlives it goes on."""
    wire, public, probe = start(exposure(), exposure(name="probe", outlives_drain=True))
    channel, probing = dial(public), dial(probe)
    running = unary(channel, b"running")
    number = take(wire)[0][1]
    wire.drain()
    eventually(lambda: refuses(public))
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
