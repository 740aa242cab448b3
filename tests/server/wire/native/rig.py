"""What the tests of the native front end share: its methods, and clients with and without manners.

Most tests are the dispatcher themselves: a client's call runs in the background, the test takes its event and answers.
Raw HTTP/2 clients say what no decent client would.
"""

import socket
import struct
import time
from concurrent import futures

import grpc
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import pytest

from forebay_server.wire.port import Exposure, Failure, Method, MethodKind, Refusals

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
