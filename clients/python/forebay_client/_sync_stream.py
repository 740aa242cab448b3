"""A stream for threads: an iterator over outcomes, and the two threads that feed it.

* The *puller* (ours) reads the source, which may block for as long as it likes, and builds requests.
* The *sender* (gRPC's) takes as many waiting items as fit into a message, so that a slow source is not held up for
  company and a fast one fills its messages.
* Results are read in the caller's thread, in `next`.

They share a `StreamCore` under one condition. If the core says that a call that ended is to be followed by another, the
caller's thread makes it, and gRPC has another sender. The threads hold the `_Feed`, never the `PredictionStream`, so an
iterator that is dropped (a `break` in a loop) ends them.
"""

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar, cast

import grpc

from forebay.v1 import inference_pb2
from forebay_client import _errors
from forebay_client._core import Inputs
from forebay_client._exceptions import ForebayError
from forebay_client._results import Prediction
from forebay_client._stream import Failures, StreamCore

OutcomeT_co = TypeVar("OutcomeT_co", bound=Prediction | ForebayError, covariant=True)

Prepare = Callable[[Inputs], inference_pb2.PredictRequest]


class StreamCall(Protocol):
    """What gRPC gives back for a stream."""

    def __next__(self) -> inference_pb2.StreamPredictResponse:
        """Waits for the next message."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Has it called at the end of the call; False if that has come already."""

    def cancel(self) -> object:
        """Ends the call."""


Open = Callable[[Iterator[inference_pb2.StreamPredictRequest], float], StreamCall]
"""Makes a call that sends these messages, with a timeout in seconds."""


class _Feed:
    """The sending side."""

    def __init__(self, core: StreamCore, source: Iterable[Inputs], prepare: Prepare) -> None:
        self.core = core
        self.changed = threading.Condition()
        self._source = source
        self._prepare = prepare

    def pull(self) -> None:
        """The puller's thread."""
        core, changed = self.core, self.changed
        try:
            items = iter(self._source)
            while self._wait_for_room():
                try:
                    inputs = next(items)
                except StopIteration:
                    with changed:
                        core.exhaust()
                        changed.notify_all()
                    return
                request = self._prepare(inputs)
                with changed:
                    core.take(request)
                    changed.notify_all()
        except BaseException as error:  # noqa: BLE001  # whatever the source raises is raised again in the caller's thread
            with changed:
                core.fail_source(error)
                changed.notify_all()

    def _wait_for_room(self) -> bool:
        with self.changed:
            while not self.core.room:
                if self.core.closed:
                    return False
                self.changed.wait()
        return True

    def messages(self, call: int) -> Iterator[inference_pb2.StreamPredictRequest]:
        """What gRPC's thread sends on a call. Ends when there will be nothing more for it."""
        while True:
            with self.changed:
                while (message := self.core.next_message(call)) is None:
                    if self.core.sent(call):
                        return
                    self.changed.wait()
            yield message

    def lost(self, call: int) -> None:
        """The call is over: lets its sender go, whether or not somebody still reads the results."""
        with self.changed:
            self.core.lost(call)
            self.changed.notify_all()


class PredictionStream(Iterator[OutcomeT_co], Generic[OutcomeT_co]):
    """The outcomes of a stream.

    With `failures="raise"`, `next` raises the error of an item that failed; the stream is alive, and `next` goes on
    with the item after it. With `failures="yield"` such errors are given out like results. An error of the stream
    itself is raised in both cases, after the outcome of every item that was taken; then the iterator ends.

    A stream that is not read to its end is cancelled by `close`, by leaving its `with` block, or when it is dropped.
    One thread at a time may use it.
    """

    def __init__(
        self, core: StreamCore, source: Iterable[Inputs], prepare: Prepare, open_call: Open, failures: Failures
    ) -> None:
        self._core = core
        self._raise = failures == "raise"
        self._feed = _Feed(core, source, prepare)
        self._open_call = open_call
        self._call = self._connect()
        threading.Thread(target=self._feed.pull, name="forebay-stream", daemon=True).start()

    def _connect(self) -> StreamCall:
        feed = self._feed
        with feed.changed:
            number, timeout = self._core.begin()
        call = self._open_call(feed.messages(number), timeout)
        if not call.add_callback(functools.partial(feed.lost, number)):
            feed.lost(number)
        return call

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> OutcomeT_co:
        while True:
            with self._feed.changed:
                outcome = self._core.deliver()
                if outcome is not None:
                    self._feed.changed.notify_all()
                    break
                if self._core.ended:
                    error = self._core.final_error()
                    if error is not None:
                        raise error
                    raise StopIteration
            self._read()
        if self._raise and isinstance(outcome, ForebayError):
            raise outcome
        return cast("OutcomeT_co", outcome)

    def _read(self) -> None:
        """Waits for a message of the server, or for the end."""
        response: inference_pb2.StreamPredictResponse | None = None
        error: ForebayError | None = None
        try:
            response = next(self._call)
        except StopIteration:
            pass
        except grpc.RpcError as exc:
            error = _errors.from_rpc(exc)
        with self._feed.changed:
            if response is not None:
                try:
                    self._core.receive(response)
                except ForebayError as exc:
                    response, error = None, exc
            pause = self._core.end(error) if response is None else None
            self._feed.changed.notify_all()
        if response is None:
            self._call.cancel()
            if pause is not None:
                self._reconnect(pause)

    def _reconnect(self, pause: float) -> None:
        with self._feed.changed:
            self._feed.changed.wait_for(lambda: self._core.ended, pause)
            if self._core.ended:
                return
        try:
            self._call = self._connect()
        except ForebayError as error:  # the client was closed
            with self._feed.changed:
                self._core.end(error)
                self._feed.changed.notify_all()

    def close(self) -> None:
        """Cancels what is still in flight. May be called more than once."""
        with self._feed.changed:
            self._core.abandon()
            self._feed.changed.notify_all()
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_call"):
            self.close()
