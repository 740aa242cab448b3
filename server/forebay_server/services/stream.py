"""One open `StreamPredict`: its items in flight, and the results that wait to be sent.

Keeps the order of an ordered stream. What to read, send and grant is decided in `services.streams`. Everything runs in
the dispatcher thread.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from forebay_server.services.alike import Layout
from forebay_server.services.complaints import Complaints
from forebay_server.services.framing import AROUND, row_parts
from forebay_server.services.pending import Completion
from forebay_server.services.templates import Template
from forebay_server.telemetry.tracing.tracer import Mark, Tracer
from forebay_server.wire.port import Metadata

if TYPE_CHECKING:
    from forebay_server.services.item import ItemInference


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
    coalesced: int
    """Bytes of the messages into which results are put together."""
    complaints: Complaints
    """Told of items that have failed."""
    too_large: bytes
    """The serialized `google.rpc.Status` of an item whose response is larger."""


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
        "layout",
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
        """Results to send, some of them put together."""
        self.parked: deque[bytes] = deque()
        """Messages that came when the window was full."""
        self.parked_bytes = 0
        self.credits = 0
        """Messages that may still come."""
        self.layout: tuple[Layout, Template] | None = None
        """How the items of the last message looked that were taken up at once, and the template that they followed."""
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

    def take(self, request: "ItemInference") -> None:
        """An item is in flight."""
        self.flights[request.ident] = request
        if self.order is not None:
            request.outcome = None
            self.order.append(request)

    def take_all(self, ids: list[int], requests: "list[ItemInference]") -> None:
        """Many items are in flight, of these ids."""
        self.flights.update(zip(ids, requests, strict=True))
        if self.order is not None:
            for request in requests:
                request.outcome = None
            self.order.extend(requests)

    def settle(self, request: "ItemInference", result: bytes) -> None:
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

    def settle_rows(self, done: list[Completion], before: bytes, whole: bytes, size: int) -> None:
        """Takes the results of items of one row each; the rest is as for `framing.row_parts`."""
        flights = self.flights
        ids = [request.ident for request, _, _ in done]
        parts = row_parts(ids, [row for _, row, _ in done], before, whole, size)
        if self.order is not None:
            for place, (request, _, _) in enumerate(done):
                request.outcome = b"".join(parts[4 * place : 4 * place + 4])
        elif flights:  # else the stream is gone
            for ident in ids:
                flights.pop(ident, None)
            step = 4 * max(1, self.service.coalesced // (len(before) + size + AROUND))
            self.ready += [b"".join(parts[place : place + step]) for place in range(0, len(parts), step)]
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
