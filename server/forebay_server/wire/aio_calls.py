"""The calls of `wire.aio`: one handler coroutine for each, between grpcio and the port's events and actions.

Two sides meet here. On the loop's thread a handler reads, reports events, and writes what its outbox holds; it alone
touches grpcio. On any thread `Exchange.answer` puts actions into outboxes. `Exchange.live` says which calls may still
be acted on; whoever takes a call out of it, under the lock, settles how it ends, and so CANCEL comes at most once and
never after an answer.

All methods are handled as streams, since grpcio's unary handlers don't notice a missing or a second message.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast
from urllib.parse import unquote

import grpc
import grpc.aio
import structlog

from forebay_server.errors import Internal
from forebay_server.wire.aio_inbox import Inbox
from forebay_server.wire.port import (
    CALL,
    CANCEL,
    CREDIT,
    FAIL,
    FINISH,
    HALF_CLOSE,
    MESSAGE,
    OPEN,
    RESPOND,
    SEND,
    WRITABLE,
    Action,
    Failure,
    Limits,
    Metadata,
    MethodKind,
    Peer,
    Refusals,
)

Context = grpc.aio.ServicerContext[bytes, bytes]

_CODES = {code.value[0]: code for code in grpc.StatusCode}

# grpcio reports a lost call to the reader first, as an end of the messages, and a moment later by cancelling the
# handler. The end of a stream is believed when no cancellation came within this time, in seconds.
_SETTLE = 0.002

_OWN_KEYS = frozenset({"content-type", "te", "user-agent"})

log = structlog.get_logger(__name__)


class Call:
    """A call in progress. `outbox_bytes`, `full` and `credit` are guarded by the exchange's lock."""

    __slots__ = (
        "context",
        "credit",
        "credited",
        "full",
        "kind",
        "method",
        "number",
        "outbox",
        "outbox_bytes",
        "reader",
        "work",
    )

    def __init__(self, method: int, kind: MethodKind, context: Context) -> None:
        self.method = method
        self.kind = kind
        self.context = context
        self.number = 0  # not reported yet
        self.outbox: deque[tuple[int, bytes | Failure | None]] = deque()
        self.outbox_bytes = 0
        self.full = False
        self.credit = 0
        self.work = asyncio.Event()
        self.credited = asyncio.Event()
        self.reader: asyncio.Task[None] | None = None


class Exchange:
    """The calls of all exposures, and their way to and from the other threads."""

    def __init__(self, loop: asyncio.AbstractEventLoop, inbox: Inbox, limits: Limits, refusals: Refusals) -> None:
        self._loop = loop
        self._inbox = inbox
        self._limits = limits
        self._refusals = refusals
        self._lock = threading.Lock()
        self._peers: dict[tuple[int, str, str | None], Peer] = {}
        self.live: dict[int, Call] = {}
        """By number: the calls that were reported and are neither answered nor gone."""
        self.tasks: dict[asyncio.Task[None], Call] = {}
        """By grpcio's task: the calls whose status is not sent yet. Loop's thread only."""
        self.calls_total = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self.refused = 0

    # --- any thread --------------------------------------------------------------------------------------------------

    def answer(self, actions: Sequence[Action]) -> list[int]:
        """See `Wire.answer`."""
        stirred: dict[int, Call] = {}
        filled: list[int] = []
        with self._lock:
            for kind, number, argument in actions:
                call = self.live.get(number)
                if call is None:
                    continue
                stirred[number] = call
                if kind == CREDIT:
                    call.credit += cast("int", argument)
                elif isinstance(argument, bytes):
                    if self._post(call, kind, argument):
                        filled.append(number)
                else:
                    call.outbox.append((kind, cast("Failure | None", argument)))
                if kind in {RESPOND, FINISH, FAIL}:
                    self._settle(call)
            full = [number for number in filled if number in self.live]
        if stirred:
            try:
                self._loop.call_soon_threadsafe(_stir, list(stirred.values()), self._read)
            except RuntimeError:  # the loop is closed, and with it all calls
                return []
        return full

    def _post(self, call: Call, kind: int, message: bytes) -> bool:
        """Puts a message into the outbox; says whether that made it full. Under the lock."""
        if len(message) > self._limits.max_send_bytes:
            self.refused += 1
            call.outbox.append((FAIL, self._refusals.response_too_large))
            if kind == SEND:  # the service does not know that this was its last action
                self._cancel(call)
            return False
        call.outbox.append((kind, message))
        call.outbox_bytes += len(message)
        if kind == SEND and not call.full and call.outbox_bytes > self._limits.outbox_bytes:
            call.full = True
            return True
        return False

    def _settle(self, call: Call) -> bool:
        """Takes a call out of `live`; says whether it was there. Under the lock."""
        return self.live.pop(call.number, None) is not None

    def _cancel(self, call: Call) -> None:
        """Reports that a call is gone, if that is news. Under the lock."""
        if self._settle(call):
            self._inbox.put((CANCEL, call.number, call.method, None, math.inf, None, None))

    def fail_all(self, failure: Failure) -> None:
        """Fails every live call, without a word to the services."""
        with self._lock:
            calls = list(self.live.values())
            for call in calls:
                call.outbox.append((FAIL, failure))
                self._settle(call)
        self._loop.call_soon_threadsafe(_stir, calls, self._read)

    # --- the loop's thread -------------------------------------------------------------------------------------------

    async def refuse_unknown(self, _requests: object, context: Context) -> None:
        """The handler of methods that are not offered."""
        self.refused += 1
        _fail(context, Failure(code=12, message="unknown method"))

    async def serve(self, context: Context, method: int, kind: MethodKind, exposure: int, *, mutual_tls: bool) -> None:
        """Handles a call from its headers to its status."""
        call = Call(method, kind, context)
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self.tasks[task] = call
        task.add_done_callback(self._done)
        try:
            body = None
            if kind is not MethodKind.BIDI_STREAM:
                body = await self._read_only_message(call)
                if body is None:
                    return
            self._report(call, body, self._peer(context, exposure, mutual_tls=mutual_tls))
            await self._write(call)
        except grpc.aio.BaseError as exc:
            # The call broke under a read or a write, or the server has stopped: there is nobody to tell.
            raise asyncio.CancelledError from exc
        except Exception as exc:  # noqa: BLE001  # grpcio would send its text to the caller
            _fail(context, _internal_error(exc))
        finally:
            if call.reader is not None:
                call.reader.cancel()
            with self._lock:
                self._cancel(call)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.pop(task, None)

    async def _read_only_message(self, call: Call) -> bytes | None:
        """The one message of a unary call, or None if the call was failed for want of exactly one."""
        body = await _message(call.context)
        if body is not None and await _message(call.context) is None:
            self.received_bytes += len(body)
            return body
        self.refused += 1
        what = "no message" if body is None else "more than one message"
        _fail(call.context, Failure(code=12, message=f"{what} in a call that takes exactly one"))
        return None

    def _report(self, call: Call, body: bytes | None, peer: Peer) -> None:
        remaining = call.context.time_remaining()
        # grpcio returns None without a deadline, whatever its stubs say.
        deadline = math.inf if cast("float | None", remaining) is None else time.monotonic() + remaining
        metadata = _own_metadata(call.context)
        with self._lock:
            self.calls_total += 1
            call.number = self.calls_total
            self.live[call.number] = call
            self._inbox.put((OPEN if body is None else CALL, call.number, call.method, body, deadline, peer, metadata))

    async def _read(self, call: Call) -> None:
        """Delivers the messages of a stream, each for a credit. Runs beside `_write`."""
        try:
            while True:
                while call.credit <= 0:
                    call.credited.clear()
                    await call.credited.wait()
                body = await _message(call.context)
                if body is None:
                    await asyncio.sleep(_SETTLE)
                    kind = HALF_CLOSE
                else:
                    self.received_bytes += len(body)
                    kind = MESSAGE
                with self._lock:
                    call.credit -= kind == MESSAGE
                    if call.number in self.live:
                        self._inbox.put((kind, call.number, call.method, body, math.inf, None, None))
                if body is None:
                    return
        except grpc.aio.BaseError:
            return  # the call is over
        except Exception as exc:  # noqa: BLE001  # whatever it is, the caller gets an answer and the log the reason
            with self._lock:
                self._cancel(call)
            call.outbox.append((FAIL, _internal_error(exc)))
            call.work.set()

    async def _write(self, call: Call) -> None:
        """Carries out what the outbox says until the call ends."""
        context, outbox, stall = call.context, call.outbox, self._limits.write_stall
        while True:
            while not outbox:
                call.work.clear()
                await call.work.wait()
            kind, argument = outbox.popleft()
            if isinstance(argument, Failure):
                _fail(context, argument)
                return
            if argument is None:  # FINISH
                return
            # A write that was begun can't be taken back, so the call is cut off around it.
            timer = self._loop.call_later(stall, self._cut_off, call)
            try:
                await context.write(argument)
            finally:
                timer.cancel()
            self._wrote(call, len(argument))
            if kind == RESPOND and not outbox:
                return

    def _cut_off(self, call: Call) -> None:
        """Gives up a call whose results nobody reads. Its status goes out if the present write ever ends."""
        self.refused += 1
        with self._lock:
            self._cancel(call)
            call.outbox.clear()
            call.outbox.append((FAIL, self._refusals.slow_reader))

    def _wrote(self, call: Call, size: int) -> None:
        with self._lock:
            self.sent_bytes += size
            call.outbox_bytes -= size
            if call.full and call.outbox_bytes < self._limits.outbox_bytes / 2:
                call.full = False
                if call.number in self.live:
                    self._inbox.put((WRITABLE, call.number, call.method, None, math.inf, None, None))

    def _peer(self, context: Context, exposure: int, *, mutual_tls: bool) -> Peer:
        identity = _identity(context) if mutual_tls else None
        key = exposure, context.peer(), identity
        peer = self._peers.get(key)
        if peer is None:
            if len(self._peers) >= self._limits.max_connections:
                self._peers.clear()
            peer = self._peers[key] = Peer(exposure, _address(key[1]), identity)
        return peer


def _stir(calls: list[Call], read: Callable[[Call], Awaitable[Any]]) -> None:
    """Lets handlers look at what is new for them."""
    for call in calls:
        call.work.set()
        if call.credit > 0:
            call.credited.set()
            if call.reader is None:
                call.reader = asyncio.get_running_loop().create_task(cast("Any", read(call)))


async def _message(context: Context) -> bytes | None:
    """The next message of a call; None at their end."""
    message: object = await context.read()
    return message if isinstance(message, bytes) else None  # else grpc.aio.EOF


def _fail(context: Context, failure: Failure) -> None:
    """Sets the status that goes out when the handler returns; trailers-only if nothing was sent before."""
    context.set_code(_CODES.get(failure.code, grpc.StatusCode.UNKNOWN))
    context.set_details(failure.message)
    trailers: list[tuple[str, str | bytes]] = list(failure.trailers)
    if failure.details is not None:
        trailers.append(("grpc-status-details-bin", failure.details))
    context.set_trailing_metadata(tuple(trailers))


def _internal_error(exc: Exception) -> Failure:
    """Logs an exception, and makes an answer that does not show it."""
    error = Internal()
    log.error("wire.handler_failed", error_id=error.error_id, exc_info=exc)
    return Failure(code=13, message=error.message)


def _own_metadata(context: Context) -> Metadata | None:
    pairs: Any = context.invocation_metadata() or ()
    own = [(key, value) for key, value in pairs if key not in _OWN_KEYS and not key.startswith("grpc-")]
    return own or None


def _identity(context: Context) -> str | None:
    attributes = context.auth_context()
    for kind in ("peer_uri", "peer_dns"):
        for value in attributes.get(kind, ()):
            return value.decode()
    return None


def _address(peer: str) -> str:
    """From grpcio's `ipv4:192.0.2.7:4711`, `ipv6:%5B2001:db8::7%5D:4711` or `unix:...` to the port's format."""
    scheme, _, rest = peer.partition(":")
    return "unix:" if scheme == "unix" else unquote(rest)
