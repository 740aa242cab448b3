"""What a stream decides: what is read, what goes into the next message, what each item came to, when to connect again.

Pure: no thread, no loop, no channel, no clock. `_sync_stream` and `_async_stream` act on it, each in its own way, and
keep calls to one `StreamCore` from overlapping.

The life of an item: *taken* from the source -> *sent* -> *answered* -> *delivered* to the caller. Items between taken
and delivered are *held*: never more than the window, and no more are taken while their inputs have as many bytes as it
may, so that one item at most goes beyond that. Each item that was taken is delivered exactly once, as a prediction or
as an error.

If the server goes away or drains, another call is made, and what was sent and not answered is sent again on it; what
was answered is not. Only if nobody has answered anything for the time of an `outage`, though items wait for an answer,
is the stream over: then the items that were taken fail, and unless the source is exhausted one more error follows,
whose `taken` says where the rest begins.
"""

from collections import deque
from typing import Final, Literal

from google.protobuf import duration_pb2

from forebay.v1 import inference_pb2
from forebay_client import _errors
from forebay_client._core import read_prediction, size_of
from forebay_client._exceptions import BadResponse, Draining, ForebayError, Unavailable
from forebay_client._results import Prediction
from forebay_client._retries import Patience
from forebay_client._steps import Chance, Clock
from forebay_client._tracing import StreamSpan

BYTES_PER_MESSAGE: Final = 1 << 20  # of inputs, unless one item alone has more: servers refuse messages of 16 MiB

Failures = Literal["raise", "yield"]
Outcome = Prediction | ForebayError


class StreamCore:
    """The state of one stream.

    Args:
        window: The most items held.
        window_bytes: With as many bytes of inputs held, no more items are taken.
        items_per_message: The most items in a message.
        ordered: Whether results come in the order of the items, else as they complete.
        deadline: Seconds for each item, from its arrival at the server.
        until: The deadline of the stream, monotonic.
        outage: Seconds at a stretch for which no server need answer.
        clock: Tells monotonic instants.
        chance: Gives numbers in [0, 1).
        span: The stream's, if there are spans.
    """

    __slots__ = (
        "_call",
        "_clock",
        "_closed",
        "_contexts",
        "_drained",
        "_ended",
        "_exhausted",
        "_final",
        "_held_bytes",
        "_items_per_message",
        "_options",
        "_options_left",
        "_outage",
        "_patience",
        "_pending",
        "_ready",
        "_sending",
        "_sizes",
        "_source_error",
        "_span",
        "_timeout",
        "_unanswered",
        "_until",
        "_window",
        "_window_bytes",
        "taken",
    )

    def __init__(
        self,
        *,
        window: int,
        window_bytes: int,
        items_per_message: int,
        ordered: bool,
        deadline: float,
        until: float,
        outage: float,
        clock: Clock,
        chance: Chance,
        span: StreamSpan | None = None,
    ) -> None:
        self._span = span
        self._contexts: dict[int, str] = {}
        self._window = window
        self._window_bytes = window_bytes
        self._items_per_message = items_per_message
        self._timeout = duration_pb2.Duration()
        self._timeout.FromNanoseconds(round(deadline * 1e9))
        order = inference_pb2.RESULT_ORDER_AS_SENT if ordered else inference_pb2.RESULT_ORDER_AS_COMPLETED
        self._options = inference_pb2.StreamOptions(order=order, max_in_flight=window)
        self._options_left = True
        self._clock = clock
        self._until = until
        self._outage = outage
        self._patience = Patience(until, clock, chance, outage)
        self._call = 0
        self._sending = False
        """Whether the present call takes items."""
        self._pending: deque[int] = deque()
        """Items to be sent on the present call."""
        self._unanswered: dict[int, inference_pb2.PredictRequest] = {}  # in the order of the items
        self._ready: deque[tuple[int, inference_pb2.StreamResult | ForebayError]] = deque()
        self._sizes: dict[int, int] = {}
        """Bytes of the inputs of each item that is held."""
        self._held_bytes = 0
        self.taken = 0
        """Items taken from the source so far."""
        self._closed = False
        self._exhausted = False
        self._drained = False
        self._ended = False
        self._source_error: BaseException | None = None
        self._final: BaseException | None = None

    # --- Calls ---

    def begin(self) -> tuple[int, float]:
        """A call is made: its number, and its timeout in seconds. Everything that has no answer is to be sent on it."""
        self._call += 1
        self._sending = True
        self._drained = False
        self._pending = deque(self._unanswered)
        self._options_left = True
        return self._call, max(self._until - self._clock(), 1e-3)

    def lost(self, call: int) -> None:
        """This call is over, though what it has delivered may not have been read yet: nothing more is sent on it."""
        if call == self._call:
            self._sending = False
            if not self._outage:
                self._closed = True

    def end(self, error: ForebayError | None = None) -> float | None:
        """The present call is over, with this error or with OK, and all that it delivered was received.

        Returns:
            Seconds after which another one is to be made; None: the stream is over.
        """
        if self._ended:
            return None
        self._sending = False
        if error is None or self._drained:
            left: ForebayError = Draining("the server is shutting down and did not take this", reason="DRAINING")
            if not self._drained:
                left = Unavailable("the server ended the stream before all was answered")
        else:
            left = error
        if (self._unanswered or not self._closed) and self._outage and isinstance(left, Unavailable):
            if not self._unanswered:
                return self._patience.rest()
            try:
                return self._patience.after(left)
            except ForebayError:
                pass  # long enough
        self._ended = self._closed = True
        if self._span is not None:
            self._span.end(error)
        self._pending.clear()
        self._ready.extend((index, _errors.again(left, index=index)) for index in self._unanswered)
        self._unanswered.clear()
        if self._source_error is not None:
            self._final = self._source_error
        elif not self._exhausted:
            self._final = _errors.again(left, taken=self.taken)
        return None

    def abandon(self) -> None:
        """The caller wants no more: nothing is delivered from now on."""
        if self._span is not None:
            self._span.end(cancelled=True)
        self._ended = self._closed = self._exhausted = True
        self._sending = False
        self._pending.clear()
        self._unanswered.clear()
        self._ready.clear()
        self._sizes.clear()
        self._final = None

    # --- The sending side ---

    @property
    def closed(self) -> bool:
        """Whether no more items are taken: the source is exhausted or failed, or all is over."""
        return self._closed

    @property
    def room(self) -> bool:
        """Whether the source may be read."""
        return not self._closed and len(self._sizes) < self._window and self._held_bytes < self._window_bytes

    def take(self, request: inference_pb2.PredictRequest) -> None:
        """An item was read from the source. Too late for it if the stream closed meanwhile: it does not count."""
        if self._closed:
            return
        self._unanswered[self.taken] = request
        if self._span is not None:
            self._contexts[self.taken] = self._span.item(self.taken)
        if self._sending:
            self._pending.append(self.taken)
        self._sizes[self.taken] = size = size_of(request)
        self._held_bytes += size
        self.taken += 1

    def exhaust(self) -> None:
        """The source has no more items."""
        if not self._closed:
            self._closed = self._exhausted = True

    def fail_source(self, error: BaseException) -> None:
        """The source, or the reading of an item, raised. What was taken is still answered, then this is raised."""
        if not self._closed:
            self._closed = True
            self._source_error = error

    def next_message(self, call: int) -> inference_pb2.StreamPredictRequest | None:
        """What to send on this call now; None if there is nothing. Once `sent`, there will never be more."""
        if call != self._call or not self._sending or not self._pending:
            return None
        message = inference_pb2.StreamPredictRequest()
        if self._options_left:
            self._options_left = False
            message.options.CopyFrom(self._options)
        room = BYTES_PER_MESSAGE
        for count in range(min(len(self._pending), self._items_per_message)):
            room -= self._sizes[self._pending[0]]
            if count and room < 0:
                break
            index = self._pending.popleft()
            message.items.add(
                id=index,
                request=self._unanswered[index],
                timeout=self._timeout,
                traceparent=self._contexts.get(index),
            )
        return message

    def sent(self, call: int) -> bool:
        """Whether this call has all that it will ever get."""
        return call != self._call or not self._sending or (self._closed and not self._pending)

    # --- The receiving side ---

    def receive(self, response: inference_pb2.StreamPredictResponse) -> None:
        """A message of the server.

        Raises:
            BadResponse: It has a result for an item that is not in flight.
        """
        answered = False
        for result in response.results:
            if result.id not in self._unanswered or (self._pending and result.id >= self._pending[0]):
                raise BadResponse(f"the server answered item {result.id}, which is not in flight")
            if self._outage and self._refused(result):
                continue  # for the next call
            del self._unanswered[result.id]
            self._ready.append((result.id, result))
            if self._span is not None:
                failed = result.WhichOneof("outcome") == "error"
                self._contexts.pop(result.id, None)
                self._span.answered(result.id, _errors.from_status(result.error) if failed else None)
            answered = True
        if answered:
            self._patience.restore()
        if response.HasField("drain"):
            self._drained = True
            self._sending = False  # what is pending goes with the next call, or fails at the end
            self._pending.clear()
            if not self._outage:
                self._closed = True

    def _refused(self, result: inference_pb2.StreamResult) -> bool:
        """Whether the server did not take the item, because it drains."""
        if result.WhichOneof("outcome") != "error" or result.error.code != _errors.UNAVAILABLE:
            return False
        return isinstance(_errors.from_status(result.error), Draining)

    def deliver(self) -> Outcome | None:
        """The next outcome; None if there is none now. Makes room for another item."""
        if not self._ready:
            return None
        index, result = self._ready.popleft()
        self._held_bytes -= self._sizes.pop(index)
        if isinstance(result, ForebayError):
            return result
        match result.WhichOneof("outcome"):
            case "response":
                try:
                    return read_prediction(result.response, index=index)
                except BadResponse as error:
                    return error
            case "error":
                return _errors.from_status(result.error, index=index)
        return BadResponse("the server sent a result without an outcome", index=index)

    @property
    def ended(self) -> bool:
        """Whether the stream is over. What is `ready` can still be delivered."""
        return self._ended

    def final_error(self) -> BaseException | None:
        """What is to be raised after the last outcome, once."""
        error, self._final = self._final, None
        return error
