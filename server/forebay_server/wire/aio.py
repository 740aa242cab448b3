"""The second adapter: the port on public `grpc.aio`, for machines without the native front end. See `AioWire`.

It needs to be correct, not fast: each call is a task of an asyncio loop in a thread of its own. `aio_calls` has the
calls, `aio_tls` the certificates, `aio_inbox` the way to the thread that takes.
"""

import asyncio
import contextlib
import os
import socket
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from forebay_server.errors import ConfigError
from forebay_server.wire.aio_calls import Exchange
from forebay_server.wire.aio_inbox import Inbox
from forebay_server.wire.aio_tls import Certificates
from forebay_server.wire.port import Action, Event, Exposure, Figures, Limits, MethodKind, WireConfig
from forebay_server.wire.watchdog import Watchdog

_LEAST_GRPCIO = (1, 84)  # below, an over-limit message is buffered whole before it is refused
_FAREWELL = 0.5  # seconds for the last statuses to leave at `close`
_FOREVER = 365 * 24 * 3600.0


class AioWire:
    """`Wire` on `grpc.aio`.

    It differs from the native adapter in this:

    * Of the limits marked (n) in `port.Limits`, the number of connections and the time for a handshake are kept by
      grpcio; bytes held, the connection window and slow senders are not. Floods of frames are bounded only by what
      grpcio does itself.
    * grpcio itself answers messages over `max_receive_bytes` (RESOURCE_EXHAUSTED), compressed ones (UNIMPLEMENTED) and
      an expired deadline (DEADLINE_EXCEEDED): with these codes, but with texts of its own and without our details; they
      are not counted in `Figures.refused_total`.
    * After `drain` no call is delivered any more. New connections are refused (UNAVAILABLE to a grpcio caller), but a
      call that meets a live connection before the caller has seen that it must go is CANCELLED by grpcio.
    * HALF_CLOSE is seen only by a read, and a stream is read only while it has credit.
    * A stream that ends inside a message looks like one that its caller ended after the message before, and any content
      type is taken.
    * `write_stall` is the time for a whole message, not for any progress of it. The status of a stream that is cut off
      as a slow reader waits, with its last message, until the caller reads on or its connection ends.
    * The watchdog ends the process with code 1, between one budget and one and a quarter after the last `take`.
    * `Figures` knows nothing of connections, nor of the bytes of messages in parts.
    """

    name = "grpc.aio"

    _loop: asyncio.AbstractEventLoop
    _thread: threading.Thread
    _exchange: Exchange

    def __init__(self, config: WireConfig) -> None:
        self._config = config
        self._inbox = Inbox()
        self._watchdog = Watchdog()
        self._servers: list[grpc.aio.Server] = []
        self._certificates: list[Certificates] = []
        self._stopping: list[asyncio.Task[None]] = []

    # --- the port ----------------------------------------------------------------------------------------------------

    def start(self) -> list[str]:
        """See `Wire.start`."""
        _check_grpcio()
        self._loop = asyncio.new_event_loop()
        self._exchange = Exchange(self._loop, self._inbox, self._config.limits, self._config.refusals)
        self._thread = threading.Thread(target=self._run, name="forebay-grpc-aio", daemon=True)
        self._thread.start()
        try:
            return asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        except BaseException:
            self._end_thread()
            raise

    def take(self, most: int, timeout: float) -> list[Event]:
        """See `Wire.take`."""
        watchdog = self._watchdog
        if watchdog.armed() and timeout > (patience := watchdog.patience()):
            # Most waits are short. Only a long one is worth the price of stopping the timer.
            events, timed_out = self._inbox.take(most, patience)
            if timed_out:
                watchdog.rest()
                events, _ = self._inbox.take(most, timeout - patience)
        else:
            events, _ = self._inbox.take(most, timeout)
        watchdog.alive()
        return events

    def answer(self, actions: Sequence[Action]) -> list[int]:
        """See `Wire.answer`."""
        return self._exchange.answer(actions)

    def wake(self) -> None:
        """See `Wire.wake`."""
        self._inbox.wake()

    def gather(self, until: float) -> None:
        """See `Wire.gather`: ignored, since here each arrival costs a task anyway."""

    def watch(self, budget: float | None) -> None:
        """See `Wire.watch`; the code is 1."""
        self._watchdog.watch(budget)

    def renew_certificates(self) -> None:
        """See `Wire.renew_certificates`."""
        read = [(certificates, certificates.read()) for certificates in self._certificates]
        for certificates, configuration in read:  # all or none
            certificates.use(configuration)

    def figures(self) -> Figures:
        """See `Wire.figures`."""
        exchange = self._exchange
        return Figures(
            connections=-1,
            connections_total=-1,
            calls=len(exchange.tasks),
            calls_total=exchange.calls_total,
            held_bytes=self._inbox.message_bytes,
            received_bytes_total=exchange.received_bytes,
            sent_bytes_total=exchange.sent_bytes,
            refused_total=exchange.refused,
        )

    def drain(self) -> None:
        """See `Wire.drain`."""
        asyncio.run_coroutine_threadsafe(self._drain(), self._loop).result()

    def close(self, grace: float) -> None:
        """See `Wire.close`."""
        self._watchdog.watch(None)
        asyncio.run_coroutine_threadsafe(self._close(grace), self._loop).result()
        self._end_thread()

    # --- the loop's thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> list[str]:
        addresses: list[str] = []
        try:
            for index, exposure in enumerate(self._config.exposures):
                server = grpc.aio.server(
                    handlers=[_Handlers(self._config, index, self._exchange)],
                    options=_options(self._config.limits, reuse_port=exposure.reuse_port),
                )
                self._servers.append(server)
                addresses.append(self._listen(server, exposure))
        except ConfigError:
            await self._discard()
            raise
        for server in self._servers:
            await server.start()
        return addresses

    async def _discard(self) -> None:
        """Gives back what was bound."""
        for server in self._servers:
            await server.start()  # one that never ran can't be stopped
            await server.stop(None)

    def _listen(self, server: grpc.aio.Server, exposure: Exposure) -> str:
        """Binds an exposure and returns its address."""
        address = exposure.address
        if address.startswith("unix:"):
            _clear_unix_path(exposure)
        elif not _is_port(address.rpartition(":")[2]):
            raise _cannot_listen(exposure)  # grpcio would take a number modulo 65,536
        credentials = None
        if exposure.tls is not None:
            certificates = Certificates(exposure.tls)
            credentials = certificates.credentials()
            self._certificates.append(certificates)
        try:
            if credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, credentials)
        except RuntimeError as exc:
            raise _cannot_listen(exposure) from exc
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    async def _drain(self) -> None:
        for server, exposure in zip(self._servers, self._config.exposures, strict=True):
            if not exposure.outlives_drain:
                self._stop(server)
        await asyncio.sleep(0)  # the tasks have begun, and with that the listeners are closed

    def _stop(self, server: grpc.aio.Server) -> None:
        self._stopping.append(self._loop.create_task(server.stop(_FOREVER)))

    async def _close(self, grace: float) -> None:
        exchange = self._exchange
        for server in self._servers:
            self._stop(server)
        answered = [task for task, call in exchange.tasks.items() if call.number and call.number not in exchange.live]
        if answered and grace > 0:
            await asyncio.wait(answered, timeout=grace)
        exchange.fail_all(self._config.refusals.draining)
        await asyncio.sleep(0)
        # Connections without calls close by themselves; a harder stop would tell the callers of an error.
        _, left = await asyncio.wait(self._stopping, timeout=_FAREWELL)
        if left:
            for server in self._servers:
                await server.stop(None)
        await asyncio.gather(*self._stopping)


class _Handlers(grpc.GenericRpcHandler):
    """What an exposure offers."""

    def __init__(self, config: WireConfig, exposure: int, exchange: Exchange) -> None:
        here = config.exposures[exposure]
        mutual_tls = here.tls is not None and here.tls.client_ca is not None
        self._unknown = _stream_handler(exchange.refuse_unknown)
        self._methods = {
            method.path: _stream_handler(_serve(exchange, index, method.kind, exposure, mutual_tls=mutual_tls))
            for index, method in enumerate(config.methods)
            if method.path in here.methods
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any]":
        return self._methods.get(handler_call_details.method, self._unknown)


def _serve(exchange: Exchange, method: int, kind: MethodKind, exposure: int, *, mutual_tls: bool) -> Any:
    async def handle(_requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await exchange.serve(context, method, kind, exposure, mutual_tls=mutual_tls)

    return handle


def _stream_handler(handle: Any) -> "grpc.RpcMethodHandler[Any, Any]":
    """Without serializers, so that messages are bytes."""
    return grpc.stream_stream_rpc_method_handler(handle)


def _options(limits: Limits, *, reuse_port: bool) -> list[tuple[str, int]]:
    """Options of grpcio, see its `grpc_types.h` and `channel_arg_names.h`."""
    options = {
        "grpc.so_reuseport": int(reuse_port),
        "grpc.max_receive_message_length": limits.max_receive_bytes,
        "grpc.max_send_message_length": -1,  # checked here, to answer with details
        "grpc.max_concurrent_streams": limits.max_streams,
        "grpc.max_allowed_incoming_connections": limits.max_connections,
        "grpc.server_handshake_timeout_ms": _milliseconds(limits.handshake_timeout),
        "grpc.max_metadata_size": limits.max_metadata_bytes,
        "grpc.absolute_max_metadata_size": limits.max_metadata_bytes,
        # Without the probe the windows stay as they are set; by default one client could park 4 MiB in each stream.
        "grpc.http2.bdp_probe": 0,
        "grpc.http2.lookahead_bytes": limits.stream_window_bytes,
        "grpc.keepalive_time_ms": _milliseconds(limits.keepalive_time),
        "grpc.keepalive_timeout_ms": _milliseconds(limits.keepalive_timeout),
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.max_pings_without_data": 0,
        "grpc.http2.min_ping_interval_without_data_ms": 10_000,
        # Bit n: compression algorithm n is enabled. 0 is none, 2 is gzip.
        "grpc.compression_enabled_algorithms_bitset": 0b101 if limits.accept_gzip else 0b001,
    }
    if limits.max_connection_age > 0:
        options["grpc.max_connection_age_ms"] = _milliseconds(limits.max_connection_age)  # grpcio adds the jitter
        options["grpc.max_connection_age_grace_ms"] = _milliseconds(limits.max_connection_age_grace)
    return list(options.items())


def _milliseconds(seconds: float) -> int:
    return min(max(round(seconds * 1000), 1), 2**31 - 1)


def _check_grpcio() -> None:
    version = tuple(int(part) for part in grpc.__version__.split(".")[:2])
    if version < _LEAST_GRPCIO:
        raise ConfigError(
            f"grpcio {grpc.__version__} is too old for the grpc.aio front end: install 1.84 or newer, "
            "since older ones buffer messages that are over the limit"
        )


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= 65_535


def _cannot_listen(exposure: Exposure) -> ConfigError:
    return ConfigError(
        f"exposure {exposure.name}: can't listen on {exposure.address}: is another process listening there?"
    )


def _clear_unix_path(exposure: Exposure) -> None:
    """Removes the socket of a server that is gone. grpcio would remove that of a running one, too."""
    path = Path(exposure.address.removeprefix("unix:"))
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as exc:
        raise _cannot_listen(exposure) from exc
    if not stat.S_ISSOCK(mode):
        raise ConfigError(
            f"exposure {exposure.name}: can't listen on {exposure.address}: the file there is not a socket"
        )
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError as exc:
            raise _cannot_listen(exposure) from exc
        else:
            raise _cannot_listen(exposure)
