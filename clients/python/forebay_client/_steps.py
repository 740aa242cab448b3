"""The language of plans: what is to be done next, without doing it.

A *plan* is a generator that gives out steps, and is sent what came of each, or has its error thrown into it; what it
returns is the result. So what a call decides is pure, and written once: `_sync_base` carries plans out in a thread,
`_async_base` in an event loop. Time and chance are arguments of plans.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

T = TypeVar("T")
Clock = Callable[[], float]
"""Tells monotonic instants, in seconds."""
Chance = Callable[[], float]
"""Gives numbers in [0, 1)."""


class Call(NamedTuple):
    """Call this method of the server, and send its response."""

    method: str
    """Its name; no two services have methods of the same name."""
    request: Message
    timeout: float
    """Seconds."""


class Pause(NamedTuple):
    """Do nothing for so many seconds, and send None."""

    seconds: float


class Launch(NamedTuple):
    """Begin this call, and send None at once; `Await` gets its outcome. What still runs at the end is cancelled."""

    call: Call


class Await(NamedTuple):
    """Wait for the next of the launched calls to end, and send its response or its error; None if none does in time."""

    seconds: float | None
    """The longest wait; None: as long as it takes."""


class Listen(NamedTuple):
    """Begin a call with many responses, and send None. `Hear` gets them; the next `Listen`, or the end cancels it."""

    method: str
    request: Message
    timeout: float


class Hear(NamedTuple):
    """Wait for the next response of the call that is listened to, and send it; None after the last."""


class Give(NamedTuple):
    """Give this to the caller, and send None when the next is wanted. Only in the plan of a `Series`."""

    value: Any


Step = Call | Pause | Launch | Await | Listen | Hear | Give
Plan = Generator[Step, Any, T]


@dataclass(frozen=True, slots=True)
class Series(Generic[T]):
    """A plan for an iterator: what it gives, one after the other."""

    plan: Plan[None]
