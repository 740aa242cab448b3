"""One open `StreamPredict`: its items in flight, and the results that wait to be sent.

Keeps the order of an ordered stream. What to read, send and grant is decided in `services.streams`. Everything runs in
the dispatcher thread.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from forebay_server.errors import ForebayError, MessageTooLarge
from forebay_server.scheduling.events import STREAM
from forebay_server.scheduling.request import Batch
from forebay_server.services.codec import Outputs
from forebay_server.services.complaints import Complaints
from forebay_server.services.framing import error_part, result_part, row_parts
from forebay_server.services.pending import Completion, Inference
from forebay_server.services.status import internal, status_bytes
from forebay_server.telemetry.tracing.tracer import Mark, Tracer
from forebay_server.wire.port import Metadata

TOO_LARGE = MessageTooLarge("the response is larger than a message may be")
"""For the log."""


class Keeper(Protocol):
    """Who keeps the streams: `services.streams.Streams`."""

    dirty: "list[Stream]"
    """Streams that `flush` has to look at."""
    clock: Callable[[], float]
    """Monotonic seconds."""
    tracer: Tracer | None
    """Who keeps what becomes spans."""
    max_response: int
    """Bytes of the largest response of an item."""
    complaints: Complaints
    """Told of items that have failed."""
    too_large: bytes
    """The serialized `google.rpc.Status` of an item whose response is larger."""


class ItemInference(Inference):
    """A request of a stream item: `ident` is the item's id, `owner` the stream."""

    __slots__ = ("outcome",)

    method = STREAM
    outcome: bytes | None
    """On an ordered stream, the finished result until those before it are there."""

    together = True

    @classmethod
    def succeed_all(cls, done: list[Completion], outputs: Outputs) -> list[Completion]:
        """Does all items of one row whose responses differ in data only, stream by stream."""
        rest: list[Completion] = []
        groups: dict[Stream, list[tuple[ItemInference, int]]] = {}
        stream = encoder = None
        group: list[tuple[ItemInference, int]] = []
        for completion in done:
            request, row, pieces = completion
            plain = type(request) is cls and pieces is None and request.shapes is None
            if not plain or request.rows != 1 or request.report or request.tail or request.trace is not None:
                rest.append(completion)
            else:
                if request.owner is not stream:
                    stream = request.owner
                    group = groups.setdefault(stream, [])
                    encoder = group[0][0].encoder if group else request.encoder
                if request.encoder is encoder:
                    group.append((request, row))
                else:
                    rest.append(completion)
        for stream, group in groups.items():
            rows = group[0][0].encoder.rows(outputs)
            if rows is None or len(rows[0]) + rows[2] > stream.service.max_response:
                rest.extend((request, row, None) for request, row in group)
            else:
                stream.settle_all(group, row_parts(group, *rows))
        return rest

    def succeed(self, outputs: Outputs, start: int, batch: Batch) -> None:
        """Adds the response to the stream's results."""
        stream = self.owner
        try:
            response = self.response(outputs, start, batch, stream.service.clock)
        except ForebayError as error:
            self.fail(error)
            return
        except Exception as error:  # noqa: BLE001 - whatever an engine's outputs may lead to, the others go on
            self.fail(internal(error, method="StreamPredict"))
            return
        service = stream.service
        if len(response) > service.max_response:
            stream.settle(self, error_part(self.ident, service.too_large))
            service.complaints.failed(TOO_LARGE, "StreamPredict", self, stream.metadata)
            if service.tracer is not None:
                service.tracer.failed_item(self, self.ident, MessageTooLarge.reason)
            return
        stream.settle(self, result_part(self.ident, response))
        if self.trace is not None:
            service.tracer.answered_item(self, self.ident)

    def fail(self, error: ForebayError) -> None:
        """Adds the error to the stream's results."""
        stream = self.owner
        stream.settle(self, error_part(self.ident, status_bytes(error)))
        stream.service.complaints.failed(error, "StreamPredict", self, stream.metadata)
        tracer = stream.service.tracer
        if tracer is not None:
            tracer.failed_item(self, self.ident, error.reason)


class Stream:
    """One open stream."""

    __slots__ = (
        "call",
        "credits",
        "deadline",
        "dirty",
        "flights",
        "full",
        "half_closed",
        "last_bytes",
        "last_items",
        "mark",
        "metadata",
        "opened",
        "order",
        "parked",
        "parked_bytes",
        "ready",
        "service",
        "started",
        "tenant",
        "window",
    )

    def __init__(
        self,
        service: "Keeper",
        call: int,
        deadline: float,
        tenant: str,
        window: int,
        metadata: Metadata | None = None,
    ) -> None:
        self.service = service
        self.call = call
        self.deadline = deadline
        self.tenant = tenant
        self.window = window
        self.metadata = metadata
        self.flights: dict[int, ItemInference | None] = {}
        """Items in flight by id; None on an ordered stream for one that failed at once."""
        self.order: deque[ItemInference | tuple[int, bytes]] | None = None
        """On an ordered stream, the items in flight in order; (id, result) stands for one that failed at once."""
        self.ready: list[bytes] = []
        """Results to send."""
        self.parked: deque[bytes] = deque()
        """Messages that came when the window was full."""
        self.parked_bytes = 0
        self.credits = 0
        """Messages that may still come."""
        self.last_items = 1
        self.last_bytes = 0
        self.started = False
        """Whether the first message has come."""
        self.half_closed = False
        self.full = False
        """Whether results wait for a slow reader."""
        self.dirty = False
        """Whether it is on the list for `flush`."""
        self.mark: Mark = None
        """Its span, if it will have one."""
        self.opened = 0.0
        """When, if there is tracing."""

    def take(self, request: ItemInference) -> None:
        """An item is in flight."""
        self.flights[request.ident] = request
        if self.order is not None:
            request.outcome = None
            self.order.append(request)

    def settle(self, request: ItemInference, result: bytes) -> None:
        """Takes the result of an item."""
        if self.order is None:
            if self.flights.pop(request.ident, None) is None:
                return  # the stream is gone
            self.ready.append(result)
        else:
            request.outcome = result
        if not self.dirty:
            self.dirty = True
            self.service.dirty.append(self)

    def settle_all(self, items: list[tuple[ItemInference, int]], results: list[bytes]) -> None:
        """Takes the results of some items, each given with its row."""
        if self.order is None:
            flights, ready = self.flights, self.ready
            for (request, _), result in zip(items, results, strict=True):
                if flights.pop(request.ident, None) is not None:
                    ready.append(result)
        else:
            for (request, _), result in zip(items, results, strict=True):
                request.outcome = result
        if not self.dirty:
            self.dirty = True
            self.service.dirty.append(self)

    def settle_at_once(self, item: int, result: bytes) -> None:
        """Takes the result of an item that was not admitted."""
        if self.order is None:
            self.ready.append(result)
        else:
            self.flights[item] = None
            self.order.append((item, result))

    def advance(self) -> None:
        """On an ordered stream, moves results to `ready` as far as they follow each other without a gap."""
        order = self.order
        while order:
            head = order[0]
            if isinstance(head, tuple):
                ident, result = head
            elif head.outcome is not None:
                ident, result = head.ident, head.outcome
            else:
                break
            order.popleft()
            self.flights.pop(ident, None)
            self.ready.append(result)
