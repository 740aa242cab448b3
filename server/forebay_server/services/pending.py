"""A request that came as a message, and waits for its response.

`services.intake` makes it; `services.inference` and `services.item` have a subclass each that knows where the answer
goes.
"""

from collections.abc import Callable, Sequence
from typing import Any

from forebay_server.scheduling.request import Batch, Level, Request, State
from forebay_server.services.codec import Encoder, Outputs, timings_part


class Inference(Request):
    """A request that came as a message, and what its response needs."""

    __slots__ = ("encoder", "ident", "owner", "report", "tail")

    def __init__(
        self,
        lane: Any,
        rows: int,
        nbytes: int,
        deadline: float,
        inputs: Sequence[Any],
        arrival: float,
        tenant: str,
        priority: int,
        shapes: tuple[tuple[int, ...], ...] | None,
        parameters: Any,
        encoder: Encoder,
        tail: bytes,
        report: bool,  # noqa: FBT001  # called by position: keywords would be felt
        owner: Any,
        ident: int,
    ) -> None:
        self.lane = lane
        self.rows = rows
        self.nbytes = nbytes
        self.deadline = deadline
        self.inputs = inputs
        self.arrival = arrival
        self.tenant = tenant
        self.priority = priority
        self.level = Level.ONLINE
        self.shapes = shapes
        self.parameters = parameters
        self.state = State.NEW
        self.scheduled = None
        self.trace = None
        self.encoder = encoder
        self.tail = tail
        """Serialized parts of the response that are known already."""
        self.report = report
        """Whether timings are wanted."""
        self.owner = owner
        """Who passes the answer on."""
        self.ident = ident
        """The owner's number for it: a call, or an item of a stream."""

    def response(self, outputs: Outputs, start: int, batch: Batch, clock: Callable[[], float]) -> bytes:
        """The serialized `PredictResponse`.

        Raises:
            InvalidRequest: It can't have the form that was asked for.
        """
        tail = self.tail
        if self.report:
            tail += timings_part(batch, arrival=self.arrival, now=clock())
        return self.encoder.encode(outputs, start, self.rows, self.shapes, tail)
