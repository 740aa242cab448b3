"""A stand-in for a Service of Kubernetes, as kube-proxy makes it.

Each new connection goes to a pod that is ready, as was known a moment ago; connections that are there stay where they
are.
"""

import asyncio
import contextlib
import threading
import time
from itertools import count

from tests.deploy.kubelet import Pod


class Service:
    """Sends new connections to pods that are ready, as was known `lag_s` ago.

    Args:
        port: The port of the pods.
        lag_s: How long it takes until all nodes know what pods are ready, seconds.
    """

    def __init__(self, port: str, lag_s: float = 1.0) -> None:
        self.pods: list[Pod] = []
        self._port, self._lag_s = port, lag_s
        self._known: list[tuple[float, list[int]]] = []
        self._turn = count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self._watcher = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)
        self.addresses = {"public": f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"}

    def close(self) -> None:
        """Ends it, and the connections."""

        async def stop() -> None:
            self._server.close()
            mine = asyncio.current_task()
            for task in asyncio.all_tasks():
                if task is not mine:
                    task.cancel()
            await asyncio.sleep(0.1)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def endpoints(self) -> list[int]:
        """The ports of the pods that new connections go to."""
        before = time.monotonic() - self._lag_s
        while len(self._known) > 1 and self._known[1][0] <= before:
            self._known.pop(0)
        return self._known[0][1] if self._known else []

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _watch(self) -> None:
        while True:
            self._known.append((time.monotonic(), [pod.ports[self._port] for pod in self.pods if pod.ready]))
            self.endpoints()
            await asyncio.sleep(0.05)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        endpoints = self.endpoints()
        try:
            if not endpoints:
                return
            port = endpoints[next(self._turn) % len(endpoints)]
            there, back = await asyncio.open_connection("127.0.0.1", port)
            try:
                await asyncio.gather(self._copy(reader, back), self._copy(there, writer))
            finally:
                back.close()
        except (OSError, asyncio.CancelledError):
            pass  # the caller sees the connection end
        finally:
            writer.close()

    @staticmethod
    async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """One direction, to its end."""
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()
        with contextlib.suppress(OSError):
            target.write_eof()
