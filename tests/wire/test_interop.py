"""The cases of gRPC's interop suite that concern a server, by their own names and sizes."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
import pytest

from forebay_server.wire.port import CANCEL, OPEN, Failure

PATH = "/wire.test.Test/"
LARGE_REQUEST, LARGE_RESPONSE = 271_828, 314_159


def test_empty_unary(channel, call):
    """A call with an empty message gets an empty message."""
    assert call(channel, "Echo", b"") == b""


def test_large_unary(channel, call):
    """A call of 271,828 bytes is answered, and one with 314,159."""
    assert call(channel, "Echo", bytes(LARGE_REQUEST)) == bytes(LARGE_REQUEST)
    assert call(channel, "Sized", b"%d" % LARGE_RESPONSE) == bytes(LARGE_RESPONSE)


def test_client_streaming(channel):
    """27,182, 8, 1,828 and 45,904 bytes go up; the sum that comes back is 74,922."""
    sizes = [27_182, 8, 1_828, 45_904]
    answers = channel.stream_stream(PATH + "Chat")(iter([bytes(size) for size in sizes]), timeout=10)
    assert sum(len(answer) for answer in answers) == 74_922


def test_server_streaming(channel):
    """One request gets several answers, in order and of the right sizes."""
    answers = list(channel.unary_stream(PATH + "Pour")(b"4 31415", timeout=10))
    assert [len(answer) for answer in answers] == [31_415] * 4


def test_ping_pong(channel):
    """Full-duplex: messages of 31,415, 9, 2,653 and 58,979 bytes come back one by one."""
    turn = threading.Semaphore(1)
    sizes = [31_415, 9, 2_653, 58_979]

    def requests():
        for size in sizes:
            turn.acquire()
            yield bytes(size)

    received = []
    for answer in channel.stream_stream(PATH + "Chat")(requests(), timeout=10):
        received.append(len(answer))
        turn.release()
    assert received == sizes


def test_empty_stream(channel):
    """Full-duplex without a message: nothing comes, and OK."""
    call = channel.stream_stream(PATH + "Chat")(iter([]), timeout=10)
    assert list(call) == []
    assert call.code() is grpc.StatusCode.OK


def test_custom_metadata(server, channel, call):
    """Initial metadata of both kinds reaches the server."""
    sent = [("x-grpc-test-echo-initial", "test_initial_metadata_value"), ("x-grpc-test-echo-trailing-bin", b"\xab" * 3)]
    call(channel, "Echo", bytes(LARGE_REQUEST), metadata=sent)
    assert sorted(server.events[0][6]) == sorted(sent)


def test_status_code_and_message(server, channel, error):
    """A status that the server sets is what the caller gets."""
    server.failure = Failure(2, "test status message")
    caught = error(channel, "Fail")
    assert (caught.code(), caught.details()) == (grpc.StatusCode.UNKNOWN, "test status message")


def test_special_status_message(server, channel, error):
    """White space and characters beyond the BMP pass in a status message."""
    message = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP \U0001f608\t\n"
    server.failure = Failure(2, message)
    assert error(channel, "Fail").details() == message


def test_unimplemented_method_and_service(channel, error):
    """Unknown methods and services are UNIMPLEMENTED."""
    assert error(channel, "UnimplementedCall").code() is grpc.StatusCode.UNIMPLEMENTED
    assert error(channel, "/grpc.testing.UnimplementedService/Call").code() is grpc.StatusCode.UNIMPLEMENTED


def test_cancel_after_begin(server, channel):
    """A stream that is cancelled before its first message is CANCELLED for the caller, and gone for the server."""
    never = threading.Event()
    call = channel.stream_stream(PATH + "Chat")((b"" for _ in iter(never.wait, True)), timeout=10)
    server.wait(OPEN)
    call.cancel()
    never.set()
    assert call.code() is grpc.StatusCode.CANCELLED
    server.wait(CANCEL)


def test_cancel_after_first_response(server, channel):
    """A stream that is cancelled after its first answer likewise."""
    more = threading.Event()

    def requests():
        yield bytes(27_182)
        more.wait()

    call = channel.stream_stream(PATH + "Chat")(requests(), timeout=10)
    assert len(next(call)) == 27_182
    call.cancel()
    more.set()
    assert call.code() is grpc.StatusCode.CANCELLED
    server.wait(CANCEL)


def test_timeout_on_sleeping_server(server, channel):
    """A stream of 1 ms to a server that says nothing ends with DEADLINE_EXCEEDED."""
    more = threading.Event()
    call = channel.stream_stream(PATH + "Manual")((b"" for _ in iter(more.wait, True)), timeout=0.001)
    with pytest.raises(grpc.RpcError):
        next(call)
    more.set()
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_concurrent_large_unary(channel, call):
    """Many large calls at once are all answered in full."""
    with ThreadPoolExecutor(32) as pool:
        sizes = list(pool.map(lambda _: len(call(channel, "Echo", bytes(LARGE_REQUEST))), range(100)))
    assert sizes == [LARGE_REQUEST] * 100


def test_an_asyncio_client(server):
    """grpcio's asyncio client speaks unary calls and streams, cancels, and sees deadlines and statuses."""
    server.failure = Failure(9, "not ready")

    async def talk():
        async with grpc.aio.insecure_channel(server.address) as channel:
            echo = channel.unary_unary(PATH + "Echo")
            bodies = [b"%d" % index for index in range(50)]
            assert await asyncio.gather(*(echo(body, timeout=10) for body in bodies)) == bodies
            chat = channel.stream_stream(PATH + "Chat")(timeout=10)
            for body in bodies:
                await chat.write(body)
                assert await chat.read() == body
            await chat.done_writing()
            assert await chat.read() is grpc.aio.EOF
            cancelled = channel.stream_stream(PATH + "Chat")(timeout=10)
            await cancelled.write(b"a")
            assert await cancelled.read() == b"a"
            cancelled.cancel()
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await channel.unary_unary(PATH + "Fail")(b"", timeout=10)
            assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not ready")
            with pytest.raises(grpc.aio.AioRpcError) as late:
                await channel.unary_unary(PATH + "Hold")(b"", timeout=0.1)
            assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    asyncio.run(talk())
    server.wait(CANCEL, count=2)
