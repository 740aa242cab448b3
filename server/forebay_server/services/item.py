"""The request of an item of a stream, which passes its outcome on to the stream.

`services.uptake` makes it. Everything runs in the dispatcher thread.
"""

from collections.abc import Iterable
from typing import Any

from forebay_server.errors import ForebayError, MessageTooLarge
from forebay_server.scheduling.events import STREAM
from forebay_server.scheduling.request import Batch
from forebay_server.services.codec import Outputs
from forebay_server.services.framing import error_part, result_part
from forebay_server.services.pending import Completion, Inference
from forebay_server.services.status import internal, status_bytes
from forebay_server.services.stream import Stream
from forebay_server.services.templates import Template

TOO_LARGE = MessageTooLarge("the response is larger than a message may be")
"""For the log."""

NOTHING = object()
"""No item is alike to it."""


class ItemInference(Inference):
    """A request of a stream item: `ident` is the item's id, `owner` the stream."""

    __slots__ = ("alike", "outcome")

    method = STREAM
    alike: Any
    outcome: bytes | None
    """On an ordered stream, the finished result until those before it are there."""

    together = True

    @classmethod
    def following(
        cls,
        template: Template,
        ids: Iterable[int],
        inputs: Iterable[tuple[bytes]],
        *,
        stream: Stream,
        deadline: float,
        arrival: float,
    ) -> "list[ItemInference]":
        """Items that follow a template without a request id, made as `many` does.

        Args:
            template: That.
            ids: Of each.
            inputs: The data of the one input of each.
            stream: Of all, like the rest.
            deadline: Absolute.
            arrival: When the message was taken.
        """
        alike = template.alike
        made = cls.many(
            template.example, ids, inputs, owner=stream, deadline=deadline, tenant=stream.tenant, arrival=arrival
        )
        for request in made:
            request.alike = alike
        return made

    @classmethod
    def succeed_all(cls, done: list[Completion], outputs: Outputs) -> list[Completion]:
        """Does all items of one row whose responses differ in data only, stream by stream."""
        rest: list[Completion] = []
        groups: dict[Stream, list[Completion]] = {}
        group: list[Completion] = []
        stream: Stream | None = None
        alike: Any = NOTHING
        for completion in done:
            request = completion[0]
            if request.alike is not alike or request.owner is not stream:
                if request.alike is None:
                    rest.append(completion)
                    continue
                stream = request.owner
                group = groups.setdefault(stream, [])
                alike = group[0][0].alike if group else request.alike
                if request.alike is not alike:
                    rest.append(completion)
                    alike = NOTHING
                    continue
            group.append(completion)
        for stream, group in groups.items():
            rows = group[0][0].encoder.rows(outputs)
            if rows is None or len(rows[0]) + rows[2] > stream.service.max_response:
                rest += group
            else:
                stream.settle_rows(group, *rows)
        return rest

    def succeed(self, outputs: Outputs, start: int, batch: Batch) -> None:
        """Adds the response to the stream's results."""
        stream = self.owner
        try:
            response = self.response(outputs, start, batch, stream.service.clock)
        except ForebayError as error:
            self.fail(error)
            return
        except Exception as error:  # noqa: BLE001  # whatever an engine's outputs may lead to, the others go on
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
