"""What the native front end refuses by itself, and in which words."""

import gzip
import struct

import grpc
import psutil
import pytest

pytest.importorskip("forebay_native", reason="the native front end is not built")

from forebay_server.wire.port import CALL, CANCEL, FAIL, RESPOND, SEND, Failure
from tests.server.wire.native.rig import PATIENCE, SERVER, exposure, failure, frame, nothing, take, unary
from tests.waiting import eventually

pytestmark = pytest.mark.native


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
    eventually(lambda: wire.figures().held_bytes == 0)


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
    eventually(lambda: wire.figures().held_bytes == 8)
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
    eventually(lambda: wire.figures().held_bytes == 605)
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
    eventually(lambda: wire.figures().held_bytes == 2009)
    client.close()
    eventually(lambda: wire.figures().calls == 0)
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
