"""`StreamPredict`: many requests over one stream, answered in messages of many results.

Life of a stream: OPEN gives it credit for its first message. `services.uptake` makes items in flight of each message.
Results gather in the stream, and `flush`, which the dispatcher calls at the end of each turn, sends what has gathered
as few messages, gives credit for more items, and finishes the stream when the caller has closed its side and everything
is answered.

Flow control. *Items in flight* are those accepted whose results are not handed to the wire; in order, a finished item
that waits for an earlier one counts. A stream whose window is full gets no credit, so HTTP/2 slows its caller down.
Credits are given for as many messages as the window has room for, going by the items in the last one; messages that
come in excess (their caller suddenly sends more items in each) are *parked* and taken up as the window empties, so that
it is overshot by the items of one message at most. A stream whose results are not read gets no credit either.

Everything runs in the dispatcher thread.
"""

from collections.abc import Callable
from typing import Final

from google.protobuf import duration_pb2

from forebay.v1 import inference_pb2
from forebay_server.errors import InvalidRequest, MessageTooLarge
from forebay_server.services.complaints import Complaints
from forebay_server.services.framing import AROUND
from forebay_server.services.intake import Intake
from forebay_server.services.service import Outbox
from forebay_server.services.status import CODE_NAMES, failure, status_bytes
from forebay_server.services.stream import Stream
from forebay_server.services.uptake import DRAINING, Uptake
from forebay_server.telemetry.tracing.names import CANCELLED, DEADLINE_EXCEEDED, OK, STREAM
from forebay_server.telemetry.tracing.records import CALL
from forebay_server.telemetry.tracing.tracer import Tracer
from forebay_server.wire.port import CREDIT, FAIL, FINISH, SEND, Event

MAX_CREDITS: Final = 256
"""Messages that one stream may have under way to us."""
MAX_UNDERWAY_BYTES: Final = 1 << 20
"""What the messages of several credits may come to, going by the last one."""
MAX_PARKED_BYTES: Final = 4 << 20
"""Above this, parked messages are taken up in spite of the window: admission has limits of its own."""
COALESCED_BYTES: Final = 256 << 10
"""Results are put together into messages of about this size; one large result may make a larger one."""

DRAINING_FAILURE = failure(DRAINING)


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
        self._uptake = Uptake(intake, complaints, tracer)
        self.complaints = complaints
        self.tracer = tracer
        self._outbox = outbox
        self.clock: Callable[[], float] = intake.clock
        self._window = window
        self._streams: dict[int, Stream] = {}
        self.dirty: list[Stream] = []
        """Streams that `flush` has to look at."""
        self.max_response = max_send_bytes - AROUND
        self.coalesced = min(COALESCED_BYTES, max_send_bytes)
        self.too_large = status_bytes(MessageTooLarge(f"the response is larger than {max_send_bytes} bytes"))

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
            if size and size + len(result) > self.coalesced:
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

    def _take(self, stream: Stream, body: bytes) -> None:
        """Takes up a message. If it is wrong, that is the end of the stream."""
        try:
            self._uptake.take(stream, body)
        except InvalidRequest as error:
            self._fail(stream, error)

    def _touch(self, stream: Stream) -> None:
        if not stream.dirty:
            stream.dirty = True
            self.dirty.append(stream)

    # --- Ends ---------------------------------------------------------------------------------------------------------

    def _fail(self, stream: Stream, error: InvalidRequest) -> None:
        """Ends the stream with an error, its caller's; what was accepted is cancelled."""
        del self._streams[stream.call]
        self._outbox.append((FAIL, stream.call, failure(error)))
        self._drop(stream)
        self._ended(stream, CODE_NAMES[error.reason], error.reason)
        self.complaints.refused(error, "StreamPredict", metadata=stream.metadata)

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
