"""Stands between the dispatcher and the store's thread: brings operations there, and outcomes back.

The dispatcher must never block. So operations are queued here; the thread (`store_thread`) takes all that have come
while the group before was on its way to the disk, and all their outcomes are posted back as one action. An operation
costs a place in a deque, not a hop between threads; and many that one part of the server has at once, as the ends of
the jobs of a batch, cost little more than one.

What callers ask for fails `timeout` seconds after it was asked; what the server's own work needs (a finished job's
outcome above all) waits for as long as it takes.

Threads: the dispatcher calls everything but `ask`, which is for all others; `start` and `close` are called by whoever
builds and ends the server, `start` before the dispatcher uses it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from math import inf
from typing import Any, Final

import structlog

from forebay_server.errors import QueueFull, StoreUnavailable
from forebay_server.jobs.events import GROUP, leave, leave_all, new_events
from forebay_server.jobs.store import (
    Cancel,
    Changed,
    Finish,
    Get,
    Operation,
    Outcome,
    Page,
    Store,
    Submit,
)
from forebay_server.jobs.store_thread import StoreThread
from forebay_server.jobs.tickets import AllDone, Done, Ticket

RETRY_AFTER: Final = 1.0
"""Seconds after which a caller may come again who met a full queue."""
TURN_SECONDS: Final = 0.0002
"""For outcomes, in a turn of the dispatcher."""

_FROM_CALLERS: Final = frozenset({Submit, Get, Page, Cancel})
"""Operations that somebody waits for at a call: they time out, and their number is bounded. Those of the server's own
work are bounded by whoever makes them."""
_LATE: Final = "the job store did not answer in time"
_BEHIND: Final = "more is asked of the job store than it can do"

_log = structlog.get_logger(__name__)


class Keeper:
    """The way to a store, for the dispatcher.

    Args:
        store: Opened, used and closed by a thread of this keeper alone.
        post: Has an action run in the dispatcher's thread (`Dispatcher.post`).
        timeout: Seconds after which an operation that a caller waits for fails with `StoreUnavailable`, if the store
            has not served it by then. It may still happen.
        most: Operations in a group.
        most_waiting: Operations of callers that may wait; those beyond are refused with `QueueFull`.
        most_bytes: Bytes of payloads that may wait; as above.
        clock: Monotonic seconds.

    Attributes:
        post: As given: has an action run in the dispatcher, later.
        due: When `tick` wants to be called, monotonic seconds.
        events: What happened, for telemetry (`jobs.events`).
    """

    def __init__(
        self,
        store: Store,
        *,
        post: Callable[[Callable[[], None]], None],
        timeout: float,
        most: int = 1024,
        most_waiting: int = 65_536,
        most_bytes: int = 256 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.post = post
        self._timeout = timeout
        self._most_waiting = most_waiting
        self._most_bytes = most_bytes
        self._clock = clock
        self._timed: deque[Ticket] = deque()
        """Tickets of callers that may not be settled yet, the earliest due first."""
        self._unsettled = 0
        self._waiting = 0
        self._bytes = 0
        self._listeners: list[Changed] = []
        self._recovered: list[Callable[[], None]] = []
        self._served: deque[Ticket] = deque()
        """What the thread has brought and the dispatcher has not told yet."""
        self.due = inf
        self.events = new_events()
        self._thread = StoreThread(
            store,
            bring=self._bring,
            applied=lambda seconds: self.events.append((GROUP, seconds)),
            changed=self._changed,
            recovered=lambda: post(self._announce_recovery),
            most=most,
            clock=clock,
        )

    # --- For the dispatcher ---------------------------------------------------------------------------------------

    def listen(self, changed: Changed, recovered: Callable[[], None]) -> None:
        """Has these told in the dispatcher: of changes that others made (see `Changed`), and when the store is back.

        To be called before `start`.
        """
        self._listeners.append(changed)
        self._recovered.append(recovered)

    def do(self, operation: Operation, done: Done | None = None) -> None:
        """Has an operation done. Never blocks.

        Args:
            operation: What to do. Operations happen in the order in which they come here.
            done: Told the outcome, exactly once, by the dispatcher, never from within this call: a value, or the
                exception that went with it (a `ForebayError`, or `ClaimLost`).
        """
        self._unsettled += 1
        nbytes = _size(operation)
        if type(operation) in _FROM_CALLERS:
            if self._waiting >= self._most_waiting or self._bytes + nbytes > self._most_bytes:
                refused = Ticket((operation,), done=done)
                self.post(lambda: self._tell(refused, [QueueFull(_BEHIND, retry_after=RETRY_AFTER)]))
                return
            due = self._clock() + self._timeout
            ticket = Ticket((operation,), done=done, due=due, nbytes=nbytes)
            self._waiting += 1
            self._bytes += nbytes
            self._timed.append(ticket)
            self.due = min(self.due, due)
        else:
            ticket = Ticket((operation,), done=done, nbytes=nbytes)
        self._thread.put(ticket)

    def do_all(self, operations: Sequence[Operation], done: AllDone, nbytes: int = 0) -> None:
        """Has operations of the server's own work done, of which none must be left undone, and not one.

        Args:
            operations: As for `do`. They may be repeated if it is not known whether they happened.
            done: Told all their outcomes at once, as by `do`.
            nbytes: What they carry.
        """
        self._unsettled += len(operations)
        self._thread.put(Ticket(operations, all_done=done, nbytes=nbytes))

    def tick(self, now: float) -> float:
        """Hands over outcomes, as many as a turn allows, and fails what callers have waited for too long.

        Returns when to be called again, at the latest.
        """
        if self._served:
            self._hand_over()
        timed = self._timed
        while timed:
            ticket = timed[0]
            if not ticket.settled:
                if ticket.due > now:
                    break
                self._thread.healthy = False
                self._thread.wake()  # If it sleeps after all, it finds out that the store is well.
                self._tell(ticket, [StoreUnavailable(_LATE)])
            timed.popleft()
        self._set_due()
        return self.due

    def on_their_way(self) -> int:
        """Operations whose outcome is still due."""
        return self._unsettled

    def _tell(self, ticket: Ticket, outcomes: Sequence[Outcome]) -> None:
        """Hands over outcomes, unless that was done already."""
        if ticket.settled:
            return
        ticket.settled = True
        self._unsettled -= len(ticket.operations)
        if ticket.due != inf:
            self._waiting -= 1
            self._bytes -= ticket.nbytes
        done, all_done = ticket.done, ticket.all_done
        ticket.done = ticket.all_done = None
        try:
            if all_done is not None:
                leave_all(self.events, ticket.operations, outcomes)
                all_done(outcomes)
            else:
                leave(self.events, ticket.operations[0], outcomes[0])
                if done is not None:
                    done(outcomes[0])
        except Exception:  # noqa: BLE001  # one operation's fault must not cost the others their outcomes
            _log.exception("outcome_not_handed_over", operation=type(ticket.operations[0]).__name__)

    def _take_up(self, tickets: list[Ticket]) -> None:
        """The thread has served a group."""
        waiting = bool(self._served)
        self._served.extend(tickets)
        if not waiting:  # Else this turn hands over as much as it may already.
            self._hand_over()
            self._set_due()

    def _hand_over(self) -> None:
        """Tells outcomes, in their order, for no longer than is good for those who wait for other things."""
        served = self._served
        # At the end perhaps nobody calls `tick` again.
        until = inf if self._thread.ended else self._clock() + TURN_SECONDS
        while served:
            ticket = served.popleft()
            self._tell(ticket, ticket.outcomes)
            if self._clock() >= until:
                break
        timed = self._timed
        while timed and timed[0].settled:
            timed.popleft()

    def _set_due(self) -> None:
        self.due = 0.0 if self._served else self._timed[0].due if self._timed else inf

    def _announce_recovery(self) -> None:
        for recovered in self._recovered:
            recovered()

    # --- For others -----------------------------------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        """Whether the store answers, as far as is known. From any thread."""
        return self._thread.healthy

    @property
    def groups(self) -> int:
        """How many groups were applied. From any thread."""
        return self._thread.groups

    @property
    def applied(self) -> int:
        """How many operations these had. From any thread."""
        return self._thread.operations

    def start(self) -> None:
        """Opens the store and begins to work.

        Raises:
            ConfigError: The store can't be opened.
            StoreUnavailable: It does not answer now.
        """
        self._thread.start()

    def ask(self, operation: Operation, timeout: float) -> Any:
        """Has an operation done and waits for its outcome. From any thread but the dispatcher's.

        Raises:
            StoreUnavailable: The store has not served it in so many seconds (it may still happen), or it is closed.
            ForebayError: What else went wrong with it.
            ClaimLost: See `store`.
        """
        ticket = Ticket((operation,))
        ticket.event = threading.Event()
        self._thread.put(ticket)
        if not ticket.event.wait(timeout):
            ticket.settled = True
            raise StoreUnavailable(_LATE)
        (outcome,) = ticket.outcomes
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self, timeout: float) -> bool:
        """Serves what is queued, for so many seconds at most, fails the rest, and closes the store.

        Returns:
            Whether the thread has ended (it is a daemon: the process can).
        """
        return self._thread.close(timeout)

    # --- From the thread ------------------------------------------------------------------------------------------

    def _bring(self, tickets: list[Ticket]) -> None:
        """Brings outcomes to those who wait for them."""
        asked = [ticket for ticket in tickets if ticket.event is not None]
        for ticket in asked:
            leave(self.events, ticket.operations[0], ticket.outcomes[0])
            ticket.event.set()  # type: ignore[union-attr]  # it has one
        if asked:
            tickets = [ticket for ticket in tickets if ticket.event is None]
        if tickets:
            self.post(lambda: self._take_up(tickets))

    def _changed(self, ids: Collection[str]) -> None:
        """Others have changed something. From any thread."""

        def tell() -> None:
            for changed in self._listeners:
                changed(ids)

        self.post(tell)


def _size(operation: Operation) -> int:
    """Bytes of what an operation carries."""
    if isinstance(operation, Finish):
        return len(operation.outcome)
    return len(operation.payload) if isinstance(operation, Submit) else 0
