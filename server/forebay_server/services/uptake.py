"""From the messages of a stream to its items in flight.

Each item is built and admitted like a unary request; those of a message that differ in ids and data only, all at once.
What fails at once is a result like any other. `services.streams` says when a message is taken up, and what becomes of a
stream whose message is wrong. Runs in the dispatcher thread.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError

from forebay.v1 import inference_pb2
from forebay_server import errors
from forebay_server.errors import ForebayError, InvalidRequest
from forebay_server.services.alike import Layout, first_item
from forebay_server.services.complaints import Complaints
from forebay_server.services.framing import error_part, result_part, seconds_of, split_items
from forebay_server.services.intake import Intake
from forebay_server.services.item import ItemInference
from forebay_server.services.status import CODE_NAMES, internal, status_bytes
from forebay_server.services.stream import Stream
from forebay_server.services.templates import Template
from forebay_server.telemetry.tracing.names import OK
from forebay_server.telemetry.tracing.records import ITEM
from forebay_server.telemetry.tracing.tracer import Mark, Tracer, decoded

MAX_ITEMS: Final = 1024
"""Items in one message."""
ALIKE: Final = 8
"""Items in a message from which it pays to look at them all at once."""

DRAINING = errors.Draining("the server is shutting down")
DRAINING_STATUS = status_bytes(DRAINING)

_Item = tuple[int, Any, float | None, Template | None, str]
"""The id of an item; its request, as bytes with the template that they follow, or parsed, with its timeout between; its
trace context."""


class Uptake:
    """Takes up the messages of all streams.

    Args:
        intake: Builds requests.
        complaints: Told of items that were refused.
        tracer: Who keeps what becomes spans; None: nobody.
    """

    def __init__(self, intake: Intake, complaints: Complaints, tracer: Tracer | None) -> None:
        self._intake = intake
        self._complaints = complaints
        self._tracer = tracer
        self._clock = intake.clock
        self._lesson: bytes | None = None
        """The bytes of an item's request that followed no template, in the message that is taken up."""

    def take(self, stream: Stream, body: bytes) -> None:
        """Takes up a message.

        Raises:
            InvalidRequest: It is wrong, and with it the stream. Items before the one that is wrong are in flight.
        """
        first = not stream.started
        stream.started = True
        if stream.last_items >= ALIKE and self._take_alike(stream, body):
            return
        items = self._cut(body)
        if items is None:
            items = self._parsed(stream, body, first=first)
        if len(items) > MAX_ITEMS:
            raise InvalidRequest([("items", f"more than {MAX_ITEMS}")])
        stream.last_items = len(items) or 1
        stream.last_bytes = len(body)
        self._take_each(stream, items)
        self._lesson = None

    # --- All at once --------------------------------------------------------------------------------------------------

    def _take_alike(self, stream: Stream, body: bytes) -> bool:
        """Takes up a message of many items that differ in their ids and data only, all at once.

        Returns:
            Whether it was one; if not, nothing has been done.
        """
        intake = self._intake
        if intake.draining:
            return False
        known, ids = stream.layout, None
        if known is not None and intake.holds(known[1]):
            ids = known[0].ids(body)
        if ids is None:
            known = self._layout(body)
            ids = None if known is None else known[0].ids(body)
        if known is None or ids is None:
            return False
        stream.layout = layout, template = known
        count = len(ids)
        if not ALIKE <= count <= MAX_ITEMS or len(set(ids)) != count or not stream.flights.keys().isdisjoint(ids):
            return False
        now = self._clock()
        timeout = layout.timeout
        deadline = intake.deadline(stream.deadline, now) if timeout is None else self._deadline(stream, timeout, now)
        requests = ItemInference.following(
            template, ids, layout.data(body), stream=stream, deadline=deadline, arrival=now
        )
        self._mark(stream, requests)
        stream.last_items = count
        stream.last_bytes = len(body)
        refused = dict(intake.admit_alike(requests, now))
        if not refused:
            stream.take_all(ids, requests)
            return True
        for request in requests:
            error = refused.get(request)
            if error is None:
                stream.take(request)
            else:
                self._item_ended(request.trace, now, request.ident, error.reason)
                self._complaints.refused(error, "StreamPredict", request=request, metadata=stream.metadata)
                stream.settle_at_once(request.ident, error_part(request.ident, status_bytes(error)))
        return True

    def _layout(self, body: bytes) -> tuple[Layout, Template] | None:
        """How the first item of a message looks, with the template that it follows; None if it has to be parsed."""
        first = first_item(body)
        if first is None or (first.timeout is not None and first.timeout <= 0):
            return None
        template = self._intake.match(body[first.start : first.end])
        if template is None or template.id_length:
            return None
        return Layout(body, first, first.start + template.offset, first.start + template.end), template

    def _mark(self, stream: Stream, requests: Sequence[ItemInference]) -> None:
        """Decides who of many items is sampled."""
        if self._tracer is not None:
            for request in requests:
                mark = self._tracer.item("", stream.mark)
                if mark is not None:
                    self._decoded(request, mark)

    def _decoded(self, request: ItemInference, mark: Mark) -> None:
        """A request was made of an item with a mark: its answer is told by itself."""
        decoded(request, mark, self._clock())
        request.alike = None

    # --- One by one ---------------------------------------------------------------------------------------------------

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

    def _parsed(self, stream: Stream, body: bytes, *, first: bool) -> list[_Item]:
        """The items of any message, whose options count from here on.

        Raises:
            InvalidRequest: It is no message, or has options that it may not have.
        """
        try:
            message = _parse(body)
        except DecodeError:
            raise InvalidRequest([("", "the message can't be parsed as a StreamPredictRequest")]) from None
        if message.HasField("options"):
            if not first:
                raise InvalidRequest([("options", "only in the first message")])
            _configure(stream, message.options)
        return [
            (
                item.id,
                item.request,
                seconds_of(item.timeout) if item.HasField("timeout") else None,
                None,
                item.traceparent,
            )
            for item in message.items[: MAX_ITEMS + 1]
        ]

    def _take_each(self, stream: Stream, items: list[_Item]) -> None:
        """Admits items, up to the first that fails the whole stream.

        Raises:
            InvalidRequest: There is one.
        """
        now = self._clock()
        stream_deadline = self._intake.deadline(stream.deadline, now)
        draining = self._intake.draining
        flights = stream.flights
        tracer = self._tracer
        mark: Mark = None
        for position, (ident, item, timeout, template, context) in enumerate(items):
            if ident in flights:
                raise InvalidRequest([(f"items[{position}].id", f"{ident} is in flight already")])
            if draining:
                self._intake.refused(ItemInference.method, DRAINING, stream.tenant)
                stream.settle_at_once(ident, error_part(ident, DRAINING_STATUS))
                self._complaints.refused(DRAINING, "StreamPredict", message=item, metadata=stream.metadata)
                continue
            if tracer is not None:
                mark = tracer.item(context, stream.mark)
            try:
                deadline = stream_deadline if timeout is None else self._deadline(stream, timeout, now)
                self._admit(stream, ident, item, template, deadline, now, mark)
            except ForebayError as error:
                stream.settle_at_once(ident, error_part(ident, status_bytes(error)))
                self._complaints.refused(error, "StreamPredict", message=item, metadata=stream.metadata)
                self._item_ended(mark, now, ident, error.reason)
            except Exception as error:  # noqa: BLE001  # one item may not harm the others
                status = status_bytes(internal(error, method="StreamPredict"))
                stream.settle_at_once(ident, error_part(ident, status))
                self._item_ended(mark, now, ident, errors.Internal.reason)

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
            request.alike = template.alike
        else:
            request = intake.build(ItemInference, stream, ident, item, deadline, stream.tenant, now)
            request.alike = None
            if not request.rows:
                stream.settle_at_once(ident, result_part(ident, request.encoder.empty(request.tail)))
                self._item_ended(mark, now, ident, "")
                return
            if self._lesson is not None:
                self._learn(item, request)
        if mark is not None:
            self._decoded(request, mark)
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

    # --- Both ---------------------------------------------------------------------------------------------------------

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
        return self._intake.deadline(deadline if deadline < stream.deadline else stream.deadline, now)  # noqa: FURB136  # `min` would be felt

    def _item_ended(self, mark: Mark, began: float, ident: int, reason: str) -> None:
        """An item has ended without a request for the scheduler."""
        if self._tracer is not None:
            self._tracer.ended(mark, ITEM, began, ident, CODE_NAMES[reason] if reason else OK, reason)


def _configure(stream: Stream, options: inference_pb2.StreamOptions) -> None:
    if options.order == inference_pb2.RESULT_ORDER_AS_SENT:
        stream.order = deque()
    if options.max_in_flight > 0:
        stream.window = min(options.max_in_flight, stream.window)


_parse: Any = inference_pb2.StreamPredictRequest.FromString
