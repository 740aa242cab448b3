"""A proxy with faults, and callers who go through it: what a server sees of bad networks and broken programs.

    python -m bench.faults --to 127.0.0.1:8500 --callers 32

Each kind of fault has a port of its own; the first line on standard output says which, as JSON. The second, `called`,
comes when all callers have been connected once. On SIGTERM it writes what it has seen, by kind, and ends.

* `slow`: what callers send gets through at a trickle, so that their messages are hardly ever whole.
* `half-open`: after the beginning of a call neither side hears from the other again, and nobody closes.
* `garbage`: after a correct beginning, what callers send arrives as random bytes.
* `none`: everything gets through, for comparison.

The callers are HTTP/2 connections with one large call each. When theirs is closed they come again a second later.
The cases and the tests call it; it does not import the server.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import random
import signal
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterable, Sequence
from typing import Final

from bench.server import PREDICT
from forebay.v1 import inference_pb2, tensor_pb2

KINDS: Final = ("slow", "half-open", "garbage", "none")
BAD: Final = KINDS[:3]

SLOW_BYTES: Final = 128
SLOW_PAUSE: Final = 0.1  # seconds
HALF_BYTES: Final = 2000
"""That get through: the preface, the headers of a call, and the beginning of its message."""
GOOD_BYTES: Final = 64
"""The preface and some of the settings."""
MESSAGE_BYTES: Final = 60_000
"""Less than the window that a connection begins with, so that a caller can send it all at once."""
AGAIN: Final = 1.0  # seconds
CHUNK: Final = 1 << 16


@dataclasses.dataclass(slots=True)
class Seen:
    """What came through a proxy: connections of callers, bytes of theirs that were passed on, and connections that the
    server has closed.
    """

    connections: int = 0
    bytes: int = 0
    closed: int = 0


class Proxy:
    """Takes connections for a server, and passes on what comes with faults of one kind. Used by one event loop."""

    def __init__(self, host: str, port: int, kind: str) -> None:
        self._server = (host, port)
        self._kind = kind
        self._random = random.Random(1)
        self._listening: asyncio.Server | None = None
        self.seen = Seen()

    async def start(self, port: int = 0) -> int:
        """Listens; gives the port."""
        self._listening = await asyncio.start_server(self._take, "127.0.0.1", port)
        found: int = self._listening.sockets[0].getsockname()[1]
        return found

    async def _take(self, callers: StreamReader, to_caller: StreamWriter) -> None:
        with contextlib.suppress(
            asyncio.CancelledError
        ):  # the end: nobody waits for this task, who would be told of it
            await self._serve(callers, to_caller)

    async def _serve(self, callers: StreamReader, to_caller: StreamWriter) -> None:
        self.seen.connections += 1
        try:
            servers, to_server = await asyncio.open_connection(*self._server)
        except OSError:
            to_caller.close()
            return
        up = asyncio.create_task(self._up(callers, to_server))
        try:
            await self._down(servers, to_caller)
        finally:
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)
            to_server.close()
            if self._kind == "half-open":
                # Its caller does not learn that the server has closed: that is what half-open means.
                with contextlib.suppress(ConnectionError):
                    while await callers.read(CHUNK):
                        pass
            to_caller.close()

    async def _down(self, servers: StreamReader, to_caller: StreamWriter) -> None:
        """Passes on what the server says, until it closes."""
        heard = 0
        with contextlib.suppress(ConnectionError):
            while data := await servers.read(CHUNK):
                heard += len(data)
                if self._kind == "half-open" and heard > len(data):
                    continue  # only the first words of the server are heard
                to_caller.write(data)
                await to_caller.drain()
        self.seen.closed += 1

    async def _up(self, callers: StreamReader, to_server: StreamWriter) -> None:
        """Passes on what the caller says, with faults, until it closes."""
        passed = 0
        with contextlib.suppress(ConnectionError):
            while data := await callers.read(CHUNK):
                await self._spoil(data, passed, to_server)
                passed += len(data)
        if self._kind != "half-open":  # the server does not learn that the caller has closed, either
            to_server.close()

    async def _spoil(self, data: bytes, passed: int, to_server: StreamWriter) -> None:
        match self._kind:
            case "slow":
                for start in range(0, len(data), SLOW_BYTES):
                    await self._pass(data[start : start + SLOW_BYTES], to_server)
                    await asyncio.sleep(SLOW_PAUSE)
            case "half-open":
                if passed < HALF_BYTES:
                    await self._pass(data[: HALF_BYTES - passed], to_server)
            case "garbage":
                good = data[: max(0, GOOD_BYTES - passed)]
                await self._pass(good + self._random.randbytes(len(data) - len(good)), to_server)
            case _:
                await self._pass(data, to_server)

    async def _pass(self, data: bytes, to_server: StreamWriter) -> None:
        to_server.write(data)
        self.seen.bytes += len(data)
        await to_server.drain()


def large_call() -> bytes:
    """All that a caller says: the preface, settings, and a `Predict` with a large message."""
    import h2.config  # noqa: PLC0415  # a package of the tests
    import h2.connection  # noqa: PLC0415  # as above

    request = inference_pb2.PredictRequest(
        model="small",
        inputs=[
            tensor_pb2.Tensor(
                name="x",
                data_type=tensor_pb2.DATA_TYPE_FP32,
                shape=[MESSAGE_BYTES // 4],
                data=bytes(MESSAGE_BYTES),
            )
        ],
    ).SerializeToString()
    message = struct.pack(">BI", 0, len(request)) + request
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    connection.initiate_connection()
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": PREDICT,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    connection.send_headers(1, list(headers.items()))
    for start in range(0, len(message), connection.max_outbound_frame_size):
        connection.send_data(1, message[start : start + connection.max_outbound_frame_size])
    connection.end_stream(1)
    said: bytes = connection.data_to_send()
    return said


async def call(port: int, said: bytes, connected: asyncio.Event) -> None:
    """A caller: says all that it has to say, listens until it is cut off, and comes again."""
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(said)
                await writer.drain()
                connected.set()
                while await reader.read(CHUNK):
                    pass
            finally:
                writer.close()
        await asyncio.sleep(AGAIN)


async def _all(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        await event.wait()
    print("called", flush=True)


async def run(host: str, port: int, callers: int, kinds: Sequence[str]) -> None:
    """Runs proxies of all kinds, and callers through the bad ones that are named, until SIGTERM."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    proxies = {kind: Proxy(host, port, kind) for kind in KINDS}
    ports = {kind: await proxy.start() for kind, proxy in proxies.items()}
    print(json.dumps(ports), flush=True)
    said = large_call() if callers else b""
    connected = [(kind, asyncio.Event()) for kind in kinds for _ in range(callers)]
    calling = [asyncio.create_task(call(ports[kind], said, event)) for kind, event in connected]
    calling.append(asyncio.create_task(_all(event for _, event in connected)))
    await stopping.wait()
    for task in calling:
        task.cancel()
    print(json.dumps({kind: dataclasses.asdict(proxies[kind].seen) for kind in BAD}), flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="A proxy with faults before a gRPC server.")
    parser.add_argument("--to", required=True, help="the server, host:port")
    parser.add_argument("--callers", type=int, default=0, help="bad connections of each kind that it makes itself")
    parser.add_argument("--kinds", nargs="+", choices=BAD, default=BAD, help="of these kinds (default: all)")
    arguments = parser.parse_args()
    host, _, port = arguments.to.rpartition(":")
    asyncio.run(
        run(host, int(port), arguments.callers, arguments.kinds)
    )  # what is left open is closed with the process


if __name__ == "__main__":
    main()
