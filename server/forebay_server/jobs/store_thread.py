"""The thread that a store lives in: takes what is queued as groups, and deals with a store that is full or away.

It does nothing else, because a store blocks. All that has come while the group before was on its way to the disk is one
transaction (group commit).

When something goes wrong
-------------------------
* *No room* (`StoreFull`), or a fault that nobody foresaw: the operations of the group are applied one by one, so that
  those which need no room go through, and only the culprit gets the error.
* *No store* (`StoreUnavailable`): it is not known what happened. Operations that mean the same when they are done
  twice are done again, in their order, until the store answers; the others fail at once. Between attempts there is a
  pause, 10 ms at first, 1 s at last.

`healthy` is what is known of the store: false from its first failure, or from the first operation that it did not
serve in time (the keeper says so), until it answers again.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import chain
from math import inf
from typing import Final

import structlog

from forebay_server.background import can_wait
from forebay_server.errors import ForebayError, Internal, StoreFull, StoreUnavailable
from forebay_server.jobs.store import Changed, Claim, Deliveries, Finish, Get, Store
from forebay_server.jobs.tickets import Ticket

FIRST_PAUSE: Final = 0.010
LAST_PAUSE: Final = 1.0
"""Seconds between attempts at a store that does not answer; doubled from the one to the other."""
GROUP_BYTES: Final = 16 << 20
"""A group is closed once it carries so much, so that it never takes long."""
OPEN_PATIENCE: Final = 120.0
"""Seconds for the store to open; migrating a large database takes its time."""

_ONCE: Final = frozenset({Claim, Deliveries})
"""Operations that must not be repeated when it is not known whether they happened. They go alone in their tickets."""
_COMMUTE: Final = frozenset({Claim, Finish})
"""The jobs of a claim end after its outcome is known, so in a later group: ends may go before the claims of theirs, and
do, because a store is quickest with operations of a kind that stand together."""
_PROBE: Final = Get("0" * 32, "")
"""An operation that tells whether the store answers."""

_log = structlog.get_logger(__name__)


class StoreThread:
    """Applies what is put into its queue.

    Args:
        store: Opened, used and closed by this thread alone.
        bring: Called by it with tickets that have all their outcomes.
        applied: Called by it after each group, with how many seconds that took.
        changed: Given to the store.
        recovered: Called by it when the store answers again.
        most: Operations in a group.
        clock: Monotonic seconds.

    Attributes:
        healthy: Whether the store answers, as far as is known. From any thread; the keeper may set it to false.
        ended: Nobody serves the queue any more.
        groups: How many groups were applied. To be read from any thread.
        operations: How many operations these had.
    """

    def __init__(
        self,
        store: Store,
        *,
        bring: Callable[[list[Ticket]], None],
        applied: Callable[[float], None],
        changed: Changed,
        recovered: Callable[[], None],
        most: int,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._bring = bring
        self._applied = applied
        self._changed = changed
        self._recovered = recovered
        self._most = most
        self._clock = clock
        self._queue: deque[Ticket] = deque()
        self._asleep = False
        self._woken = threading.Event()
        self._closing = False
        self._until = inf
        self._opened = threading.Event()
        self._fault: BaseException | None = None
        self.thread = threading.Thread(target=self._main, name="forebay-store", daemon=True)
        self.healthy = True
        self.ended = False
        self.groups = 0
        self.operations = 0

    # --- For others -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Opens the store and begins to work.

        Raises:
            ConfigError: The store can't be opened.
            StoreUnavailable: It does not answer now.
        """
        self.thread.start()
        if not self._opened.wait(OPEN_PATIENCE):
            raise StoreUnavailable("the job store did not open in time")
        if self._fault is not None:
            raise self._fault

    def put(self, ticket: Ticket) -> None:
        """Queues a ticket. From any thread; in the order in which one thread puts them."""
        self._queue.append(ticket)
        if self._asleep:
            self._asleep = False
            self._woken.set()
        elif self.ended:
            self._fail_rest()

    def wake(self) -> None:
        """Has it look whether the store is well, and whether it is to end."""
        self._woken.set()

    def close(self, timeout: float) -> bool:
        """Serves what is queued, for so many seconds at most, fails the rest, and closes the store.

        Returns:
            Whether the thread has ended (it is a daemon: the process can).
        """
        if not self.thread.is_alive():
            return True
        self._until = self._clock() + timeout
        self._closing = True
        self._woken.set()
        self.thread.join(timeout + LAST_PAUSE)
        return not self.thread.is_alive()

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
            self.ended = True
            self._fail_rest()
            self._store.close()

    def _fail_rest(self) -> None:
        """Fails what nobody will serve any more. From any thread."""
        while True:
            try:
                ticket = self._queue.popleft()
            except IndexError:
                return
            ticket.fail(StoreUnavailable("the job store is closed"))
            self._bring([ticket])

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
                    self._recovered()
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

    def _next_group(self) -> list[Ticket]:
        """All that is queued and still wanted, up to `most` operations or so many bytes."""
        queue = self._queue
        group: list[Ticket] = []
        room = self._most
        nbytes = 0
        while queue and nbytes < GROUP_BYTES:
            ticket = queue[0]
            if not ticket.settled:
                operations = len(ticket.left())
                if operations > room and group:
                    break
                room -= operations
                nbytes += ticket.nbytes
                group.append(ticket)
            queue.popleft()
        if {type(ticket.operations[0]) for ticket in group} == _COMMUTE:
            group.sort(key=_is_claim)  # Stable.
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

    def _serve(self, group: list[Ticket]) -> bool:
        """Applies a group; whether the store has answered."""
        began = self._clock()
        operations = list(chain.from_iterable(ticket.left() for ticket in group))
        try:
            outcomes = self._store.apply(operations)
        except StoreUnavailable as error:
            self._again(group, error)
            return False
        except Exception as fault:  # noqa: BLE001  # whatever it is, the thread goes on
            if len(operations) > 1:
                return self._serve_each(group)
            group[0].fail(_excuse(fault))
            self._bring(group)
            return True
        self._applied(self._clock() - began)
        self._count(len(operations))
        start = 0
        for ticket in group:
            stop = start + len(ticket.operations) - len(ticket.outcomes)
            ticket.outcomes += outcomes[start:stop]
            start = stop
        self._bring(group)
        return True

    def _serve_each(self, group: list[Ticket]) -> bool:
        """Applies operations one by one; whether the store has answered to the last."""
        for place, ticket in enumerate(group):
            if ticket.settled:
                continue
            for operation in ticket.left():
                try:
                    outcomes = self._store.apply([operation])
                except StoreUnavailable as error:
                    self._queue.extendleft(reversed(group[place + 1 :]))
                    self._again([ticket], error)
                    return False
                except Exception as fault:  # noqa: BLE001  # see `_serve`
                    outcomes = [_excuse(fault)]
                self._count(1)
                ticket.outcomes += outcomes
            self._bring([ticket])
        return True

    def _count(self, operations: int) -> None:
        self.groups += 1
        self.operations += operations

    def _again(self, group: list[Ticket], error: StoreUnavailable) -> None:
        """Puts back what can be repeated, in order, and fails the rest."""
        failed = [ticket for ticket in group if type(ticket.operations[0]) in _ONCE]
        self._queue.extendleft(ticket for ticket in reversed(group) if type(ticket.operations[0]) not in _ONCE)
        for ticket in failed:
            ticket.fail(error)
        if failed:
            self._bring(failed)


def _is_claim(ticket: Ticket) -> bool:
    return type(ticket.operations[0]) is Claim


def _excuse(fault: Exception) -> ForebayError:
    """What a caller is told of a fault."""
    if isinstance(fault, StoreFull):
        return fault
    error = Internal()
    _log.error("job_store_fault", error_id=error.error_id, exc_info=fault)
    return error
