"""The store's thread: takes operations from the dispatcher, gives them to the store in groups, brings outcomes back.

The dispatcher must never block, and a store does nothing else. So operations are queued here; one thread takes all that
have come while the group before was on its way to the disk, applies them as one transaction (group commit), and posts
all outcomes back as one action. An operation costs a place in a deque, not a hop between threads.

When something goes wrong
-------------------------
* *No room* (`StoreFull`), or a fault that nobody foresaw: the operations of the group are applied one by one, so that
  those which need no room go through, and only the culprit gets the error.
* *No store* (`StoreUnavailable`): it is not known what happened. Operations that mean the same when they are done
  twice are done again, in their order, until the store answers; the others fail at once. What callers ask for fails
  `timeout` seconds after it was asked; what the server's own work needs (a finished job's outcome above all) waits for
  as long as it takes. Between attempts there is a pause, 10 ms at first, 1 s at last.

`healthy` is what is known of the store: false from its first failure, or from the first operation that it did not
serve in time, until it answers again.

Threads: the dispatcher calls everything but `ask`, which is for all others; `start` and `close` are called by whoever
builds and ends the server, `start` before the dispatcher uses it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from math import inf
from typing import Any, Final

import structlog

from forebay_server.background import can_wait
from forebay_server.errors import ForebayError, Internal, QueueFull, StoreFull, StoreUnavailable
from forebay_server.jobs.events import GROUP, leave, new_events
from forebay_server.jobs.store import (
    Cancel,
    Changed,
    Claim,
    Deliveries,
    Finish,
    Get,
    Operation,
    Outcome,
    Page,
    Store,
    Submit,
)

FIRST_PAUSE: Final = 0.010
LAST_PAUSE: Final = 1.0
"""Seconds between attempts at a store that does not answer; doubled from the one to the other."""
RETRY_AFTER: Final = 1.0
"""Seconds after which a caller may come again who met a full queue."""
TURN_SECONDS: Final = 0.0002
"""For outcomes, in a turn of the dispatcher."""
GROUP_BYTES: Final = 16 << 20
"""A group is closed once it carries so much, so that it never takes long."""
OPEN_PATIENCE: Final = 120.0
"""Seconds for the store to open; migrating a large database takes its time."""

_FROM_CALLERS: Final = frozenset({Submit, Get, Page, Cancel})
"""Operations that somebody waits for at a call: they time out, and their number is bounded. Those of the server's own
work are bounded by whoever makes them."""
_ONCE: Final = frozenset({Claim, Deliveries})
"""Operations that must not be repeated when it is not known whether they happened."""
_LATE: Final = "the job store did not answer in time"
_BEHIND: Final = "more is asked of the job store than it can do"
_PROBE: Final = Get("0" * 32, "")
"""An operation that tells whether the store answers."""

_log = structlog.get_logger(__name__)

Done = Callable[[Any], None]
"""Told the outcome (an `Outcome`; callers know which of its kinds their operation has)."""


class _Ticket:
    """An operation, and who waits for its outcome."""

    __slots__ = ("done", "due", "event", "nbytes", "operation", "outcome", "settled")

    def __init__(self, operation: Operation, done: Done | None, due: float, nbytes: int) -> None:
        self.operation = operation
        self.done = done
        self.due = due
        """Monotonic seconds at which it fails; infinity: never."""
        self.nbytes = nbytes
        self.settled = False
        """Its outcome was told. Set by the dispatcher, or by who asked."""
        self.event: threading.Event | None = None
        """For `ask`: set by the store's thread."""
        self.outcome: Outcome = None


class Keeper:
    """Stands between the dispatcher and a store.

    Args:
        store: Opened, used and closed by the thread of this keeper alone.
        post: Has an action run in the dispatcher's thread (`Dispatcher.post`).
        timeout: Seconds after which an operation that a caller waits for fails with `StoreUnavailable`, if the store
            has not served it by then. It may still happen.
        most: Operations in a group.
        most_waiting: Operations of callers that may wait; those beyond are refused with `QueueFull`.
        most_bytes: Bytes of payloads that may wait; as above.
        clock: Monotonic seconds.

    Attributes:
        post: As given: has an action run in the dispatcher, later.
        healthy: Whether the store answers, as far as is known. From any thread.
        due: When `tick` wants to be called, monotonic seconds.
        events: What happened, for telemetry (`jobs.events`).
        groups: How many groups were applied. To be read from any thread.
        applied: How many operations these had.
    """

    def __init__(
        self,
        store: Store,
        *,
        post: Callable[[Callable[[], None]], None],
        timeout: float,
        most: int = 512,
        most_waiting: int = 65_536,
        most_bytes: int = 256 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self.post = post
        self._timeout = timeout
        self._most = most
        self._most_waiting = most_waiting
        self._most_bytes = most_bytes
        self._clock = clock
        self._queue: deque[_Ticket] = deque()
        self._timed: deque[_Ticket] = deque()
        """Tickets of callers that may not be settled yet, the earliest due first. The dispatcher's."""
        self._unsettled = 0
        self._waiting = 0
        self._bytes = 0
        self._listeners: list[Changed] = []
        self._recovered: list[Callable[[], None]] = []
        self._asleep = False
        self._woken = threading.Event()
        self._closing = False
        self._ended = False
        self._until = inf
        self._opened = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="forebay-store", daemon=True)
        self._served: deque[tuple[_Ticket, Outcome]] = deque()
        """What the thread has brought and the dispatcher has not told yet."""
        self.healthy = True
        self.due = inf
        self.events = new_events()
        self.groups = 0
        self.applied = 0

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
                refused = _Ticket(operation, done, inf, 0)
                self.post(lambda: self._told(refused, QueueFull(_BEHIND, retry_after=RETRY_AFTER)))
                return
            due = self._clock() + self._timeout
            ticket = _Ticket(operation, done, due, nbytes)
            self._waiting += 1
            self._bytes += nbytes
            self._timed.append(ticket)
            self.due = min(self.due, due)
        else:
            ticket = _Ticket(operation, done, inf, nbytes)
        self._queue.append(ticket)
        if self._asleep:
            self._asleep = False
            self._woken.set()
        elif self._ended:
            self._fail_rest()

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
                self.healthy = False
                self._woken.set()  # If it sleeps after all, it finds out that the store is well.
                self._told(ticket, StoreUnavailable(_LATE))
            timed.popleft()
        self._set_due()
        return self.due

    def on_their_way(self) -> int:
        """Operations whose outcome is still due."""
        return self._unsettled

    def _told(self, ticket: _Ticket, outcome: Outcome) -> None:
        """Hands over an outcome, unless that was done already."""
        if ticket.settled:
            return
        ticket.settled = True
        self._unsettled -= 1
        if ticket.due != inf:
            self._waiting -= 1
            self._bytes -= ticket.nbytes
        leave(self.events, ticket.operation, outcome)
        done = ticket.done
        if done is not None:
            ticket.done = None
            try:
                done(outcome)
            except Exception:  # noqa: BLE001  # one operation's fault must not cost the others their outcomes
                _log.exception("outcome_not_handed_over", operation=type(ticket.operation).__name__)

    def _take_up(self, group: list[_Ticket], outcomes: list[Outcome]) -> None:
        """The thread has served a group."""
        waiting = bool(self._served)
        self._served.extend(zip(group, outcomes, strict=True))
        if not waiting:  # Else this turn hands over as much as it may already.
            self._hand_over()
            self._set_due()

    def _hand_over(self) -> None:
        """Tells outcomes, in their order, for no longer than is good for those who wait for other things."""
        served = self._served
        until = inf if self._ended else self._clock() + TURN_SECONDS  # At the end perhaps nobody calls `tick` again.
        while served:
            self._told(*served.popleft())
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

    def _changed(self, ids: Collection[str]) -> None:
        """Others have changed something. From any thread."""

        def tell() -> None:
            for changed in self._listeners:
                changed(ids)

        self.post(tell)

    # --- For others -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Opens the store and begins to work.

        Raises:
            ConfigError: The store can't be opened.
            StoreUnavailable: It does not answer now.
        """
        self._thread.start()
        if not self._opened.wait(OPEN_PATIENCE):
            raise StoreUnavailable("the job store did not open in time")
        if self._fault is not None:
            raise self._fault

    def ask(self, operation: Operation, timeout: float) -> Any:
        """Has an operation done and waits for its outcome. From any thread but the dispatcher's.

        Raises:
            StoreUnavailable: The store has not served it in so many seconds (it may still happen), or it is closed.
            ForebayError: What else went wrong with it.
            ClaimLost: See `store`.
        """
        ticket = _Ticket(operation, None, inf, 0)
        ticket.event = threading.Event()
        self._queue.append(ticket)
        self._woken.set()
        if self._ended:
            self._fail_rest()
        if not ticket.event.wait(timeout):
            ticket.settled = True
            raise StoreUnavailable(_LATE)
        if isinstance(ticket.outcome, Exception):
            raise ticket.outcome
        return ticket.outcome

    def close(self, timeout: float) -> bool:
        """Serves what is queued, for so many seconds at most, fails the rest, and closes the store.

        Returns:
            Whether the thread has ended (it is a daemon: the process can).
        """
        if not self._thread.is_alive():
            return True
        self._until = self._clock() + timeout
        self._closing = True
        self._woken.set()
        self._thread.join(timeout + LAST_PAUSE)
        return not self._thread.is_alive()

    # --- The thread -----------------------------------------------------------------------------------------------

    def _main(self) -> None:
        can_wait()  # A backlog keeps it busy all the time, and callers were answered ten times as late.
        try:
            self._store.open(self._changed)
        except BaseException as fault:  # noqa: BLE001  # it is the starter's
            self._fault = fault
            self._opened.set()
            return
        self._opened.set()
        try:
            self._loop()
        finally:
            self._ended = True
            self._fail_rest()
            self._store.close()

    def _fail_rest(self) -> None:
        """Fails what nobody will serve any more. From any thread."""
        while True:
            try:
                ticket = self._queue.popleft()
            except IndexError:
                return
            self._bring([ticket], [StoreUnavailable("the job store is closed")])

    def _loop(self) -> None:
        pause = FIRST_PAUSE
        while True:
            group = self._next_group()
            if not group:
                if self._closing:
                    return
                if self.healthy:
                    self._sleep()
                    continue
            answered = self._serve(group) if group else self._answers()
            if answered:
                pause = FIRST_PAUSE
                if not self.healthy:
                    self.healthy = True
                    _log.info("job_store_answers")
                    self.post(self._announce_recovery)
            elif self._closing and self._clock() >= self._until:
                return
            else:
                if self.healthy:
                    self.healthy = False
                    _log.warning("job_store_does_not_answer")
                time.sleep(pause)
                pause = min(2.0 * pause, LAST_PAUSE)

    def _sleep(self) -> None:
        self._woken.clear()
        self._asleep = True
        if not self._queue and not self._closing:  # What came before `_asleep` was set has woken nobody.
            self._woken.wait()
        self._asleep = False

    def _next_group(self) -> list[_Ticket]:
        """All that is queued and still wanted, up to `most` operations or so many bytes."""
        queue = self._queue
        group: list[_Ticket] = []
        most = self._most
        nbytes = 0
        while queue and len(group) < most and nbytes < GROUP_BYTES:
            ticket = queue.popleft()
            if not ticket.settled:
                group.append(ticket)
                nbytes += ticket.nbytes
        return group

    def _answers(self) -> bool:
        """Whether the store answers."""
        try:
            self._store.apply([_PROBE])
        except StoreUnavailable:
            return False
        except Exception:  # noqa: BLE001  # see `_serve`
            _log.exception("job_store_fault")
        return True

    def _serve(self, group: list[_Ticket]) -> bool:
        """Applies a group; whether the store has answered."""
        began = self._clock()
        try:
            outcomes = self._store.apply([ticket.operation for ticket in group])
        except StoreUnavailable as error:
            self._again(group, error)
            return False
        except Exception as fault:  # noqa: BLE001  # whatever it is, the thread goes on
            if len(group) > 1:
                return self._serve_each(group)
            self._bring(group, [_excuse(fault)])
            return True
        self.events.append((GROUP, self._clock() - began))
        self._count(group)
        self._bring(group, outcomes)
        return True

    def _serve_each(self, group: list[_Ticket]) -> bool:
        """Applies operations one by one; whether the store has answered to the last."""
        for place, ticket in enumerate(group):
            if ticket.settled:
                continue
            try:
                outcomes = self._store.apply([ticket.operation])
            except StoreUnavailable as error:
                self._queue.extendleft(reversed(group[place + 1 :]))
                self._again([ticket], error)
                return False
            except Exception as fault:  # noqa: BLE001  # see `_serve`
                outcomes = [_excuse(fault)]
            self._count([ticket])
            self._bring([ticket], outcomes)
        return True

    def _count(self, group: list[_Ticket]) -> None:
        self.groups += 1
        self.applied += len(group)

    def _again(self, group: list[_Ticket], error: StoreUnavailable) -> None:
        """Puts back what can be repeated, in order, and fails the rest."""
        failed = [ticket for ticket in group if type(ticket.operation) in _ONCE]
        self._queue.extendleft(ticket for ticket in reversed(group) if type(ticket.operation) not in _ONCE)
        if failed:
            self._bring(failed, [error] * len(failed))

    def _bring(self, group: list[_Ticket], outcomes: list[Outcome]) -> None:
        """Brings outcomes to those who wait for them."""
        asked = False
        for ticket, outcome in zip(group, outcomes, strict=True):
            if ticket.event is not None:
                asked = True
                leave(self.events, ticket.operation, outcome)
                ticket.outcome = outcome
                ticket.event.set()
        if asked:
            pairs = [(ticket, outcome) for ticket, outcome in zip(group, outcomes, strict=True) if ticket.event is None]
            group = [ticket for ticket, _ in pairs]
            outcomes = [outcome for _, outcome in pairs]
        if group:
            self.post(lambda: self._take_up(group, outcomes))


def _size(operation: Operation) -> int:
    """Bytes of what an operation carries."""
    if isinstance(operation, Submit):
        return len(operation.payload)
    return len(operation.outcome) if isinstance(operation, Finish) else 0


def _excuse(fault: Exception) -> ForebayError:
    """What a caller is told of a fault."""
    if isinstance(fault, StoreFull):
        return fault
    error = Internal()
    _log.error("job_store_fault", error_id=error.error_id, exc_info=fault)
    return error
