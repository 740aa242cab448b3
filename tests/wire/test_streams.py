"""Streams: order, half-close, credits, full outboxes, slow readers, cancellation, many at once."""

import math
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from forebay_server.wire.port import (
    CALL,
    CANCEL,
    CREDIT,
    FAIL,
    FINISH,
    HALF_CLOSE,
    MESSAGE,
    OPEN,
    SEND,
    WRITABLE,
    Failure,
)
from tests.waiting import eventually

PATH = "/wire.test.Test/"


class Conversation:
    """The caller's side of a bidirectional stream, one message at a time."""

    def __init__(self, channel, method, timeout=10):
        self._out = queue.SimpleQueue()
        self.call = channel.stream_stream(PATH + method)(iter(self._out.get, None), timeout=timeout)

    def send(self, *messages):
        for message in messages:
            self._out.put(message)

    def half_close(self):
        self._out.put(None)

    def receive(self):
        return next(self.call)

    def rest(self):
        return list(self.call)


@pytest.fixture
def talk(channel):
    """Opens a stream: `talk("Chat")`."""
    conversations = []

    def start(method, to=channel, **options):
        conversation = Conversation(to, method, **options)
        conversations.append(conversation)
        return conversation

    yield start
    for conversation in conversations:
        conversation.half_close()
        conversation.call.cancel()


def test_ping_pong(talk):
    """Each message of a bidirectional stream is answered before the next is sent."""
    stream = talk("Chat")
    for index in range(20):
        stream.send(b"%d" % index)
        assert stream.receive() == b"%d" % index
    stream.half_close()
    assert stream.rest() == []
    assert stream.call.code() is grpc.StatusCode.OK


def test_an_empty_stream(server, talk):
    """A stream without messages is opened, half-closed, and finished."""
    stream = talk("Chat")
    stream.half_close()
    assert stream.rest() == []
    assert server.kinds(server.wait(OPEN)[0][1]) == [OPEN, HALF_CLOSE]


def test_many_messages_stay_in_order(server, talk):
    """Messages come and go in order, and the half-close is last."""
    stream = talk("Chat")
    messages = [b"%d" % index for index in range(2000)]
    stream.send(*messages)
    stream.half_close()
    assert stream.rest() == messages
    number = server.wait(OPEN)[0][1]
    assert [event[3] for event in server.of(MESSAGE)] == messages
    assert server.kinds(number) == [OPEN, *[MESSAGE] * 2000, HALF_CLOSE]


def test_what_an_opening_carries(server, channel):
    """OPEN has no body, but deadline, peer and metadata; later events have none of these."""
    call = channel.stream_stream(PATH + "Chat")(iter([b"a"]), timeout=9, metadata=[("x-one", "1")])
    assert list(call) == [b"a"]
    (opened,) = server.wait(OPEN)
    assert opened[3] is None
    assert opened[4] < math.inf
    assert opened[5].address.startswith("127.0.0.1:")
    assert list(opened[6]) == [("x-one", "1")]
    (message,) = server.wait(MESSAGE)
    assert message[5:] == (None, None)


def test_every_event_names_the_method_of_its_call(serve, raw):
    """All kinds of events carry the index of their call's method, by which they are handed to a service."""
    server = serve(outbox_bytes=1000)
    client = raw(server)
    chat, manual = client.request("Chat"), client.request("Manual")
    client.data(chat, client.frame(b"a"), end=True)
    assert client.status(chat) == 0
    number = server.wait(OPEN, "Manual")[0][1]
    server.answer([(SEND, number, bytes(2000))])
    server.wait(WRITABLE, "Manual")
    client.h2.reset_stream(manual, 8)
    client.flush()
    server.wait(CANCEL, "Manual")
    held = client.request("Hold")
    client.data(held, client.frame(b""), end=True)
    server.wait(CALL, "Hold")
    client.h2.reset_stream(held, 8)
    client.flush()
    server.wait(CANCEL, "Hold")
    methods = {}
    for event in server.events:
        methods.setdefault(event[1], set()).add(event[2])
    assert len(methods) == 3
    assert all(len(indices) == 1 for indices in methods.values())


def test_no_message_beyond_the_credit(server, talk):
    """A message is delivered only for a credit, and each credit is for one message."""
    stream = talk("Manual")
    stream.send(*[b"%d" % index for index in range(10)])
    number = server.wait(OPEN)[0][1]
    server.answer([(SEND, number, b"seen")])
    assert stream.receive() == b"seen"
    assert server.of(MESSAGE) == []
    server.answer([(CREDIT, number, 2), (CREDIT, number, 1)])
    server.wait(MESSAGE, count=3)
    server.answer([(SEND, number, b"seen")])
    assert stream.receive() == b"seen"
    assert [event[3] for event in server.of(MESSAGE)] == [b"0", b"1", b"2"]
    stream.half_close()
    server.answer([(CREDIT, number, 100)])
    server.wait(HALF_CLOSE)
    assert len(server.of(MESSAGE)) == 10
    server.answer([(FINISH, number, None)])


@pytest.mark.parametrize("adapter", [pytest.param("native", marks=pytest.mark.native)], indirect=True)
def test_a_half_close_needs_no_credit(server, talk):
    """A half-close is delivered without credit.

    Native only: grpcio shows it to a read alone, and reads wait for credit.
    """
    stream = talk("Manual")
    stream.half_close()
    number = server.wait(OPEN)[0][1]
    server.wait(HALF_CLOSE, call=number)
    server.answer([(FINISH, number, None)])


def test_a_stream_that_is_not_read_holds_a_window(serve, raw):
    """A caller without credit gets to send the stream's receive window, and no more."""
    server = serve(stream_window_bytes=65536)
    client = raw(server)
    stream = client.request("Manual")
    number = server.wait(OPEN)[0][1]
    sent = 0
    for _ in range(200):
        room = min(client.h2.local_flow_control_window(stream), client.h2.max_outbound_frame_size, 16000)
        if room > 0:
            client.data(stream, bytes(room))
            sent += room
        client.pump(0.002)
    assert 65535 <= sent <= 3 * 65536
    assert server.wire.figures().held_bytes <= 3 * 65536
    server.answer([(FAIL, number, Failure(3, "enough"))])
    assert client.status(stream) == 3


def test_a_stream_can_fail_before_any_message(server, talk):
    """A stream that fails at once does so with trailers only, details included."""
    stream = talk("Manual")
    number = server.wait(OPEN)[0][1]
    server.answer([(FAIL, number, Failure(5, "no such model", b"details"))])
    with pytest.raises(grpc.RpcError) as caught:
        stream.receive()
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "no such model")
    assert dict(caught.value.trailing_metadata())["grpc-status-details-bin"] == b"details"


def test_a_stream_can_fail_after_messages(server, talk):
    """What was sent before an error arrives before it."""
    stream = talk("Manual")
    number = server.wait(OPEN)[0][1]
    server.answer([(SEND, number, b"1"), (SEND, number, b"2"), (FAIL, number, Failure(10, "lost"))])
    assert [stream.receive(), stream.receive()] == [b"1", b"2"]
    with pytest.raises(grpc.RpcError) as caught:
        stream.receive()
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.ABORTED, "lost")


def test_a_stream_can_finish_before_the_caller(server, talk):
    """A server may end a stream whose caller still sends; nothing is delivered afterwards."""
    stream = talk("Manual")
    number = server.wait(OPEN)[0][1]
    server.answer([(CREDIT, number, 10), (FINISH, number, None)])
    assert stream.rest() == []
    stream.send(b"late")
    eventually(server.idle, "idle")
    assert CANCEL not in server.kinds(number)


def test_nothing_follows_the_last_action(server, talk):
    """Actions after FINISH are dropped."""
    stream = talk("Manual")
    number = server.wait(OPEN)[0][1]
    server.answer([(SEND, number, b"1"), (FINISH, number, None), (SEND, number, b"2"), (CREDIT, number, 1)])
    assert stream.rest() == [b"1"]


def test_a_cancelled_stream_is_reported_once(server, talk):
    """A caller's cancellation of a stream comes up as one CANCEL, and actions on it are dropped."""
    stream = talk("Chat")
    stream.send(b"a")
    assert stream.receive() == b"a"
    stream.call.cancel()
    number = server.wait(CANCEL)[0][1]
    server.answer([(SEND, number, b"late"), (FINISH, number, None)])
    assert server.kinds(number) == [OPEN, MESSAGE, CANCEL]


def test_a_cancellation_is_never_a_half_close(server, raw):
    """A reset stream does not look like one that its caller ended, which would commit half a request."""
    client = raw()
    for _ in range(100):
        stream = client.request("Chat")
        client.data(stream, client.frame(b"a"))
        client.h2.reset_stream(stream, 8)
        client.flush()
    assert client.echo() == 0
    server.wait(CANCEL, "Chat", count=len(server.of(OPEN, "Chat")))
    eventually(server.idle, "idle")
    assert server.of(HALF_CLOSE) == []


def test_a_lost_connection_cancels_its_streams(server, raw):
    """Streams of a connection that is gone are reported as gone, and not as half-closed."""
    client = raw()
    for _ in range(3):
        client.data(client.request("Chat"), client.frame(b"a"))
    server.wait(MESSAGE, count=3)
    client.close()
    server.wait(CANCEL, count=3)
    assert server.of(HALF_CLOSE) == []


def test_a_stream_expires(server, talk):
    """The deadline of a stream ends it for both sides."""
    stream = talk("Manual", timeout=0.15)
    with pytest.raises(grpc.RpcError) as caught:
        stream.receive()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    server.wait(CANCEL)


def test_a_message_over_the_limit_ends_a_stream(serve, talk):
    """A message over `max_receive_bytes` fails the stream, which is then gone."""
    server = serve(max_receive_bytes=10_000)
    stream = talk("Chat", server.channel())
    stream.send(bytes(10_000))
    assert stream.receive() == bytes(10_000)
    stream.send(bytes(10_001))
    with pytest.raises(grpc.RpcError) as caught:
        stream.receive()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    server.wait(CANCEL)
    assert server.of(HALF_CLOSE) == []


def test_a_response_over_the_limit_ends_a_stream(serve, talk):
    """A message over `max_send_bytes` fails the stream after what was sent before, and the service is told."""
    server = serve(max_send_bytes=10_000)
    stream = talk("Manual", server.channel())
    number = server.wait(OPEN)[0][1]
    server.answer([(SEND, number, b"a"), (SEND, number, bytes(10_001))])
    assert stream.receive() == b"a"
    with pytest.raises(grpc.RpcError) as caught:
        stream.receive()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == "refusal: response too large"
    server.wait(CANCEL, call=number)


def test_a_compressed_message_ends_a_stream(server, channel):
    """Compressed messages are refused on streams, too."""
    call = channel.stream_stream(PATH + "Chat")(iter([b"x" * 1000]), timeout=10, compression=grpc.Compression.Gzip)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert server.of(MESSAGE) == []


@pytest.mark.parametrize("adapter", [pytest.param("native", marks=pytest.mark.native)], indirect=True)
def test_a_truncated_message_on_a_stream_is_no_half_close(server, raw):
    """A stream that ends inside a message fails; the messages before are delivered, a half-close is not.

    Native only: grpcio shows a truncated message as an ordinary end of the stream.
    """
    client = raw()
    stream = client.request("Manual")
    number = server.wait(OPEN)[0][1]
    server.answer([(CREDIT, number, 10)])
    client.data(stream, client.frame(b"whole") + client.frame(b"part", length=100), end=True)
    server.wait(CANCEL, call=number)
    assert client.status(stream) != 0
    assert server.kinds(number) == [OPEN, MESSAGE, CANCEL]


def test_server_streams(server, channel):
    """A server stream has one request and many answers; its request comes as a call."""
    answers = list(channel.unary_stream(PATH + "Pour")(b"100 1000", timeout=10))
    assert answers == [bytes(1000)] * 100
    assert server.kinds(server.wait(CALL)[0][1]) == [CALL]


def test_messages_of_8_mib_on_a_stream(talk):
    """Large messages pass on streams, both ways."""
    stream = talk("Chat")
    body = bytes(8 << 20)
    stream.send(body, b"small")
    assert stream.receive() == body
    assert stream.receive() == b"small"
    stream.half_close()
    assert stream.rest() == []


def test_100_streams_at_once(server, channel):
    """A hundred streams of one connection go on side by side, and none gets another's messages."""
    together = threading.Barrier(100)

    def talk(index):
        stream = Conversation(channel, "Chat")
        stream.send(b"%d" % index)
        answers = [stream.receive()]
        together.wait(30)
        stream.send(b"%d again" % index)
        stream.half_close()
        return answers + stream.rest()

    with ThreadPoolExecutor(100) as pool:
        for index, answers in enumerate(pool.map(talk, range(100))):
            assert answers == [b"%d" % index, b"%d again" % index]
    assert len(server.wait(HALF_CLOSE, count=100)) == 100


# --- slow readers ----------------------------------------------------------------------------------------------------


def test_a_full_outbox_is_reported_and_drains(serve, raw):
    """`answer` reports a stream as full over `outbox_bytes`; WRITABLE comes once, when it has drained below half."""
    server = serve(outbox_bytes=100_000)
    client = raw(server, window=16_000)
    stream = client.request("Manual")
    number = server.wait(OPEN)[0][1]
    assert server.answer([(SEND, number, bytes(10_000))] * 8) == []
    assert server.answer([(SEND, number, bytes(10_000))] * 12) == [number]
    assert server.answer([(SEND, number, bytes(10_000))]) in ([], [number])  # said once, or again
    assert server.of(WRITABLE) == []
    while not server.of(WRITABLE):
        client.read_on(stream)
    assert 21 * 10_005 - len(client.received(stream)) < 50_000 + 2 * 16_000 + 65_536
    server.answer([(FINISH, number, None)])
    while not client.read_on(stream):
        pass
    assert client.status(stream) == 0
    assert len(client.received(stream)) == 21 * 10_005
    assert len(server.of(WRITABLE)) == 1


def test_a_reader_that_takes_its_time_is_not_cut(serve, raw):
    """A slow reader that goes on reading gets everything, however long it takes in all."""
    server = serve(write_stall=0.4, outbox_bytes=10_000)
    client = raw(server, window=4_000)
    stream = client.request("Pour")
    client.data(stream, client.frame(b"16 2000"), end=True)
    while not client.read_on(stream):
        threading.Event().wait(0.1)
    assert client.status(stream) == 0
    assert len(client.received(stream)) == 16 * 2005


def test_a_reader_that_never_reads_is_cut(serve, raw, channel, call):
    """A stream whose results nobody reads for `write_stall` is gone; others are not harmed."""
    server = serve(write_stall=0.2, outbox_bytes=10_000)
    client = raw(server, window=1_000)
    stream = client.request("Manual")
    number = server.wait(OPEN)[0][1]
    assert server.answer([(SEND, number, bytes(8_000))] * 3) == [number]
    server.wait(CANCEL, call=number)
    assert server.of(WRITABLE) == []
    assert client.echo(b"x") == 0
    for _ in range(200):
        if client.read_on(stream):
            break
    assert client.status(stream) in {8, None}
    assert len(client.received(stream)) < 24_000


def test_an_answer_that_nobody_reads_is_cut(serve, raw):
    """A unary answer that is not read is given up as well, and frees what it held."""
    server = serve(write_stall=0.2)
    client = raw(server, window=1_000)
    stream = client.request("Sized")
    client.data(stream, client.frame(b"1000000"), end=True)
    server.wait(CALL)
    client.close()
    eventually(server.idle, "idle")
