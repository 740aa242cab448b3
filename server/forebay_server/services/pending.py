"""A request that came as a message, and waits for its response.

`services.intake` makes it; `services.inference`, `services.item` and `services.job_requests` have a subclass each that
knows where the answer goes.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

from forebay_server.scheduling.request import Batch, Level, Request, State
from forebay_server.services.codec import Encoder, Outputs, timings_part

Completion = tuple[Any, int, Any]
"""As `scheduling.completing.Completion`."""


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

    @classmethod
    def many(
        cls,
        like: "Inference",
        idents: Iterable[int],
        inputs: Iterable[tuple[bytes]],
        *,
        owner: Any,
        deadline: float,
        tenant: str,
        arrival: float,
        level: Level = Level.ONLINE,
    ) -> list[Self]:
        """Requests that are like another one but for their ids and the data of their one input.

        This takes half the time of a call of the class for each.

        Args:
            like: What depends on the message only is taken from it.
            idents: Of each.
            inputs: Of each.
            owner: Of all, like the rest.
            deadline: Absolute.
            tenant: Who is calling.
            arrival: When the message was taken.
            level: Where they wait.
        """
        lane, rows, nbytes, priority, shapes = like.lane, like.rows, like.nbytes, like.priority, like.shapes
        parameters, encoder, tail, report = like.parameters, like.encoder, like.tail, like.report
        new, state = cls.__new__, State.NEW
        made: list[Self] = []
        for ident, its_inputs in zip(idents, inputs, strict=True):
            request = new(cls)
            request.lane = lane
            request.rows = rows
            request.nbytes = nbytes
            request.deadline = deadline
            request.inputs = its_inputs
            request.arrival = arrival
            request.tenant = tenant
            request.priority = priority
            request.level = level
            request.shapes = shapes
            request.parameters = parameters
            request.state = state
            request.scheduled = None
            request.trace = None
            request.encoder = encoder
            request.tail = tail
            request.report = report
            request.owner = owner
            request.ident = ident
            made.append(request)
        return made

    def response(self, outputs: Outputs, start: int, batch: Batch, clock: Callable[[], float]) -> bytes:
        """The serialized `PredictResponse`.

        Raises:
            InvalidRequest: It can't have the form that was asked for.
        """
        tail = self.tail
        if self.report:
            tail += timings_part(batch, arrival=self.arrival, now=clock())
        return self.encoder.encode(outputs, start, self.rows, self.shapes, tail)
