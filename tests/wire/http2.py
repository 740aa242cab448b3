"""HTTP/2 by hand: a client that does what it is told, right or wrong."""

import contextlib
import struct
import time

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from tests.waiting import PATIENCE

SERVICE = "/wire.test.Test/"
"""Where the methods are of the scripted server (`conftest`)."""


class RawClient:
    """An HTTP/2 client that does what it is told; nothing that it sends is validated."""

    def __init__(self, sock, *, window=None):
        self.sock = sock
        config = h2.config.H2Configuration(
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
            header_encoding="utf-8",
        )
        self.h2 = h2.connection.H2Connection(config)
        if window is not None:
            initial = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
            self.h2.local_settings = h2.settings.Settings(client=True, initial_values=initial)
        self.h2.initiate_connection()
        self.events = []
        self.unread = {}
        self.closed = False
        self.flush()

    def flush(self):
        self.sock.sendall(self.h2.data_to_send())

    def request(self, method, *extra, end=False, content_type="application/grpc"):
        """Sends the headers of a call, and returns its stream id."""
        stream = self.h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method if method.startswith("/") else SERVICE + method),
            (":authority", "test"),
            ("content-type", content_type),
            ("te", "trailers"),
            *extra,
        ]
        self.h2.send_headers(stream, headers, end_stream=end)
        self.flush()
        return stream

    @staticmethod
    def frame(body, *, flag=0, length=None):
        """A gRPC message with its prefix."""
        return struct.pack(">BI", flag, len(body) if length is None else length) + body

    def data(self, stream, data, *, end=False):
        self.h2.send_data(stream, data, end_stream=end)
        self.flush()

    def pump(self, timeout=0.05):
        """Reads what is there; returns the new events."""
        self.sock.settimeout(timeout)
        try:
            data = self.sock.recv(1 << 16)
        except TimeoutError:
            return []
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return []
        try:
            events = self.h2.receive_data(data)
        except h2.exceptions.ProtocolError:
            self.closed = True
            return []
        self.events.extend(events)
        for event in events:
            if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                self.unread[event.stream_id] = self.unread.get(event.stream_id, 0) + event.flow_controlled_length
        with contextlib.suppress(OSError):
            self.flush()
        return events

    def read_on(self, stream):
        """Reads what comes, and gives the windows back; says whether the stream has ended."""
        self.pump()
        with contextlib.suppress(h2.exceptions.ProtocolError, OSError):
            while self.unread:
                self.h2.acknowledge_received_data(*reversed(self.unread.popitem()))
            self.flush()
        return self.closed or self.ended(stream)

    def received(self, stream):
        return b"".join(event.data for event in self.of(h2.events.DataReceived, stream))

    def until(self, condition, patience=PATIENCE):
        """Reads until a condition on this client holds, or the connection is closed."""
        until = time.monotonic() + patience
        while not condition(self) and not self.closed:
            assert time.monotonic() < until, f"nothing of the kind in {patience} s: {self.events}"
            self.pump()

    def of(self, kind, stream=None):
        return [
            event for event in self.events if isinstance(event, kind) and (stream is None or event.stream_id == stream)
        ]

    def ended(self, stream):
        return bool(self.of(h2.events.StreamEnded, stream) or self.of(h2.events.StreamReset, stream))

    def status(self, stream):
        """Waits for the end of a call; returns its grpc-status, or None if it was reset or cut off without one."""
        self.until(lambda client: client.ended(stream))
        for event in self.of(h2.events.ResponseReceived, stream) + self.of(h2.events.TrailersReceived, stream):
            for key, value in event.headers:
                if key == "grpc-status":
                    return int(value)
        return None

    def echo(self, body=b"good"):
        """A good call."""
        stream = self.request("Echo")
        self.data(stream, self.frame(body), end=True)
        return self.status(stream)

    def close(self):
        self.sock.close()
