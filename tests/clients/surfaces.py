"""Both clients behind one blocking face, so that one test runs on each."""

import asyncio
import threading
from typing import Any

from forebay_client import AsyncClient, Client


class SyncSurface:
    """`Client`, as it is."""

    def __init__(self, address: str, **options: Any) -> None:
        self.client = Client(address, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def stream(self, *args: Any, **options: Any) -> Any:
        return self.client.stream(*args, **options)


class AsyncStreamFace:
    """An asynchronous iterator that a method of the client gives, as a blocking one."""

    def __init__(self, surface: "AsyncSurface", method: str, args: Any, options: Any) -> None:
        self.surface = surface

        async def start() -> Any:
            return getattr(surface.client, method)(*args, **options)

        self.stream = surface.run(start())

    def __iter__(self) -> "AsyncStreamFace":
        return self

    def __next__(self) -> Any:
        async def step() -> Any:
            try:
                return await anext(self.stream)
            except StopAsyncIteration:
                return self

        outcome = self.surface.run(step())
        if outcome is self:
            raise StopIteration
        return outcome

    def close(self) -> None:
        self.surface.run(self.stream.aclose())


class AsyncSurface:
    """`AsyncClient` in a loop of its own thread, so that its tasks move while a test looks."""

    def __init__(self, address: str, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

        async def make() -> AsyncClient:
            return AsyncClient(address, **options)

        try:
            self.client = self.run(make())
        except BaseException:
            self.stop()
            raise

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self.run(getattr(self.client, name)(*args, **options))

    def stream(self, *args: Any, **options: Any) -> AsyncStreamFace:
        return AsyncStreamFace(self, "stream", args, options)

    def watch(self, *args: Any, **options: Any) -> AsyncStreamFace:
        return AsyncStreamFace(self, "watch", args, options)

    def jobs(self, *args: Any, **options: Any) -> AsyncStreamFace:
        return AsyncStreamFace(self, "jobs", args, options)

    def close(self) -> None:
        self.run(self.client.close())
        self.stop()

    def stop(self) -> None:
        async def rest() -> None:
            """As `asyncio.run` ends: gRPC has tasks of its own, which outlive a channel for a moment."""
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.loop.shutdown_asyncgens()

        self.run(rest())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
