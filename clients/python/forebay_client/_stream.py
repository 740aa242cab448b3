"""What a stream decides: when the source may be read, what goes into the next message, and what each item came to.

Pure: no thread, no loop, no channel. `_sync_stream` and `_async_stream` act on it, each in its own way, and keep calls
to one `StreamCore` from overlapping.

The life of an item: *taken* from the source -> *sent* -> *answered* -> *delivered* to the caller. Items between taken
and delivered are *held*, and never more than the window. Each item that was taken is delivered exactly once, as a
prediction or as an error, also when the stream ends early. If it does so before the source is exhausted, one more error
follows, whose `taken` says where the rest begins.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Literal, TypedDict

from google.protobuf import duration_pb2

from forebay.v1 import inference_pb2
from forebay_client import _errors
from forebay_client._core import ParameterValue, Priority, check_deadline, read_prediction
from forebay_client._exceptions import BadResponse, Draining, ForebayError, Unavailable
from forebay_client._results import Prediction

WINDOW = 256  # items; the server's own default
ITEMS_PER_MESSAGE = 32
STREAM_DEADLINE = 3600.0  # seconds; the longest that a server allows by default
MAX_ITEMS_PER_MESSAGE = 1024  # the contract's limit

Failures = Literal["raise", "yield"]
Outcome = Prediction | ForebayError


class StreamOptions(TypedDict, total=False):
    """The options of `stream` beside `failures`, for the type checker; `Client.stream` documents them."""

    window: int
    items_per_message: int
    ordered: bool
    version: str | int
    outputs: Iterable[str] | None
    deadline: float
    stream_deadline: float
    priority: Priority
    parameters: Mapping[str, ParameterValue] | None
    timings: bool


class StreamCore:
    """The state of one stream.

    Args:
        window: The most items held.
        items_per_message: The most items in a message.
        ordered: Whether results come in the order of the items, else as they complete.
        deadline: Seconds for each item, from its arrival at the server.

    Raises:
        ValueError: An argument is out of range.
    """

    __slots__ = (
        "_closed",
        "_drained",
        "_ended",
        "_exhausted",
        "_final",
        "_held",
        "_items_per_message",
        "_options",
        "_pending",
        "_ready",
        "_source_error",
        "_timeout",
        "_unanswered",
        "_window",
        "taken",
    )

    def __init__(self, *, window: int, items_per_message: int, ordered: bool, deadline: float) -> None:
        if window < 1:
            raise ValueError(f"the window must hold at least one item, not {window}")
        if not 1 <= items_per_message <= MAX_ITEMS_PER_MESSAGE:
            raise ValueError(f"a message holds 1 to {MAX_ITEMS_PER_MESSAGE} items, not {items_per_message}")
        self._window = window
        self._items_per_message = items_per_message
        self._timeout = duration_pb2.Duration()
        self._timeout.FromNanoseconds(round(check_deadline(deadline) * 1e9))
        order = inference_pb2.RESULT_ORDER_AS_SENT if ordered else inference_pb2.RESULT_ORDER_AS_COMPLETED
        self._options: inference_pb2.StreamOptions | None = inference_pb2.StreamOptions(
            order=order, max_in_flight=window
        )
        self._pending: deque[tuple[int, inference_pb2.PredictRequest]] = deque()
        self._unanswered: dict[int, None] = {}  # a set in the order of the items
        self._ready: deque[inference_pb2.StreamResult | ForebayError] = deque()
        self._held = 0
        self.taken = 0
        """Items taken from the source so far."""
        self._closed = False
        self._exhausted = False
        self._drained = False
        self._ended = False
        self._source_error: BaseException | None = None
        self._final: BaseException | None = None

    # --- The sending side ---

    @property
    def closed(self) -> bool:
        """Whether no more items are taken: the source is exhausted or failed, the server drains, or all is over."""
        return self._closed

    @property
    def room(self) -> bool:
        """Whether the source may be read."""
        return not self._closed and self._held < self._window

    def take(self, request: inference_pb2.PredictRequest) -> None:
        """An item was read from the source. Too late for it if the stream closed meanwhile: it does not count."""
        if self._closed:
            return
        self._pending.append((self.taken, request))
        self._unanswered[self.taken] = None
        self._held += 1
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

    def next_message(self) -> inference_pb2.StreamPredictRequest | None:
        """What to send now; None if there is nothing. Once `closed`, None means that there will never be more."""
        if not self._pending:
            return None
        message = inference_pb2.StreamPredictRequest(options=self._options)
        self._options = None
        for _ in range(min(len(self._pending), self._items_per_message)):
            index, request = self._pending.popleft()
            message.items.add(id=index, request=request, timeout=self._timeout)
        return message

    # --- The receiving side ---

    def receive(self, response: inference_pb2.StreamPredictResponse) -> None:
        """A message of the server.

        Raises:
            BadResponse: It has a result for an item that is not in flight.
        """
        for result in response.results:
            if result.id not in self._unanswered:
                raise BadResponse(f"the server answered item {result.id}, which is not in flight")
            del self._unanswered[result.id]
            self._ready.append(result)
        if response.HasField("drain"):
            self._closed = self._drained = True
            self._pending.clear()  # they stay unanswered, and are told so at the end

    def end(self, error: ForebayError | None = None) -> None:
        """The stream is over, with this error or with OK."""
        if self._ended:
            return
        if error is None or self._drained:
            left: ForebayError = Draining("the server is shutting down and did not take this", reason="DRAINING")
            if not self._drained:
                left = Unavailable("the server ended the stream before all was answered")
        else:
            left = error
        self._ended = self._closed = True
        self._pending.clear()
        self._ready.extend(_errors.again(left, index=index) for index in self._unanswered)
        self._unanswered.clear()
        if self._source_error is not None:
            self._final = self._source_error
        elif not self._exhausted:
            self._final = _errors.again(left, taken=self.taken)

    def cut(self) -> None:
        """The call is over, though what it has delivered may not have been read yet: nothing more is taken or sent."""
        self._closed = True
        self._pending.clear()

    def abandon(self) -> None:
        """The caller wants no more: nothing is delivered from now on."""
        self._ended = self._closed = self._exhausted = True
        self._pending.clear()
        self._unanswered.clear()
        self._ready.clear()
        self._final = None

    def deliver(self) -> Outcome | None:
        """The next outcome; None if there is none now. Makes room for another item."""
        if not self._ready:
            return None
        self._held -= 1
        result = self._ready.popleft()
        if isinstance(result, ForebayError):
            return result
        match result.WhichOneof("outcome"):
            case "response":
                try:
                    return read_prediction(result.response, index=result.id)
                except BadResponse as error:
                    return error
            case "error":
                return _errors.from_status(result.error, index=result.id)
        return BadResponse("the server sent a result without an outcome", index=result.id)

    @property
    def ended(self) -> bool:
        """Whether the stream is over. What is `ready` can still be delivered."""
        return self._ended

    def final_error(self) -> BaseException | None:
        """What is to be raised after the last outcome, once."""
        error, self._final = self._final, None
        return error
