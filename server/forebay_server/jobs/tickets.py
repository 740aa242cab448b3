"""What goes to the store's thread and comes back: operations, and who waits for their outcomes."""

import threading
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from forebay_server.jobs.store import Operation, Outcome

Done = Callable[[Any], None]
"""Told the outcome (an `Outcome`; callers know which of its kinds their operation has)."""
AllDone = Callable[[Sequence[Any]], None]
"""Told the outcomes of many operations."""


class Ticket:
    """Operations that go the way together, and who waits for their outcomes. Most have one operation."""

    __slots__ = ("all_done", "done", "due", "event", "nbytes", "operations", "outcomes", "settled")

    def __init__(
        self,
        operations: Sequence[Operation],
        *,
        done: Done | None = None,
        all_done: AllDone | None = None,
        due: float = inf,
        nbytes: int = 0,
    ) -> None:
        self.operations = operations
        self.done = done
        """Told the outcome of the only operation; or"""
        self.all_done = all_done
        """told those of all."""
        self.due = due
        """Monotonic seconds at which it fails; infinity: never."""
        self.nbytes = nbytes
        self.outcomes: list[Outcome] = []
        """Of the first operations, as far as the store has served them."""
        self.settled = False
        """Its outcomes were told. Set by the dispatcher, or by who asked."""
        self.event: threading.Event | None = None
        """For `Keeper.ask`: set by the store's thread."""

    def left(self) -> Sequence[Operation]:
        """What the store has still to do."""
        served = len(self.outcomes)
        return self.operations[served:] if served else self.operations

    def fail(self, error: Exception) -> None:
        """What the store has not done it will not do."""
        self.outcomes += [error] * (len(self.operations) - len(self.outcomes))  # type: ignore[list-item]  # an `Outcome`
