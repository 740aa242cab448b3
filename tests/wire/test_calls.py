"""Unary calls: statuses, metadata, deadlines, cancellation, limits, and calls that are not well formed."""

import math
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import h2.events
import h2.settings
import pytest

from forebay_server.wire.port import CALL, CANCEL, FAIL, HALF_CLOSE, RESPOND, SEND, Failure
from tests.waiting import eventually

PATH = "/wire.test.Test/"


def test_answers_with_the_message(channel, call):
    """A unary call gets the message that was given to RESPOND, and OK."""
    assert call(channel, "Echo", b"abc") == b"abc"


def test_an_empty_message_is_a_message(server, channel, call):
    """A message of no bytes arrives as one, both ways."""
    assert call(channel, "Echo", b"") == b""
    assert server.wait(CALL)[0][3] == b""


def test_messages_of_8_mib_both_ways(channel, call):
    """Large messages within the limit pass unharmed."""
    body = bytes(range(256)) * (8 << 12)
    assert call(channel, "Echo", body) == body


def test_many_calls_at_once_get_their_own_answers(channel, call):
    """Answers are never exchanged between calls of a connection."""
    with ThreadPoolExecutor(16) as pool:
        bodies = [b"%d" % index for index in range(400)]
        assert list(pool.map(lambda body: call(channel, "Echo", body), bodies)) == bodies


def test_every_call_has_a_number_of_its_own(server, channel, call):
    """A call is a positive integer that is never used twice."""
    for _ in range(20):
        call(channel, "Echo")
    numbers = [event[1] for event in server.wait(CALL, count=20)]
    assert len(set(numbers)) == 20
    assert min(numbers) > 0


def test_answers_may_come_from_any_thread_and_in_any_order(server, channel):
    """Held calls are answered by another thread than the one that takes, last first."""
    futures = [channel.unary_unary(PATH + "Hold").future(b"%d" % index, timeout=10) for index in range(5)]
    events = server.wait(CALL, "Hold", count=5)
    server.answer([(RESPOND, event[1], b"to " + event[3]) for event in reversed(events)])
    assert [future.result() for future in futures] == [b"to %d" % index for index in range(5)]


def test_calls_are_answered_while_arrivals_are_gathered(server, channel, call):
    """Arrivals may wait for each other, but not long, and nothing is lost or exchanged."""
    server.wire.gather(time.monotonic() + 60.0)
    with ThreadPoolExecutor(16) as pool:
        bodies = [b"%d" % index for index in range(200)]
        assert list(pool.map(lambda body: call(channel, "Echo", body), bodies)) == bodies
    server.wire.gather(0.0)
    assert call(channel, "Echo", b"last") == b"last"


def test_time_that_an_arrival_waits_for_others_is_the_callers(adapter, server, raw):
    """The deadline that the dispatcher sees does not count from when the rest was over."""
    if adapter != "native":
        pytest.skip("it does not gather")
    client = raw()
    server.wire.gather(time.monotonic() + 60.0)
    sent = []
    for _ in range(20):
        sent.append(time.monotonic())
        stream = client.request("Echo", ("grpc-timeout", "5S"))
        client.data(stream, client.frame(b""), end=True)
        assert client.status(stream) == 0
    deadlines = [event[4] for event in server.wait(CALL, "Echo", count=20)]
    # A thread that is not run in time may spoil some.
    assert sum(deadline <= at + 5.0 for deadline, at in zip(deadlines, sent, strict=True)) >= 10


# --- statuses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [*range(1, 17)])
def test_every_code_arrives(server, channel, error, code):
    """Each of gRPC's status codes reaches the caller with its message."""
    server.failure = Failure(code, f"code {code}")
    caught = error(channel, "Fail")
    assert (caught.code().value[0], caught.details()) == (code, f"code {code}")


@pytest.mark.parametrize(
    "message",
    ["", "plain", "100 % of %41", "\t tab and\r\nnew line ", "Grüße, 世界", "\U0001f600 beyond the BMP", "x" * 1000],
)
def test_messages_arrive_as_they_are(server, channel, error, message):
    """A status message passes unchanged, whatever has to be escaped on the wire."""
    server.failure = Failure(3, message)
    assert error(channel, "Fail").details() == message


def test_details_and_trailers_arrive(server, channel, error):
    """The bytes of google.rpc.Status and further trailers come with the status."""
    server.failure = Failure(8, "full", bytes(range(256)), (("grpc-retry-pushback-ms", "17"), ("x-more", "text")))
    trailers = dict(error(channel, "Fail").trailing_metadata())
    assert trailers["grpc-status-details-bin"] == bytes(range(256))
    assert trailers["grpc-retry-pushback-ms"] == "17"
    assert trailers["x-more"] == "text"


def test_each_of_many_failures_reaches_its_own_call(server, channel):
    """Failures that are answered together, some of them the same object, are not taken for each other."""
    futures = [channel.unary_unary(PATH + "Hold").future(b"%d" % index, timeout=10) for index in range(8)]
    full, broken = Failure(8, "full", b"\x08\x08", (("x-more", "text"),)), Failure(13, "broken")
    failures = [full, full, broken, broken, full, Failure(8, "another"), full, broken]
    events = server.wait(CALL, "Hold", count=8)
    server.answer([(FAIL, event[1], failures[int(event[3])]) for event in sorted(events, key=lambda event: event[3])])
    for future, failure in zip(futures, failures, strict=True):
        caught = future.exception()
        trailers = {key: value for key, value in caught.trailing_metadata() if not key.startswith("content")}
        details = {} if failure.details is None else {"grpc-status-details-bin": failure.details}
        assert (caught.code().value[0], caught.details()) == (failure.code, failure.message)
        assert trailers == dict(failure.trailers) | details


def test_errors_are_trailers_only(server, raw):
    """An error before any message is one HEADERS frame that ends the stream, so that proxies see it."""
    server.failure = Failure(14, "a b%", b"\x01\x02")
    client = raw()
    stream = client.request("Fail")
    client.data(stream, client.frame(b""), end=True)
    assert client.status(stream) == 14
    (response,) = client.of(h2.events.ResponseReceived, stream)
    assert response.stream_ended is not None
    assert not client.of(h2.events.TrailersReceived, stream)
    assert not client.of(h2.events.DataReceived, stream)
    headers = dict(response.headers)
    assert headers[":status"] == "200"
    assert headers["content-type"].startswith("application/grpc")
    assert headers["grpc-message"] == "a b%25"
    assert headers["grpc-status-details-bin"].rstrip("=") == "AQI"


def test_answers_are_headers_message_trailers(raw):
    """An answer is HEADERS, one message in DATA, and trailers with the status."""
    client = raw()
    stream = client.request("Echo")
    client.data(stream, client.frame(b"abc"), end=True)
    assert client.status(stream) == 0
    (response,) = client.of(h2.events.ResponseReceived, stream)
    assert response.stream_ended is None
    assert b"".join(event.data for event in client.of(h2.events.DataReceived, stream)) == client.frame(b"abc")
    (trailers,) = client.of(h2.events.TrailersReceived, stream)
    assert trailers.stream_ended is not None


def test_unknown_methods_are_unimplemented(channel, error, call):
    """Neither an unknown method nor an unknown service reaches the dispatcher."""
    assert error(channel, "Nothing").code() is grpc.StatusCode.UNIMPLEMENTED
    assert error(channel, "/no.such.Service/Echo").code() is grpc.StatusCode.UNIMPLEMENTED
    assert call(channel, "Echo", b"good") == b"good"


# --- metadata and peers ----------------------------------------------------------------------------------------------


def test_metadata_arrives(server, channel, call):
    """ASCII values arrive as text and `-bin` values as bytes, repeated keys in their order."""
    sent = [("x-one", "1"), ("traceparent", "00-0af7-b7ad-01"), ("x-bin", bytes(range(256))), ("x-one", "2")]
    call(channel, "Echo", metadata=sent)
    metadata = server.wait(CALL)[0][6]
    assert sorted(metadata, key=str) == sorted(sent, key=str)
    assert [value for key, value in metadata if key == "x-one"] == ["1", "2"]


def test_grpcs_own_keys_are_not_metadata(server, raw, channel, call):
    """Content-type, te, user-agent and grpc-* are not the caller's own; without others there is no metadata."""
    call(channel, "Echo")
    client = raw()
    stream = client.request("Echo", ("user-agent", "me"), ("grpc-timeout", "9S"), ("grpc-accept-encoding", "gzip"))
    client.data(stream, client.frame(b""), end=True)
    assert client.status(stream) == 0
    assert [event[6] for event in server.wait(CALL, count=2)] == [None, None]


def test_binary_metadata_without_padding_arrives(server, raw):
    """Base64 of `-bin` keys is accepted with and without its padding."""
    client = raw()
    stream = client.request("Echo", ("x-bin", "AQI"), ("y-bin", "AQI="))
    client.data(stream, client.frame(b""), end=True)
    assert client.status(stream) == 0
    assert dict(server.wait(CALL)[0][6]) == {"x-bin": b"\x01\x02", "y-bin": b"\x01\x02"}


def test_too_much_metadata_is_refused(serve, call, error):
    """Metadata over the limit is an error of the call, not of the connection."""
    server = serve(max_metadata_bytes=4096)
    channel = server.channel()
    caught = error(channel, "Echo", metadata=[("x-big", "x" * 8000)])
    assert caught.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call(channel, "Echo", b"good", metadata=[("x-fits", "x" * 1000)]) == b"good"


def test_the_peer_is_known(server, channel, call):
    """A call carries its exposure and its caller's address, and no identity without mutual TLS."""
    call(channel, "Echo")
    call(channel, "Echo")
    first, second = (event[5] for event in server.wait(CALL, count=2))
    host, _, port = first.address.rpartition(":")
    assert (first.exposure, host, first.identity) == (0, "127.0.0.1", None)
    assert 0 < int(port) < 65536
    assert first == second


# --- deadlines and cancellation --------------------------------------------------------------------------------------


def test_the_deadline_is_monotonic(server, channel, call):
    """A deadline arrives in `time.monotonic()` seconds; without one it is infinite."""
    before = time.monotonic()
    call(channel, "Echo", timeout=7)
    call(channel, "Echo", timeout=None)
    with_deadline, without = (event[4] for event in server.wait(CALL, count=2))
    assert before + 6.8 < with_deadline < time.monotonic() + 7.05
    assert without == math.inf


@pytest.mark.parametrize(("value", "seconds"), [("5S", 5), ("5000m", 5), ("2M", 120), ("1H", 3600), ("9000000u", 9)])
def test_units_of_the_timeout(server, raw, value, seconds):
    """All units of grpc-timeout are understood."""
    client = raw()
    stream = client.request("Echo", ("grpc-timeout", value))
    client.data(stream, client.frame(b""), end=True)
    assert client.status(stream) == 0
    assert server.wait(CALL)[0][4] - time.monotonic() == pytest.approx(seconds, rel=0.01, abs=1)


def test_an_expired_deadline_is_answered_and_reported(server, raw):
    """At its deadline a call gets DEADLINE_EXCEEDED from the server itself, and is reported as gone."""
    client = raw()
    started = time.monotonic()
    stream = client.request("Hold", ("grpc-timeout", "150m"))
    client.data(stream, client.frame(b""), end=True)
    assert client.status(stream) == 4
    assert 0.1 < time.monotonic() - started < 2
    number = server.wait(CALL)[0][1]
    server.wait(CANCEL, call=number)
    server.answer([(RESPOND, number, b"late")])
    assert server.kinds(number) == [CALL, CANCEL]


def test_the_caller_sees_its_deadline(server, channel, error):
    """A grpcio caller sees DEADLINE_EXCEEDED, the server one CANCEL."""
    assert error(channel, "Hold", timeout=0.15).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.wait(CANCEL)[0][1] == server.wait(CALL)[0][1]


def test_a_cancelled_call_is_reported_once(server, channel, call):
    """A caller's cancellation comes up as one CANCEL; an answer after it is dropped."""
    future = channel.unary_unary(PATH + "Hold").future(b"", timeout=10)
    number = server.wait(CALL, "Hold")[0][1]
    future.cancel()
    server.wait(CANCEL, call=number)
    server.answer([(RESPOND, number, b"late"), (FAIL, number, Failure(3, "late"))])
    assert call(channel, "Echo", b"good") == b"good"
    assert server.kinds(number) == [CALL, CANCEL]


def test_an_answered_call_is_not_cancelled(server, channel, call):
    """After an answer nothing more is reported for a call."""
    for _ in range(20):
        call(channel, "Echo")
    server.hang_up()
    assert server.of(CANCEL) == []


def test_a_lost_connection_cancels_its_calls(server, raw, channel, call):
    """All calls of a connection that is gone are reported as gone."""
    client = raw()
    for _ in range(3):
        client.data(client.request("Hold"), client.frame(b""), end=True)
    numbers = {event[1] for event in server.wait(CALL, "Hold", count=3)}
    client.close()
    assert {event[1] for event in server.wait(CANCEL, count=3)} == numbers
    assert call(channel, "Echo", b"good") == b"good"


def test_a_reset_before_the_message_is_complete_reaches_nobody(server, raw):
    """A call that is reset before its message is whole is never reported."""
    client = raw()
    stream = client.request("Echo")
    client.data(stream, client.frame(b"abc", length=100))
    client.h2.reset_stream(stream, 8)
    client.flush()
    assert client.echo() == 0
    assert [event[3] for event in server.wait(CALL)] == [b"good"]


def test_actions_on_dead_calls_are_dropped(server, channel, call):
    """Answering a call twice, or one that never was, does nothing."""
    call(channel, "Echo")
    number = server.wait(CALL)[0][1]
    late = Failure(3, "late")
    assert (
        server.answer([(RESPOND, number, b"x"), (FAIL, number, late), (SEND, 10**9, b"x"), (FAIL, 10**9, late)]) == []
    )
    assert call(channel, "Echo", b"good") == b"good"


# --- limits and broken calls -----------------------------------------------------------------------------------------


def test_a_message_over_the_limit_is_refused(serve, call, error):
    """A request over `max_receive_bytes` gets RESOURCE_EXHAUSTED and reaches nobody; one at the limit passes."""
    server = serve(max_receive_bytes=100_000)
    channel = server.channel()
    assert error(channel, "Echo", bytes(100_001)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call(channel, "Echo", bytes(100_000)) == bytes(100_000)
    assert len(server.of(CALL)) == 1


def test_the_declared_length_is_refused_at_once(serve, raw):
    """A message that only declares to be too large is refused without waiting for its bytes."""
    server = serve(max_receive_bytes=100_000)
    client = raw(server)
    stream = client.request("Echo")
    client.data(stream, client.frame(b"", length=1 << 30))
    assert client.status(stream) == 8
    assert client.echo() == 0


def test_a_response_over_the_limit_is_refused(serve, call, error):
    """A response over `max_send_bytes` becomes the prepared refusal."""
    server = serve(max_send_bytes=100_000)
    channel = server.channel()
    caught = error(channel, "Sized", b"100001")
    assert (caught.code(), caught.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "refusal: response too large")
    assert call(channel, "Sized", b"100000") == bytes(100_000)


def test_compressed_messages_are_refused(server, channel, call, error):
    """A compressed request gets UNIMPLEMENTED unless gzip is enabled."""
    caught = error(channel, "Echo", b"x" * 1000, compression=grpc.Compression.Gzip)
    assert caught.code() is grpc.StatusCode.UNIMPLEMENTED
    assert server.of(CALL) == []
    assert call(channel, "Echo", b"good") == b"good"


def test_gzip_is_accepted_where_enabled(serve, call, error):
    """With `accept_gzip` messages are unpacked, and their unpacked size counts against the limit."""
    server = serve(accept_gzip=True, max_receive_bytes=100_000)
    channel = server.channel()
    assert call(channel, "Echo", bytes(90_000), compression=grpc.Compression.Gzip) == bytes(90_000)
    caught = error(channel, "Echo", bytes(1_000_000), compression=grpc.Compression.Gzip)
    assert caught.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_compressed_flag_without_an_encoding_is_an_error(server, raw):
    """A message that claims to be compressed in a call that names no encoding reaches nobody."""
    client = raw()
    stream = client.request("Echo")
    client.data(stream, client.frame(b"abc", flag=1), end=True)
    assert client.status(stream) in {12, 13}
    assert server.of(CALL) == []


@pytest.mark.parametrize("count", [0, 2])
def test_a_unary_call_takes_exactly_one_message(server, raw, count):
    """No message, or a second one, is a violation that gets UNIMPLEMENTED, as gRPC's status page says."""
    client = raw()
    stream = client.request("Echo")
    client.data(stream, client.frame(b"abc") * count, end=True)
    assert client.status(stream) == 12
    assert client.echo() == 0
    assert [event[3] for event in server.wait(CALL)] == [b"good"]


def test_headers_alone_are_not_a_call(server, raw):
    """A unary call that ends with its headers has no message."""
    client = raw()
    stream = client.request("Echo", end=True)
    assert client.status(stream) == 12
    assert server.of(CALL) == []


@pytest.mark.parametrize("data", [b"\x00\x00", b"\x00\x00\x00\x00\x64abc"])
def test_a_truncated_message_is_an_error(server, raw, data):
    """A stream that ends inside a message is not a call; the connection stays good."""
    client = raw()
    stream = client.request("Echo")
    client.data(stream, data, end=True)
    assert client.status(stream) not in {0, 2}
    assert client.echo() == 0
    assert [event[3] for event in server.wait(CALL)] == [b"good"]


def test_a_message_in_frames_of_one_byte_is_whole(server, raw):
    """How a message is cut into frames does not matter."""
    client = raw()
    stream = client.request("Echo")
    for byte in client.frame(b"abc"):
        client.data(stream, bytes([byte]))
    client.data(stream, b"", end=True)
    assert client.status(stream) == 0
    assert server.wait(CALL)[0][3] == b"abc"


@pytest.mark.parametrize("adapter", [pytest.param("native", marks=pytest.mark.native)], indirect=True)
def test_another_content_type_is_refused(server, raw):
    """What is not gRPC reaches nobody. Native only: grpcio takes any content type."""
    client = raw()
    stream = client.request("Echo", content_type="text/plain")
    client.data(stream, client.frame(b"abc"), end=True)
    client.until(lambda client: client.ended(stream))
    assert server.of(CALL) == []
    assert client.echo() == 0


def test_streams_over_the_limit_are_refused_or_wait(serve, raw):
    """A connection is told how many calls it may have open, and gets no more."""
    server = serve(max_streams=10)
    client = raw(server)
    client.until(lambda client: client.of(h2.events.RemoteSettingsChanged))
    assert client.h2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] == 10
    streams = [client.request("Hold") for _ in range(10)]
    for stream in streams:
        client.data(stream, client.frame(b""), end=True)
    server.wait(CALL, "Hold", count=10)
    client.h2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 100
    client.h2.remote_settings.acknowledge()
    late = client.request("Hold")
    client.until(lambda client: client.of(h2.events.StreamReset, late))
    assert len(server.of(CALL, "Hold")) == 10
    server.answer([(RESPOND, event[1], b"") for event in server.of(CALL, "Hold")])
    assert [client.status(stream) for stream in streams] == [0] * 10


def test_figures_count(server, channel, call, error):
    """Calls, bytes and refusals are counted; what is open returns to zero."""
    call(channel, "Echo", bytes(1000))
    error(channel, "Nothing")
    future = channel.unary_unary(PATH + "Hold").future(bytes(500), timeout=10)
    number = server.wait(CALL, "Hold")[0][1]
    figures = server.wire.figures()
    assert figures.calls == 1
    assert figures.held_bytes == 0  # it was taken: its taker counts it now
    assert figures.calls_total >= 2
    assert figures.received_bytes_total >= 1500
    assert figures.sent_bytes_total >= 1000
    assert figures.refused_total == 1
    server.answer([(RESPOND, number, b"")])
    future.result()
    eventually(server.idle, "idle")
    assert server.of(HALF_CLOSE) == []
