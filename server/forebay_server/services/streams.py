"""`StreamPredict`: many requests over one stream, answered in messages of many results.

Life of a stream: OPEN gives it credit for its first message. Each message's items are built and admitted like unary
requests, all at once if they differ in ids and data only; what fails at once is a result like any other. Results gather
in the stream, and `flush`, which the dispatcher calls at the end of each turn, sends what has gathered as few messages,
gives credit for more items, and finishes the stream when the caller has closed its side and everything is answered.

Flow control. *Items in flight* are those accepted whose results are not handed to the wire; in order, a finished item
that waits for an earlier one counts. A stream whose window is full gets no credit, so HTTP/2 slows its caller down.
Credits are given for as many messages as the window has room for, going by the items in the last one; messages that
come in excess (their caller suddenly sends more items in each) are *parked* and taken up as the window empties, so that
it is overshot by the items of one message at most. A stream whose results are not read gets no credit either.

Everything runs in the dispatcher thread.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError

from forebay.v1 import inference_pb2
from forebay_server import errors
from forebay_server.errors import ForebayError, InvalidRequest
from forebay_server.services.complaints import Complaints
from forebay_server.services.framing import (
    error_part,
    first_item,
    ids_of_alike,
    result_part,
    seconds_of,
    split_items,
)
from forebay_server.services.intake import Intake
from forebay_server.services.service import Outbox
from forebay_server.services.status import CODE_NAMES, failure, internal, status_bytes
from forebay_server.services.stream import ItemInference, Stream
from forebay_server.services.templates import Template
from forebay_server.telemetry.tracing.names import CANCELLED, DEADLINE_EXCEEDED, OK, STREAM
from forebay_server.telemetry.tracing.records import CALL, ITEM
from forebay_server.telemetry.tracing.tracer import Mark, Tracer, decoded
from forebay_server.wire.port import CREDIT, FAIL, FINISH, SEND, Event

MAX_ITEMS: Final = 1024
"""Items in one message."""
ALIKE: Final = 8
"""Items in a message from which it pays to look at them all at once."""
MAX_CREDITS: Final = 256
"""Messages that one stream may have under way to us."""
MAX_UNDERWAY_BYTES: Final = 1 << 20
"""What the messages of several credits may come to, going by the last one."""
MAX_PARKED_BYTES: Final = 4 << 20
"""Above this, parked messages are taken up in spite of the window: admission has limits of its own."""
COALESCED_BYTES: Final = 256 << 10
"""Results are put together into messages of about this size; one large result may make a larger one."""

UNREADABLE = InvalidRequest([("", "the message can't be parsed as a StreamPredictRequest")])
MALFORMED = failure(UNREADABLE)
DRAINING = errors.Draining("the server is shutting down")
DRAINING_STATUS = status_bytes(DRAINING)
DRAINING_FAILURE = failure(DRAINING)


_Item = tuple[int, Any, float | None, Template | None, str]
"""The id of an item; its request, as bytes with the template that they follow, or parsed, with its timeout between; its
trace context."""


class Streams:
    """All open streams.

    Args:
        intake: Builds requests.
        outbox: Where messages go.
        window: The most items in flight on one stream.
        max_send_bytes: The largest message that the wire sends.
        complaints: Told of items and streams that were refused or have failed.
        tracer: Who keeps what becomes spans; None: nobody.
    """

    def __init__(
        self,
        intake: Intake,
        outbox: Outbox,
        *,
        window: int,
        max_send_bytes: int,
        complaints: Complaints,
        tracer: Tracer | None = None,
    ) -> None:
        self._intake = intake
        self.complaints = complaints
        self.tracer = tracer
        self._outbox = outbox
        self.clock: Callable[[], float] = intake.clock
        self._window = window
        self._streams: dict[int, Stream] = {}
        self.dirty: list[Stream] = []
        """Streams that `flush` has to look at."""
        self._lesson: bytes | None = None
        """The bytes of an item's request that followed no template, in the message that is taken up."""
        self.max_response = max_send_bytes - 64
        """Bytes; the rest is for what is around a response."""
        self.too_large = status_bytes(errors.MessageTooLarge(f"the response is larger than {max_send_bytes} bytes"))

    def open(self) -> int:
        """Open streams."""
        return len(self._streams)

    def in_flight(self) -> int:
        """Items whose results are still due, messages that wait to be taken up counted as one."""
        return sum(len(stream.flights) + len(stream.parked) for stream in self._streams.values())

    # --- Events -------------------------------------------------------------------------------------------------------

    def opened(self, event: Event) -> None:
        """OPEN: gives credit for the first message."""
        _, call, _, _, deadline, peer, metadata = event
        intake = self._intake
        mark = None if self.tracer is None else self.tracer.begin(metadata)
        if intake.draining:
            self._outbox.append((FAIL, call, DRAINING_FAILURE))
            self.complaints.refused(DRAINING, "StreamPredict", metadata=metadata)
            if self.tracer is not None:
                code = CODE_NAMES[DRAINING.reason]
                self.tracer.ended(mark, CALL, self.clock(), STREAM, code, DRAINING.reason)
            return
        stream = Stream(self, call, deadline, intake.tenant(peer, metadata), self._window, metadata)
        if self.tracer is not None:
            stream.mark, stream.opened = mark, self.clock()
        stream.credits = 1
        self._streams[call] = stream
        self._outbox.append((CREDIT, call, 1))

    def message(self, event: Event) -> None:
        """MESSAGE: takes up its items, or parks it if the window is full."""
        stream = self._streams.get(event[1])
        if stream is None:
            return
        stream.credits -= 1
        body = event[3] or b""
        if stream.parked or len(stream.flights) >= stream.window:
            stream.parked.append(body)
            stream.parked_bytes += len(body)
            if stream.parked_bytes > MAX_PARKED_BYTES:
                self._unpark(stream, regardless=True)
        else:
            self._take(stream, body)
        self._touch(stream)

    def half_closed(self, event: Event) -> None:
        """HALF_CLOSE: the stream ends when everything is answered."""
        stream = self._streams.get(event[1])
        if stream is not None:
            stream.half_closed = True
            self._touch(stream)

    def cancelled(self, event: Event) -> None:
        """CANCEL: drops the stream and all its items."""
        stream = self._streams.pop(event[1], None)
        if stream is not None:
            self._drop(stream)
            if self.tracer is not None:
                late = stream.deadline <= self.clock()
                self._ended(stream, DEADLINE_EXCEEDED if late else CANCELLED)

    def full(self, call: int) -> None:
        """The caller doesn't read its results: no credit until it does."""
        stream = self._streams.get(call)
        if stream is not None:
            stream.full = True

    def writable(self, event: Event) -> None:
        """WRITABLE: the caller reads again."""
        stream = self._streams.get(event[1])
        if stream is not None:
            stream.full = False
            self._touch(stream)

    def drain(self, grace: float) -> None:
        """Tells all streams that the server takes no new items."""
        notice = inference_pb2.DrainNotice(grace=duration_pb2.Duration(nanos=0))
        notice.grace.FromNanoseconds(round(grace * 1e9))
        message = inference_pb2.StreamPredictResponse(drain=notice).SerializeToString()
        for call in self._streams:
            self._outbox.append((SEND, call, message))

    # --- Items --------------------------------------------------------------------------------------------------------

    def _take(self, stream: Stream, body: bytes) -> None:
        """Takes up a message."""
        first = not stream.started
        stream.started = True
        if stream.last_items >= ALIKE and self._take_alike(stream, body):
            return
        items = self._cut(body)
        if items is None:
            try:
                message = _parse(body)
            except DecodeError:
                self._fail(stream, MALFORMED)
                self.complaints.refused(UNREADABLE, "StreamPredict", metadata=stream.metadata)
                return
            if message.HasField("options"):
                if not first:
                    self._fail_invalid(stream, "options", "only in the first message")
                    return
                self._configure(stream, message.options)
            if len(message.items) <= MAX_ITEMS:
                items = [
                    (
                        item.id,
                        item.request,
                        seconds_of(item.timeout) if item.HasField("timeout") else None,
                        None,
                        item.traceparent,
                    )
                    for item in message.items
                ]
        if items is None or len(items) > MAX_ITEMS:
            self._fail_invalid(stream, "items", f"more than {MAX_ITEMS}")
            return
        stream.last_items = len(items) or 1
        stream.last_bytes = len(body)
        self._items(stream, items)
        self._lesson = None

    def _take_alike(self, stream: Stream, body: bytes) -> bool:
        """Takes up a message of many items that differ in their ids and data only, all at once.

        Returns:
            Whether it was one; if not, nothing has been done.
        """
        item = first_item(body)
        if item is None:
            return False
        count, rest = divmod(len(body), item.stop)
        intake = self._intake
        if rest or not ALIKE <= count <= MAX_ITEMS or intake.draining:
            return False
        timeout = item.timeout
        template = intake.match(body[item.start : item.end])
        if template is None or template.id_length or (timeout is not None and timeout <= 0):
            return False
        begin, end = item.start + template.offset, item.start + template.end
        ids = ids_of_alike(body, item, begin, end)
        flights = stream.flights
        if ids is None or len(set(ids)) != count or not flights.keys().isdisjoint(ids):
            return False
        now = self.clock()
        deadline = intake.deadline(stream.deadline, now) if timeout is None else self._deadline(stream, timeout, now)
        size = end - begin
        data = [body[place : place + size] for place in range(begin, len(body), item.stop)]
        requests = ItemInference.many(
            template.example, ids, data, owner=stream, deadline=deadline, tenant=stream.tenant, arrival=now
        )
        self._mark(stream, requests)
        stream.last_items = count
        stream.last_bytes = len(body)
        refused = intake.admit_alike(requests, now)
        if refused:
            errors_of = dict(refused)
            for request in requests:
                error = errors_of.get(request)
                if error is None:
                    stream.take(request)
                else:
                    self._item_ended(request.trace, now, request.ident, error.reason)
                    self.complaints.refused(error, "StreamPredict", request=request, metadata=stream.metadata)
                    stream.settle_at_once(request.ident, error_part(request.ident, status_bytes(error)))
            return True
        flights.update(zip(ids, requests, strict=True))
        if stream.order is not None:
            for request in requests:
                request.outcome = None
            stream.order.extend(requests)
        return True

    def _mark(self, stream: Stream, requests: Sequence[ItemInference]) -> None:
        """Decides who of many items is sampled."""
        if self.tracer is not None:
            for request in requests:
                decoded(request, self.tracer.item("", stream.mark), self.clock())

    def _cut(self, body: bytes) -> list[_Item] | None:
        """The items of a message whose requests all follow templates; None if it has to be parsed."""
        parts = split_items(body, MAX_ITEMS)
        if parts is None:
            return None
        match = self._intake.match
        items: list[_Item] = []
        template: Template | None = None
        length = 0
        for ident, part, timeout, context in parts:
            # Mostly all items follow the template of the first.
            if template is None or len(part) != length or template.id_length or not part.startswith(template.prefix):
                template = match(part)
                length = len(part)
            if template is None:
                # One of them is enough to learn from: a stream's items are mostly of one kind.
                self._lesson = part
                return None
            items.append((ident, part, timeout, template, context))
        return items

    def _items(self, stream: Stream, items: list[_Item]) -> None:
        """Admits items, up to the first that fails the whole stream."""
        now = self.clock()
        stream_deadline = self._intake.deadline(stream.deadline, now)
        draining = self._intake.draining
        flights = stream.flights
        tracer = self.tracer
        mark: Mark = None
        for position, (ident, item, timeout, template, context) in enumerate(items):
            if ident in flights:
                self._fail_invalid(stream, f"items[{position}].id", f"{ident} is in flight already")
                return
            if draining:
                self._intake.refused(ItemInference.method, DRAINING, stream.tenant)
                stream.settle_at_once(ident, error_part(ident, DRAINING_STATUS))
                self.complaints.refused(DRAINING, "StreamPredict", message=item, metadata=stream.metadata)
                continue
            if tracer is not None:
                mark = tracer.item(context, stream.mark)
            try:
                deadline = stream_deadline if timeout is None else self._deadline(stream, timeout, now)
                self._admit(stream, ident, item, template, deadline, now, mark)
            except ForebayError as error:
                stream.settle_at_once(ident, error_part(ident, status_bytes(error)))
                self.complaints.refused(error, "StreamPredict", message=item, metadata=stream.metadata)
                self._item_ended(mark, now, ident, error.reason)
            except Exception as error:  # noqa: BLE001 - one item may not harm the others
                status = status_bytes(internal(error, method="StreamPredict"))
                stream.settle_at_once(ident, error_part(ident, status))
                self._item_ended(mark, now, ident, errors.Internal.reason)

    def _item_ended(self, mark: Mark, began: float, ident: int, reason: str) -> None:
        """An item has ended without a request for the scheduler."""
        if self.tracer is not None:
            self.tracer.ended(mark, ITEM, began, ident, CODE_NAMES[reason] if reason else OK, reason)

    def _admit(
        self,
        stream: Stream,
        ident: int,
        item: Any,
        template: Template | None,
        deadline: float,
        now: float,
        mark: Mark,
    ) -> None:
        """Builds and admits one item.

        Raises:
            ForebayError: It can't be run.
        """
        intake = self._intake
        if template is not None:
            request = intake.follow(template, ItemInference, stream, ident, item, deadline, stream.tenant, now)
        else:
            request = intake.build(ItemInference, stream, ident, item, deadline, stream.tenant, now)
            if not request.rows:
                stream.settle_at_once(ident, result_part(ident, request.encoder.empty(request.tail)))
                self._item_ended(mark, now, ident, "")
                return
            if self._lesson is not None:
                self._learn(item, request)
        if mark is not None:
            decoded(request, mark, self.clock())
        refusal = intake.admit(request, now)
        if refusal is not None:
            raise refusal
        stream.take(request)

    def _learn(self, message: inference_pb2.PredictRequest, request: ItemInference) -> None:
        """Learns from the item whose bytes were kept, if this is it."""
        lesson = self._lesson
        if lesson is not None and lesson == message.SerializeToString():
            self._lesson = None
            self._intake.learn(lesson, message, request)

    def _deadline(self, stream: Stream, timeout: float, now: float) -> float:
        """The deadline of an item with a timeout.

        Raises:
            InvalidRequest: The timeout is not positive.
        """
        if timeout <= 0:
            error = InvalidRequest([("timeout", "must be positive")])
            self._intake.refused(ItemInference.method, error, stream.tenant)
            raise error
        deadline = now + timeout
        return self._intake.deadline(deadline if deadline < stream.deadline else stream.deadline, now)  # noqa: FURB136 - `min` would be felt

    def _configure(self, stream: Stream, options: inference_pb2.StreamOptions) -> None:
        if options.order == inference_pb2.RESULT_ORDER_AS_SENT:
            stream.order = deque()
        if options.max_in_flight > 0:
            stream.window = min(options.max_in_flight, stream.window)

    # --- The end of a turn --------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Sends what has gathered, gives credit, and finishes streams that are done."""
        while self.dirty:  # what is unparked here may settle items at once
            streams, self.dirty = self.dirty, []
            for stream in streams:
                stream.dirty = False
                if stream.call in self._streams:
                    self._flush(stream)

    def _flush(self, stream: Stream) -> None:
        if stream.order is not None:
            stream.advance()
        if stream.parked and len(stream.flights) < stream.window:
            self._unpark(stream, regardless=False)
            if stream.call not in self._streams:
                return
            if stream.order is not None:
                stream.advance()
        if stream.ready:
            self._send(stream)
        if stream.half_closed:
            if not stream.flights and not stream.parked:
                del self._streams[stream.call]
                self._outbox.append((FINISH, stream.call, None))
                self._ended(stream, OK)
        elif not stream.full and not stream.parked:
            self._give_credit(stream)

    def _send(self, stream: Stream) -> None:
        ready = stream.ready
        stream.ready = []
        call = stream.call
        if len(ready) == 1:
            self._outbox.append((SEND, call, ready[0]))
            return
        start, size = 0, 0
        for position, result in enumerate(ready):
            if size and size + len(result) > COALESCED_BYTES:
                self._outbox.append((SEND, call, b"".join(ready[start:position])))
                start, size = position, 0
            size += len(result)
        self._outbox.append((SEND, call, b"".join(ready[start:])))

    def _give_credit(self, stream: Stream) -> None:
        """Allows as many messages as the window has room for, going by the last one."""
        room = stream.window - len(stream.flights)
        if room <= 0:
            return
        wanted = min(-(-room // stream.last_items), MAX_CREDITS)
        if stream.last_bytes:
            wanted = max(1, min(wanted, MAX_UNDERWAY_BYTES // stream.last_bytes))
        if not stream.started:
            wanted = 1  # it may say how large its window is
        # Single credits would be an action each; they are given when half of what may be under way is used up.
        if stream.credits * 2 <= wanted and wanted > stream.credits:
            self._outbox.append((CREDIT, stream.call, wanted - stream.credits))
            stream.credits = wanted

    def _unpark(self, stream: Stream, *, regardless: bool) -> None:
        """Takes up parked messages while the window has room; `regardless`, until few bytes are parked."""
        while stream.parked and (
            len(stream.flights) < stream.window or (regardless and stream.parked_bytes > MAX_PARKED_BYTES)
        ):
            body = stream.parked.popleft()
            stream.parked_bytes -= len(body)
            self._take(stream, body)
            if stream.call not in self._streams:
                return

    def _touch(self, stream: Stream) -> None:
        if not stream.dirty:
            stream.dirty = True
            self.dirty.append(stream)

    # --- Ends ---------------------------------------------------------------------------------------------------------

    def _fail_invalid(self, stream: Stream, field: str, sentence: str) -> None:
        error = InvalidRequest([(field, sentence)])
        self._fail(stream, failure(error))
        self.complaints.refused(error, "StreamPredict", metadata=stream.metadata)

    def _fail(self, stream: Stream, reason: Any) -> None:
        """Ends the stream with an error, its caller's; what was accepted is cancelled."""
        if self._streams.pop(stream.call, None) is not None:
            self._outbox.append((FAIL, stream.call, reason))
            self._drop(stream)
            self._ended(stream, CODE_NAMES[InvalidRequest.reason], InvalidRequest.reason)

    def _ended(self, stream: Stream, code: str, reason: str = "") -> None:
        if self.tracer is not None:
            self.tracer.ended(stream.mark, CALL, stream.opened, STREAM, code, reason)

    def _drop(self, stream: Stream) -> None:
        now = self.clock()
        flights = stream.flights
        stream.flights = {}
        stream.ready = []
        stream.parked.clear()
        for request in flights.values():
            if request is not None and (stream.order is None or request.outcome is None):
                self._intake.cancel(request, now)
                if self.tracer is not None:
                    self.tracer.cancelled_item(request, request.ident)


_parse: Any = inference_pb2.StreamPredictRequest.FromString
