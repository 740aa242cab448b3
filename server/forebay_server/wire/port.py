"""The port between the wire and everything else: what has arrived goes up, answers go down.

A leaf of plain types. Both adapters (`wire.native` on our Rust crate, `wire.aio` on public `grpc.aio`) implement
`Wire`; `services` handle its events; the dispatcher (`app.dispatcher`) is the one thread that calls `take`.

A *call* is an opaque positive integer, never used twice in a process. An action on a call that is gone is dropped
without a word: the adapter never delivers it to another call.

Events and actions are plain tuples, because one of each per request is on the hot path.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

# --- Events: what `take` gives out -------------------------------------------------------------------------------

CALL: Final = 1
"""A unary (or server-streaming) call with its one whole message. `body` is the message; `deadline` is set."""
OPEN: Final = 2
"""A bidirectional stream was opened. `body` is None. No message is delivered before CREDIT is given."""
MESSAGE: Final = 3
"""A message on a stream, in `body`. Uses up one credit."""
HALF_CLOSE: Final = 4
"""The caller has sent its last message on a stream. Comes after all its messages; needs no credit."""
CANCEL: Final = 5
"""The call is gone: cancelled, reset, connection lost, deadline passed (the adapter has already answered that one with
DEADLINE_EXCEEDED), or cut off as a slow reader. Nothing follows for this call, and actions on it are dropped."""
WRITABLE: Final = 6
"""The outbox of a stream that `answer` reported as full has drained below half."""


class Peer(NamedTuple):
    """Where a call comes from. One object per connection."""

    exposure: int
    """Index into the exposures given at start."""
    address: str
    """`192.0.2.7:4711`, `[2001:db8::7]:4711` or `unix:`."""
    identity: str | None
    """From a verified client certificate: its first URI SAN, else its first DNS SAN; None without mTLS."""


Metadata = Sequence[tuple[str, str | bytes]]
"""The caller's own metadata, lower-case keys; values of `-bin` keys are decoded bytes."""

Event = tuple[int, int, int, bytes | None, float, Peer | None, Metadata | None]
"""(kind, call, method, body, deadline, peer, metadata).

`method` is the index into the methods given at start. `deadline` is absolute in `time.monotonic()` seconds, `math.inf`
without one. `peer` and `metadata` are set on CALL and OPEN only; `metadata` is None unless the caller sent keys beyond
those of gRPC itself (content-type, te, user-agent, grpc-*); `traceparent` counts as the caller's own.
"""

# --- Actions: what `answer` takes --------------------------------------------------------------------------------

RESPOND: Final = 1
"""Answers a unary call with a message (bytes) and ends it with OK."""
SEND: Final = 2
"""Sends a message (bytes) on a stream, or on a server-streaming call."""
FINISH: Final = 3
"""Ends a call with OK after what was sent; the argument is None."""
FAIL: Final = 4
"""Ends a call with a `Failure`; trailers-only if nothing was sent before."""
CREDIT: Final = 5
"""Allows so many (int) further messages to be delivered on a stream."""


class Failure(NamedTuple):
    """A gRPC error as it goes over the wire."""

    code: int
    """The number of the status code; never 0."""
    message: str
    """`grpc-message`, unescaped."""
    details: bytes | None = None
    """A serialized `google.rpc.Status` for `grpc-status-details-bin`."""
    trailers: Sequence[tuple[str, str]] = ()
    """Further trailers, such as `grpc-retry-pushback-ms`."""


Action = tuple[int, int, bytes | Failure | int | None]
"""(kind, call, argument)."""

# --- Starting ----------------------------------------------------------------------------------------------------


class MethodKind(IntEnum):
    """What a method takes and gives."""

    UNARY = 1
    SERVER_STREAM = 2
    BIDI_STREAM = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method that is served."""

    path: str
    """`/forebay.v1.InferenceService/Predict`."""
    kind: MethodKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files of an exposure's TLS, PEM. They are read again when `renew_certificates` is called."""

    certificate: str
    """Path of the certificate chain."""
    key: str
    """Path of the private key, unencrypted."""
    client_ca: str | None = None
    """Path of the CAs for client certificates; set, each client must present one (mTLS)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """A place where the server listens, and what it offers there."""

    name: str
    """`public`, `operator`, `probe`."""
    address: str
    """`127.0.0.1:8500`, `[::]:8500` (port 0: any free one), or `unix:/run/forebay.sock`."""
    methods: frozenset[str]
    """The paths of the methods offered here; others are UNIMPLEMENTED."""
    tls: Tls | None = None
    trusted: bool = False
    """Whether the tenant's name is believed from metadata here. The adapters do not look at it."""
    reuse_port: bool = False
    """SO_REUSEPORT. Without it a taken port is an error."""
    outlives_drain: bool = False
    """Whether it goes on listening while the server drains (the health probe does)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusals:
    """Errors that an adapter has to send by itself, prepared by `services.status`; it knows no protobuf."""

    message_too_large: Failure
    """A message declared larger than `Limits.max_receive_bytes`."""
    response_too_large: Failure
    """A response over `Limits.max_send_bytes`."""
    bytes_held: Failure
    """`Limits.max_held_bytes` is reached."""
    deadline_expired: Failure
    """The call's deadline passed before its answer."""
    slow_reader: Failure
    """A stream whose results nobody read for `Limits.write_stall`."""
    slow_sender: Failure
    """A message that did not complete within `Limits.read_stall`."""
    draining: Failure
    """A call that came after `drain`, or was still open at the end of the grace period."""
    compressed: Failure
    """A compressed message, or an encoding that is not enabled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an adapter keeps by itself. Times are seconds, sizes bytes. (n): kept in full by the native adapter only."""

    max_receive_bytes: int = 16 << 20
    max_send_bytes: int = 16 << 20
    max_held_bytes: int = 1 << 30
    """(n) Bytes of messages in parts, or whole and not yet given out by `take`, all connections together. What was
    given out is the taker's to count."""
    max_streams: int = 1024
    """Concurrent calls on a connection."""
    max_connections: int = 10_000
    """(n) Per exposure; further ones are closed at accept."""
    max_metadata_bytes: int = 16 << 10
    stream_window_bytes: int = 256 << 10
    """HTTP/2 receive window of a stream, which is also what a stream that is not read may hold."""
    connection_window_bytes: int = 32 << 20
    """(n) HTTP/2 receive window of a connection. The HTTP/2 library ends a connection whose unread DATA frames, each
    taken for at least 256 bytes, come to more than half of this beyond their data: a stream's window that is far
    smaller than the connection's keeps callers of small messages, who outrun the model, within it."""
    outbox_bytes: int = 1 << 20
    """A stream's outbox counts as full above this."""
    write_stall: float = 30.0
    """A stream (or response) that makes no progress for this long is cut off."""
    read_stall: float = 30.0
    """(n) A message that is not complete this long after its first byte."""
    handshake_timeout: float = 10.0
    """(n) From accept to the end of the HTTP/2 preface, TLS included."""
    keepalive_time: float = 30.0
    """A silent connection is pinged after this."""
    keepalive_timeout: float = 20.0
    """A ping not answered within this ends the connection."""
    max_connection_age: float = 0.0
    """A connection older than this, with +-10 % jitter, is told to go away; 0: never."""
    max_connection_age_grace: float = 30.0
    """Time for its calls to end."""
    accept_gzip: bool = False
    """Whether gzip-compressed messages are accepted (their unpacked size counts against `max_receive_bytes`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WireConfig:
    """All that an adapter needs to start."""

    methods: Sequence[Method]
    exposures: Sequence[Exposure]
    refusals: Refusals
    limits: Limits = field(default_factory=Limits)
    busy_poll: float = 0.0
    """Seconds for which `take` may look out for events before it sleeps, while they come as fast as that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Counters and gauges of an adapter; -1 where it can't know."""

    connections: int
    """Open now."""
    connections_total: int
    calls: int
    """Open now."""
    calls_total: int
    held_bytes: int
    """Bytes of messages that `take` has not given out, see `Limits.max_held_bytes`."""
    received_bytes_total: int
    sent_bytes_total: int
    refused_total: int
    """Calls that the adapter refused by itself."""


class Wire(Protocol):
    """A gRPC server as a source of events and a sink of actions.

    Threads: `take` belongs to one thread. `answer`, `wake` and `figures` may be called from any. `start`, `drain` and
    `close` are called once each, in this order, from the thread of `take` or before it runs.
    """

    name: str
    """`native` or `grpc.aio`."""

    def start(self) -> list[str]:
        """Listens, and returns the bound address of each exposure, port 0 resolved.

        Raises:
            forebay_server.errors.ConfigError: An address is taken, a certificate can't be read, ...
        """

    def take(self, most: int, timeout: float) -> list[Event]:
        """Waits without the GIL until something has arrived, then gives out all there is, in order.

        Args:
            most: The most events to give out.
            timeout: The longest wait in seconds; 0 only looks.

        Returns:
            Events; empty at the timeout and after `wake`.
        """

    def answer(self, actions: Sequence[Action]) -> list[int]:
        """Carries out actions, in order. Never blocks.

        Returns:
            The streams whose outbox is now full. A service that has been told so gives no credit until WRITABLE comes.
        """

    def wake(self) -> None:
        """Ends the present (or next) `take` early."""

    def gather(self, until: float) -> None:
        """Says that nothing which arrives before an instant could run before it.

        So arrivals and answers may wait for others until then, if only for a few milliseconds, which saves wake-ups. An
        adapter may ignore it.

        Args:
            until: In `time.monotonic()` seconds. Replaces what was said before; an instant that has passed ends it.
        """

    def watch(self, budget: float | None) -> None:
        """Sets the watchdog.

        The process ends with code 70 and all stacks on stderr if `take` is not called again within `budget` seconds of
        its last return, or of this call if that is later. Time inside `take` does not count, but waiting for the GIL at
        its end does. None lets it rest. Applies until it is set again.
        """

    def renew_certificates(self) -> None:
        """Reads the TLS files again. New handshakes use them; live connections go on.

        Raises:
            forebay_server.errors.ConfigError: They can't be used; the old ones stay.
        """

    def figures(self) -> Figures:
        """Counters and gauges."""

    def drain(self) -> None:
        """Stops listening and tells connections to go away, except on exposures that outlive a drain.

        Calls that were delivered go on. Calls that still arrive on live connections are delivered until the connection
        is gone; the services refuse them.
        """

    def close(self, grace: float) -> None:
        """Closes everything. `take` must not be called again.

        Waits up to `grace` seconds until what was answered is sent, and fails what is left with `Refusals.draining`.
        """
