"""What a gRPC service is to the dispatcher: methods, and handlers for their events.

Handlers run in the dispatcher thread, must not block and must not raise (one that does is logged with an error id, and
its call fails with INTERNAL). They answer by appending to the outbox, at once or later; the dispatcher hands the outbox
to the wire at the end of each turn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forebay_server.wire.port import Action, Event, Method

Outbox = list[Action]
"""Actions on their way to `Wire.answer`; one list, shared by the services and the dispatcher."""

Handler = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """A handler for events that mean nothing to a method."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A method and what is done with each kind of event on it."""

    method: Method
    on_call: Handler = ignore
    """CALL, or OPEN on a stream."""
    on_message: Handler = ignore
    on_half_close: Handler = ignore
    on_cancel: Handler = ignore
    on_writable: Handler = ignore
    on_full: Callable[[int], None] = lambda _call: None
    """The outbox of a call (the argument) is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A gRPC service: its full name, such as `forebay.v1.InferenceService`, and its endpoints."""

    name: str
    endpoints: Sequence[Endpoint]
