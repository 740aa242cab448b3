"""Sends one message over a connection of its own, and guards that connection.

The host is resolved once, *every* address that it has is checked, and the connection goes to one of these and to
nothing else: the peer is compared with it before a byte is sent, so a name that means something else a moment later
gains nothing. TLS still verifies the name. There is no other way out: no redirect is followed, and no proxy is used,
whatever the environment says. One limit holds for everything, from the lookup to the last byte of the answer, and
little of that answer is read.

This is httpcore with a network backend of its own, which is what httpcore has that interface for; httpx on top of it
would only bring what has to be switched off here.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from forebay_server.errors import ConfigError
from forebay_server.jobs.webhooks.addresses import Address, public
from forebay_server.jobs.webhooks.names import Resolve, Resolver
from forebay_server.jobs.webhooks.targets import Target

if TYPE_CHECKING:
    import httpcore

MAX_ANSWER: Final = 65_536
"""Bytes of an answer, its head included, that are read."""
MAX_ADDRESSES: Final = 4
"""Addresses of a host that are tried."""

_LEAST: Final = 0.001  # seconds; sockets take 0 for "do not block"


class Undeliverable(Exception):
    """There was no answer. The text says why."""


class Answer(NamedTuple):
    """What the receiver said."""

    status: int
    retry_after: str
    """The header; empty if there is none."""


class Transport:
    """Sends messages. For any number of threads at a time.

    Args:
        timeout: Seconds for a message, all in all.
        allow_private: Whether addresses that are not public may be connected to.
        resolve: Finds the addresses of a name.
        context: Certificates that are trusted; by default those of the system and of certifi.
        backend: Makes connections to the addresses that were checked; by default httpcore's own.

    Raises:
        ConfigError: The HTTP client is not installed.
    """

    def __init__(
        self,
        *,
        timeout: float,
        allow_private: bool,
        resolve: Resolve | None = None,
        context: ssl.SSLContext | None = None,
        backend: "httpcore.NetworkBackend | None" = None,
    ) -> None:
        try:
            import httpcore  # noqa: PLC0415  # only who sends webhooks needs it
        except ImportError as exc:
            raise ConfigError("webhooks need the package httpcore: install forebay[webhooks]") from exc
        self._timeout = timeout
        self._allow_private = allow_private
        self._resolve = resolve or Resolver()
        self._context = context or httpcore.default_ssl_context()
        self._backend = backend or httpcore.SyncBackend()
        self._closed = False
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()

    def post(self, target: Target, headers: Mapping[str, str], body: bytes) -> Answer:
        """Sends a message and waits for the answer.

        Args:
            target: Where to.
            headers: Beside Host, Content-Length and Connection.
            body: What is sent.

        Raises:
            Undeliverable: No answer, or none in time.
        """
        import httpcore  # noqa: PLC0415  # see the constructor

        deadline = time.monotonic() + self._timeout
        origin = httpcore.Origin(target.scheme.encode(), target.host.encode(), target.port)
        connection = httpcore.HTTPConnection(
            origin,
            ssl_context=self._context,
            network_backend=cast("httpcore.NetworkBackend", _Guard(self, deadline)),  # a subclass needs the import
        )
        head = [("Host", target.authority), ("Connection", "close"), *headers.items()]
        url = httpcore.URL(
            scheme=origin.scheme, host=origin.host, port=origin.port, target=f"{target.path}{target.query}".encode()
        )
        try:
            with (
                contextlib.closing(connection),
                connection.stream(
                    "POST",
                    url,
                    headers=head,
                    content=body,
                ) as response,
            ):
                found = {name.lower(): value for name, value in response.headers}
                # The status is all that counts. The rest is read so that the receiver can end in peace.
                with contextlib.suppress(
                    Undeliverable, httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError
                ):
                    for _ in response.iter_stream():
                        pass
                return Answer(response.status, found.get(b"retry-after", b"").decode("latin-1"))
        except httpcore.TimeoutException as exc:
            raise Undeliverable(f"no answer in {self._timeout:g} s") from exc
        except (httpcore.NetworkError, httpcore.ProtocolError) as exc:
            raise Undeliverable(str(exc) or type(exc).__name__) from exc

    def close(self) -> None:
        """Cuts what is under way; from then on nothing is sent. From any thread."""
        with self._lock:
            self._closed = True
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def connect(self, host: str, port: int, deadline: float) -> "_Stream":
        """Connects to one of the addresses of a host, after all of them were checked.

        Raises:
            Undeliverable: There is none, one is not public, or none can be connected to.
        """
        addresses = self._addresses(host, deadline)[:MAX_ADDRESSES]
        for position, address in enumerate(addresses):
            share = self.left(deadline) / (len(addresses) - position)
            try:
                return self._connect(address, port, deadline, share)
            except Undeliverable:
                if position + 1 == len(addresses):
                    raise
        raise Undeliverable("the host has no address")

    def left(self, deadline: float) -> float:
        """Seconds that are left.

        Raises:
            Undeliverable: None, or everything is closed.
        """
        if self._closed:
            raise Undeliverable("the server shuts down")
        seconds = deadline - time.monotonic()
        if seconds < _LEAST:
            raise Undeliverable(f"no answer in {self._timeout:g} s")
        return seconds

    def forget(self, twin: socket.socket) -> None:
        """A connection has ended."""
        with self._lock:
            self._sockets.discard(twin)
        twin.close()

    def _addresses(self, host: str, deadline: float) -> list[Address]:
        try:
            addresses = [ip_address(host)]
        except ValueError:
            try:
                addresses = list(self._resolve(host, self.left(deadline)))
            except TimeoutError as exc:
                raise Undeliverable("the lookup of the host took too long") from exc
            except OSError as exc:
                raise Undeliverable("the host can't be found") from exc
        for address in addresses:
            if not (self._allow_private or public(address)):
                raise Undeliverable(f"the host has the address {address}, which is not public")
        return addresses

    def _connect(self, address: Address, port: int, deadline: float, seconds: float) -> "_Stream":
        import httpcore  # noqa: PLC0415  # see the constructor

        try:
            stream = self._backend.connect_tcp(str(address), port, timeout=seconds)
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
            raise Undeliverable(f"can't connect: {exc}") from exc
        try:
            peer = stream.get_extra_info("server_addr")
            # A second descriptor: the first one wanders into the TLS layer, and must be cut there as well.
            twin: socket.socket = stream.get_extra_info("socket").dup()
        except OSError as exc:  # it is gone already, or there are no descriptors left
            stream.close()
            raise Undeliverable(f"can't connect: {exc}") from exc
        if (ip_address(peer[0]), peer[1]) != (address, port):
            twin.close()
            stream.close()
            raise Undeliverable("connected to another address than the one that was checked")
        with self._lock:
            self._sockets.add(twin)
        return _Stream(stream, twin, self, deadline)


class _Guard:
    """The way out of one message (a `httpcore.NetworkBackend`)."""

    def __init__(self, transport: Transport, deadline: float) -> None:
        self._transport = transport
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002  # the deadline holds
        local_address: str | None = None,  # noqa: ARG002  # never given
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002  # never given
    ) -> "_Stream":
        return self._transport.connect(host, port, self._deadline)

    def connect_unix_socket(self, path: str, timeout: float | None = None, socket_options: object = None) -> "_Stream":  # noqa: ARG002  # refused
        raise Undeliverable("not a network address")

    def sleep(self, seconds: float) -> None:  # pragma: no cover - called between retries, of which there are none
        raise Undeliverable(f"asked to wait {seconds} s")


class _Stream:
    """A connection with its limits (a `httpcore.NetworkStream`): a deadline, and bytes that may be read."""

    def __init__(
        self, inner: "httpcore.NetworkStream", twin: socket.socket, transport: Transport, deadline: float, read: int = 0
    ) -> None:
        self._inner = inner
        self._twin = twin
        self._transport = transport
        self._deadline = deadline
        self._read = read

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002  # the deadline holds
        room = MAX_ANSWER - self._read
        if room <= 0:
            raise Undeliverable(f"an answer of more than {MAX_ANSWER} bytes")
        data = self._inner.read(min(max_bytes, room), timeout=self._transport.left(self._deadline))
        self._read += len(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002  # the deadline holds
        self._inner.write(buffer, timeout=self._transport.left(self._deadline))

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002  # the deadline holds
    ) -> "_Stream":
        try:
            inner = self._inner.start_tls(ssl_context, server_hostname, self._transport.left(self._deadline))
        except BaseException:
            self._transport.forget(self._twin)  # the inner stream has closed itself
            raise
        return _Stream(inner, self._twin, self._transport, self._deadline, self._read)

    def close(self) -> None:
        self._transport.forget(self._twin)
        self._inner.close()

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
