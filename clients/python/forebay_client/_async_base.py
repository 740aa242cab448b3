"""What is under the client for asyncio: the channels, and how plans are carried out in the caller's task."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc.aio

from forebay_client import _errors, _tracing
from forebay_client._core import check_deadline
from forebay_client._exceptions import Cancelled, ForebayError
from forebay_client._methods import methods_of
from forebay_client._operations import Operations
from forebay_client._steps import Await, Call, Give, Hear, Launch, Listen, Pause, Plan, Series, Step
from forebay_client._surface import Awaiting

T = TypeVar("T")


class AsyncBaseClient(Operations, Awaiting):
    """Everything but streams of predictions."""

    def _open(self) -> None:
        self._channels = self._target.open_async()
        self._lines = itertools.cycle([methods_of(channel) for channel in self._channels])

    async def close(self) -> None:
        """Closes the connections; calls in flight end with `Cancelled`. May be called more than once."""
        self._closed = True
        for channel in self._channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _method(self, name: str) -> Any:
        """A method, over the connection whose turn it is."""
        self._check_open()
        return next(self._lines)[name]

    async def _invoke(self, call: Call) -> Any:
        """Makes a unary call. Every attempt goes through here, also those that get company."""
        method = self._method(call.method)
        timeout = check_deadline(call.timeout)
        span = _tracing.start(call.method, self._target.address)
        failure: ForebayError | None = Cancelled("the task was cancelled")
        try:
            response = await method(call.request, timeout=timeout, metadata=_tracing.with_context(self._metadata, span))
            failure = None
        except grpc.aio.AioRpcError as error:
            failure = _errors.from_rpc(error)
            raise failure from error
        except asyncio.CancelledError as error:
            raise _errors.from_cancellation() from error
        finally:
            if span is not None:
                span.end(failure)
        return response

    def _listen(self, listen: Listen) -> Any:
        """Begins a call that has many responses."""
        return self._method(listen.method)(listen.request, timeout=listen.timeout, metadata=self._metadata)

    async def _carry_out(self, plan: Plan[T]) -> T:
        self._check_open()
        work: _Work | None = None
        try:
            step = next(plan)
            while True:
                try:
                    if isinstance(step, Call):  # most plans have nothing else
                        outcome = await self._invoke(step)
                    else:
                        work = work or _Work(self)
                        outcome = await work.do(step)
                except ForebayError as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            if work is not None:
                await work.cancel()

    def _iterate(self, series: Series[T]) -> AsyncIterator[T]:
        self._check_open()
        return self._iteration(series.plan)

    async def _iteration(self, plan: Plan[None]) -> AsyncIterator[T]:
        work = _Work(self)
        try:
            step = next(plan)
            while True:
                if isinstance(step, Give):
                    yield step.value
                    step = next(plan)
                    continue
                try:
                    outcome = await work.do(step)
                except ForebayError as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(outcome)
        except StopIteration:
            return
        finally:
            await work.cancel()


class _Work:
    """Carries out the steps of one plan, and knows what it has begun."""

    __slots__ = ("_client", "_heard", "_launched")

    def __init__(self, client: AsyncBaseClient) -> None:
        self._client = client
        self._launched: set[asyncio.Task[Any]] = set()
        self._heard: Any = None

    async def cancel(self) -> None:
        """Ends what is still running."""
        if self._heard is not None:
            self._heard.cancel()
        if self._launched:
            for task in self._launched:
                task.cancel()
            await asyncio.gather(*self._launched, return_exceptions=True)

    async def do(self, step: Step) -> Any:
        """Does a step, and gives what comes of it.

        Raises:
            ForebayError: That is what comes of it.
        """
        match step:
            case Call():
                return await self._client._invoke(step)  # noqa: SLF001  # one class in two parts
            case Pause():
                await asyncio.sleep(step.seconds)
            case Launch():
                self._launched.add(asyncio.create_task(self._client._invoke(step.call)))  # noqa: SLF001  # see above
            case Await():
                return await self._await(step.seconds)
            case Listen():
                if self._heard is not None:
                    self._heard.cancel()
                self._heard = self._client._listen(step)  # noqa: SLF001  # see above
            case Hear():
                return await self._hear()
        return None

    async def _await(self, seconds: float | None) -> Any:
        done, _ = await asyncio.wait(self._launched, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            return None
        task = done.pop()  # another one that is done comes with the next step
        self._launched.remove(task)
        try:
            return task.result()
        except ForebayError as error:
            return error

    async def _hear(self) -> Any:
        try:
            response = await self._heard.read()
        except grpc.aio.AioRpcError as error:
            raise _errors.from_rpc(error) from error
        except asyncio.CancelledError as error:
            raise _errors.from_cancellation() from error
        return None if response is grpc.aio.EOF else response
