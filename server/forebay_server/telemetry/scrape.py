"""The endpoint that Prometheus scrapes: plain HTTP/1.1 on a port of its own, one thread, one selector.

It answers GET and HEAD on /metrics, and nothing else. Nobody can hold it up: a request has to be complete, and its
answer read, within `PATIENCE`; beyond `MOST` connections the oldest gives way; a head of more than `MOST_HEAD` bytes is
refused. While figures are gathered others wait, so scrapes come one after the other.
"""

import errno
import gzip
import selectors
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import structlog

from forebay_server.background import can_wait
from forebay_server.errors import ConfigError
from forebay_server.telemetry.formats import Format, accepted

PATH: Final = "/metrics"
PATIENCE: Final = 10.0
"""Seconds from accepting a connection to its end."""
MOST: Final = 64
"""Connections at a time."""
MOST_HEAD: Final = 16 << 10
"""Bytes of a request's head."""
LEAST_ZIPPED: Final = 1 << 10
"""Bytes; shorter answers are not worth the packing."""

MOST_PORT: Final = 65_535

_READ: Final = 64 << 10
_POLL: Final = 0.5  # seconds between looks for connections whose time is over

_log = structlog.get_logger(__name__)


class _Connection:
    __slots__ = ("answer", "due", "head", "socket")

    def __init__(self, accepted: socket.socket, due: float) -> None:
        self.socket = accepted
        self.due = due
        self.head = bytearray()
        self.answer: memoryview | None = None
        """What is left to send; None until the request is complete."""


class ScrapeServer:
    """Serves metrics.

    Args:
        address: `host:port`; port 0: any free one.
        render: Gives all metrics in a format. Called in this server's thread; raises if it can't.
    """

    def __init__(self, address: str, render: Callable[[Format], bytes]) -> None:
        self._address = address
        self._render = render
        self._selector = selectors.DefaultSelector()
        self._connections: dict[socket.socket, _Connection] = {}
        self._listener: socket.socket | None = None
        self._waker, self._woken = socket.socketpair()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="forebay-prometheus", daemon=True)
        self.address = ""
        """Where it listens, port 0 resolved; empty before `start`."""

    def start(self) -> None:
        """Listens.

        Raises:
            ConfigError: The address is taken, or is none.
        """
        try:
            host, _, port = self._address.rpartition(":")
            family, _, _, _, place = socket.getaddrinfo(
                host.strip("[]"), _port(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._listener = socket.create_server(place[:2], family=family, backlog=MOST)
        except (OSError, ValueError) as error:
            self.close()
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            why = "is taken: another process listens there" if taken else f"can't be used: {error}"
            raise ConfigError(f"telemetry.prometheus.address: {self._address} {why}") from error
        self._listener.setblocking(False)
        bound = self._listener.getsockname()
        self.address = f"[{bound[0]}]:{bound[1]}" if family == socket.AF_INET6 else f"{bound[0]}:{bound[1]}"
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()

    def close(self) -> None:
        """Ends it. Harmless if it was not started."""
        self._stopping = True
        if self._thread.is_alive():
            self._waker.send(b"x")
            self._thread.join(PATIENCE)
        for each in (self._listener, self._waker, self._woken):
            if each is not None:
                each.close()
        self._selector.close()

    def _main(self) -> None:
        can_wait()
        while not self._stopping:
            for key, _ in self._selector.select(_POLL):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is not self._woken:
                    self._serve(key.data)
            now = time.monotonic()
            for connection in [each for each in self._connections.values() if each.due <= now]:
                self._drop(connection)
        for connection in list(self._connections.values()):
            self._drop(connection)

    def _accept(self) -> None:
        assert self._listener is not None  # noqa: S101  # `start` made it
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            return  # it is gone already, or there are no descriptors: then those that are open end in time
        accepted.setblocking(False)
        if len(self._connections) >= MOST:
            self._drop(min(self._connections.values(), key=lambda each: each.due))
        connection = self._connections[accepted] = _Connection(accepted, time.monotonic() + PATIENCE)
        self._selector.register(accepted, selectors.EVENT_READ, connection)

    def _drop(self, connection: _Connection) -> None:
        self._selector.unregister(connection.socket)
        del self._connections[connection.socket]
        connection.socket.close()

    def _serve(self, connection: _Connection) -> None:
        if connection.socket not in self._connections:
            return  # it gave way to another one in this round
        try:
            if connection.answer is None:
                read = connection.socket.recv(_READ)
                connection.head += read
                if b"\r\n\r\n" in connection.head or len(connection.head) > MOST_HEAD:
                    connection.answer = memoryview(self._answer(bytes(connection.head)))
                    self._selector.modify(connection.socket, selectors.EVENT_WRITE, connection)
                elif not read:
                    self._drop(connection)
                return
            if connection.answer:
                connection.answer = connection.answer[connection.socket.send(connection.answer) :]
                if not connection.answer:
                    # Closing with unread input would make the kernel reset the connection, answer and all.
                    connection.socket.shutdown(socket.SHUT_WR)
                    self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
            elif not connection.socket.recv(_READ):
                self._drop(connection)
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)

    def _answer(self, head: bytes) -> bytes:
        lines = head.split(b"\r\n\r\n", 1)[0].decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(head) > MOST_HEAD or len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST)
        method, target, _ = words
        if target.split("?", 1)[0] != PATH:
            return _response(HTTPStatus.NOT_FOUND, body=method != "HEAD")
        if method not in ("GET", "HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET, HEAD")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        chosen = accepted(headers.get("accept", ""))
        try:
            body = self._render(chosen)
        except Exception:  # noqa: BLE001  # whatever it is, the next scrape may go well
            _log.exception("scrape_failed")
            return _response(HTTPStatus.SERVICE_UNAVAILABLE, body=method != "HEAD")
        extra = [f"Content-Type: {chosen.value}", "Vary: Accept, Accept-Encoding"]
        if "gzip" in headers.get("accept-encoding", "") and len(body) >= LEAST_ZIPPED:
            body = gzip.compress(body, 1, mtime=0)
            extra.append("Content-Encoding: gzip")
        return _head(HTTPStatus.OK, len(body), *extra) + (body if method == "GET" else b"")


def _port(text: str) -> int:
    port = int(text)
    if port > MOST_PORT:
        raise ValueError("there is no such port")
    return port


def _response(status: HTTPStatus, *extra: str, body: bool = True) -> bytes:
    text = f"{status.phrase}\n".encode()
    return _head(status, len(text), "Content-Type: text/plain", *extra) + (text if body else b"")


def _head(status: HTTPStatus, length: int, *extra: str) -> bytes:
    lines = [f"HTTP/1.1 {status} {status.phrase}", f"Content-Length: {length}", "Connection: close", *extra, "", ""]
    return "\r\n".join(lines).encode()
