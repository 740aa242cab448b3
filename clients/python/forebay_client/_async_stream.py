"""A stream for asyncio: an asynchronous iterator over outcomes, and the two tasks that feed it.

The tasks are those of `_sync_stream`: a *puller* (ours) and a *sender* (gRPC's). They share a `StreamCore`; everything
happens in one event loop, so it needs no lock, only two events that say "look again".
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Generic, Self, TypeVar, cast

import grpc.aio

from forebay.v1 import inference_pb2
from forebay_client import _errors
from forebay_client._core import Inputs
from forebay_client._exceptions import ForebayError
from forebay_client._results import Prediction
from forebay_client._stream import Failures, StreamCore

OutcomeT_co = TypeVar("OutcomeT_co", bound=Prediction | ForebayError, covariant=True)

AsyncSource = AsyncIterable[Inputs] | Iterable[Inputs]
AsyncPrepare = Callable[[Inputs], Awaitable[inference_pb2.PredictRequest]]
AsyncStreamCall = grpc.aio.StreamStreamCall[inference_pb2.StreamPredictRequest, inference_pb2.StreamPredictResponse]
AsyncOpen = Callable[[AsyncIterator[inference_pb2.StreamPredictRequest], float], AsyncStreamCall]
"""Makes a call that sends these messages, with a timeout in seconds."""


class _AsyncFeed:
    """The sending side."""

    def __init__(self, core: StreamCore, source: AsyncSource, prepare: AsyncPrepare) -> None:
        self.core = core
        self._source = source
        self._prepare = prepare
        self._room = asyncio.Event()
        self._work = asyncio.Event()

    def changed(self) -> None:
        """Makes both tasks look again."""
        self._room.set()
        self._work.set()

    def made_room(self) -> None:
        """Makes the puller look again."""
        self._room.set()

    async def pull(self) -> None:
        """The puller's task."""
        core = self.core
        try:
            items = aiter(self._source) if isinstance(self._source, AsyncIterable) else _as_async(self._source)
            while await self._wait_for_room():
                try:
                    inputs = await anext(items)
                except StopAsyncIteration:
                    core.exhaust()
                    break
                core.take(await self._prepare(inputs))
                self._work.set()
        except Exception as error:  # noqa: BLE001  # whatever the source raises is raised again in the caller's task
            core.fail_source(error)
        self._work.set()

    async def _wait_for_room(self) -> bool:
        while not self.core.room:
            if self.core.closed:
                return False
            self._room.clear()
            await self._room.wait()
        return True

    async def messages(self, call: int) -> AsyncIterator[inference_pb2.StreamPredictRequest]:
        """What gRPC's task sends on a call. Ends when there will be nothing more for it."""
        while (message := self.core.next_message(call)) is not None or not self.core.sent(call):
            if message is None:
                self._work.clear()
                await self._work.wait()
            else:
                yield message

    def lost(self, call: int) -> None:
        """The call is over: lets its sender go, whether or not somebody still reads the results."""
        self.core.lost(call)
        self.changed()


async def _as_async(source: Iterable[Inputs]) -> AsyncIterator[Inputs]:
    for inputs in source:
        yield inputs


class AsyncPredictionStream(AsyncIterator[OutcomeT_co], Generic[OutcomeT_co]):
    """The outcomes of a stream. As `PredictionStream`, for one task at a time.

    Cancelling a task that waits for the next outcome cancels the stream.
    """

    def __init__(
        self,
        core: StreamCore,
        source: AsyncSource,
        prepare: AsyncPrepare,
        open_call: AsyncOpen,
        failures: Failures,
    ) -> None:
        self._core = core
        self._raise = failures == "raise"
        self._feed = feed = _AsyncFeed(core, source, prepare)
        self._open_call = open_call
        self._call = self._connect()
        self._puller = asyncio.get_running_loop().create_task(feed.pull(), name="forebay-stream")

    def _connect(self) -> AsyncStreamCall:
        feed = self._feed
        number, timeout = self._core.begin()
        call = self._open_call(feed.messages(number), timeout)
        call.add_done_callback(lambda _call: feed.lost(number))
        return call

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OutcomeT_co:
        while (outcome := self._core.deliver()) is None:
            if self._core.ended:
                error = self._core.final_error()
                if error is not None:
                    raise error
                raise StopAsyncIteration
            await self._read()
        self._feed.made_room()
        if self._raise and isinstance(outcome, ForebayError):
            raise outcome
        return cast("OutcomeT_co", outcome)

    async def _read(self) -> None:
        """Waits for a message of the server, or for the end."""
        error: ForebayError | None = None
        try:
            response = await self._call.read()
            if isinstance(response, inference_pb2.StreamPredictResponse):
                self._core.receive(response)
                self._feed.changed()
                return
        except grpc.aio.AioRpcError as exc:
            error = _errors.from_rpc(exc)
        except asyncio.CancelledError:
            error = _errors.from_cancellation()
        except ForebayError as exc:
            error = exc
        pause = self._core.end(error)
        self._feed.changed()
        self._call.cancel()
        if pause is not None:
            await self._reconnect(pause)

    async def _reconnect(self, pause: float) -> None:
        await asyncio.sleep(pause)
        if self._core.ended:
            return
        try:
            self._call = self._connect()
        except ForebayError as exc:  # the client was closed
            self._core.end(exc)
        self._feed.changed()

    async def aclose(self) -> None:
        """Cancels what is still in flight, and waits until the tasks are gone. May be called more than once."""
        self._cancel()
        await asyncio.gather(self._puller, return_exceptions=True)

    def _cancel(self) -> None:
        self._core.abandon()
        self._feed.changed()
        self._call.cancel()
        self._puller.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # Dropped in its loop (a `break` without `async with`): nothing may be awaited here, but all can be cancelled.
        if hasattr(self, "_puller") and not self._puller.done() and not self._puller.get_loop().is_closed():
            self._cancel()
