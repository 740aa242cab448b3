"""What is under the client for threads: the channels, and how plans are carried out in the caller's thread."""

import itertools
import queue
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from forebay_client import _errors, _tracing
from forebay_client._core import check_deadline
from forebay_client._exceptions import ForebayError
from forebay_client._methods import methods_of
from forebay_client._operations import Operations
from forebay_client._steps import Await, Call, Give, Hear, Launch, Listen, Pause, Plan, Series, Step
from forebay_client._surface import Blocking

T = TypeVar("T")


class BaseClient(Operations, Blocking):
    """Everything but streams of predictions."""

    def _open(self) -> None:
        self._channels = self._target.open()
        self._lines = itertools.cycle([methods_of(channel) for channel in self._channels])

    def close(self) -> None:
        """Closes the connections; calls in flight end with `Cancelled`. May be called more than once."""
        self._closed = True
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _method(self, name: str) -> Any:
        """A method, over the connection whose turn it is."""
        self._check_open()
        return next(self._lines)[name]

    def _invoke(self, call: Call) -> Any:
        """Makes a unary call. Every attempt goes through here, but for those that may get company: `_launch`."""
        method = self._method(call.method)
        timeout = check_deadline(call.timeout)
        span = _tracing.start(call.method, self._target.address)
        failure: ForebayError | None = None
        try:
            return method(call.request, timeout=timeout, metadata=_tracing.with_context(self._metadata, span))
        except grpc.RpcError as error:
            failure = _errors.from_rpc(error)
            raise failure from error
        finally:
            if span is not None:
                span.end(failure)

    def _launch(self, call: Call) -> Any:
        """Begins a unary call; a future of gRPC's."""
        method = self._method(call.method)
        timeout = check_deadline(call.timeout)
        span = _tracing.start(call.method, self._target.address)
        future = method.future(call.request, timeout=timeout, metadata=_tracing.with_context(self._metadata, span))
        if span is not None:
            future.add_done_callback(lambda done: span.fail_or_end(done.code()))
        return future

    def _listen(self, listen: Listen) -> Any:
        """Begins a call that has many responses."""
        return self._method(listen.method)(listen.request, timeout=listen.timeout, metadata=self._metadata)

    def _carry_out(self, plan: Plan[T]) -> T:
        self._check_open()
        work: _Work | None = None
        try:
            step = next(plan)
            while True:
                try:
                    if isinstance(step, Call):  # most plans have nothing else
                        outcome = self._invoke(step)
                    else:
                        work = work or _Work(self)
                        outcome = work.do(step)
                except ForebayError as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            if work is not None:
                work.cancel()

    def _iterate(self, series: Series[T]) -> Iterator[T]:
        self._check_open()
        return self._iteration(series.plan)

    def _iteration(self, plan: Plan[None]) -> Iterator[T]:
        work = _Work(self)
        try:
            step = next(plan)
            while True:
                if isinstance(step, Give):
                    yield step.value
                    step = next(plan)
                    continue
                try:
                    outcome = work.do(step)
                except ForebayError as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(outcome)
        except StopIteration:
            return
        finally:
            work.cancel()


class _Work:
    """Carries out the steps of one plan, and knows what it has begun."""

    __slots__ = ("_client", "_ended", "_heard", "_launched")

    def __init__(self, client: BaseClient) -> None:
        self._client = client
        self._launched: list[Any] = []
        self._ended: queue.SimpleQueue[Any] | None = None
        self._heard: Any = None

    def cancel(self) -> None:
        """Ends what is still running."""
        for call in self._launched:
            call.cancel()
        if self._heard is not None:
            self._heard.cancel()

    def do(self, step: Step) -> Any:
        """Does a step, and gives what comes of it.

        Raises:
            ForebayError: That is what comes of it.
        """
        match step:
            case Call():
                return self._client._invoke(step)  # noqa: SLF001  # one class in two parts
            case Pause():
                time.sleep(step.seconds)
            case Launch():
                self._launch(step.call)
            case Await():
                return self._await(step.seconds)
            case Listen():
                if self._heard is not None:
                    self._heard.cancel()
                self._heard = self._client._listen(step)  # noqa: SLF001  # see above
            case Hear():
                try:
                    return next(self._heard, None)
                except grpc.RpcError as error:
                    raise _errors.from_rpc(error) from error
        return None

    def _launch(self, call: Call) -> None:
        if self._ended is None:
            self._ended = queue.SimpleQueue()
        launched = self._client._launch(call)  # noqa: SLF001  # see above
        self._launched.append(launched)
        launched.add_done_callback(self._ended.put)

    def _await(self, seconds: float | None) -> Any:
        if self._ended is None:
            raise RuntimeError("nothing was launched")
        try:
            ended = self._ended.get(timeout=seconds)
        except queue.Empty:
            return None
        try:
            return ended.result()
        except grpc.RpcError as error:
            return _errors.from_rpc(error)
