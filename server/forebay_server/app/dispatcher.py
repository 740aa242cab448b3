"""The one thread that everything passes through: it takes events, lets the services and the scheduler act, and answers.

It alone touches the core, so nothing there needs a lock. A turn is: take what has arrived, hand each event to its
endpoint, let the runner collect and start batches, send what there is to send. Built and run by `app.server`; other
threads reach it through `post`.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import structlog

from forebay_server.scheduling.runner import Runner
from forebay_server.services.service import Endpoint, Handler, Outbox, Service, ignore
from forebay_server.services.status import failure, internal
from forebay_server.wire import port
from forebay_server.wire.port import Event, Wire

EVENTS_A_TURN = 4096
"""Enough to fill several batches of any model; bounds how long the batches that are ready wait for their turn."""

LONGEST_WAIT = 1.0  # seconds; only bounds how late a lost wake-up would be noticed

LOOK_EVERY = 0.005  # seconds between looks at the figures of the front end and of the batches

TIMED_WAIT = 0.001
"""Seconds for which timed parts that are due wait as long as each turn brings something: callers go first."""

ALIVE_EVERY = 0.1  # seconds between looks at whether the thread that should answer is still there

_T = TypeVar("_T")

_log = structlog.get_logger(__name__)


class Timed(Protocol):
    """A part that wants to be called again at an instant."""

    @property
    def due(self) -> float:
        """When, monotonic seconds; infinity: not before something happens. It may change in the dispatcher's thread."""

    def tick(self, now: float) -> float:
        """Does what is due, and returns the new `due`."""


class DispatcherEnded(Exception):
    """There is no dispatcher any more that could do it."""


def endpoints_of(services: Sequence[Service]) -> list[Endpoint]:
    """All endpoints, in the order in which the wire numbers their methods."""
    return [endpoint for service in services for endpoint in service.endpoints]


class Dispatcher:
    """The loop, as a thread of its own."""

    def __init__(
        self,
        *,
        wire: Wire,
        runner: Runner,
        endpoints: Sequence[Endpoint],
        outbox: Outbox,
        flushes: Sequence[Callable[[], None]],
        afterwards: Callable[[], None] = lambda: None,
        timed: Sequence[Timed] = (),
        watchdog: float | None,
        held_bytes: Callable[[int], None],
        turn_times: list[float],
        on_fault: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Stores; `start` acts.

        Args:
            wire: Started.
            runner: Told to take its turn after the events of each turn.
            endpoints: In the order of the wire's methods.
            outbox: The list into which services put their answers.
            flushes: Called at the end of each turn, before the outbox is sent (streams put results together there).
            afterwards: Called after it is sent: what no caller should wait for.
            timed: Called in each turn in which they are due, after the events; no turn waits for longer. In turns in
                which something has come they wait, for TIMED_WAIT at most.
            watchdog: Seconds for which it may stand still beyond what its batches may take; None: for ever.
            held_bytes: Told, every LOOK_EVERY seconds, what the front end holds.
            turn_times: Where to put how long each turn took, in seconds; emptied by `afterwards`.
            on_fault: Called by the thread if a fault ends it: nothing is answered any more.
            clock: Monotonic seconds.
        """
        self._wire = wire
        self._on_fault = on_fault
        self._runner = runner
        self._endpoints = endpoints
        self._outbox = outbox
        self._flushes = tuple(flushes)
        self._afterwards = afterwards
        self._timed = tuple(timed)
        self._watchdog = watchdog
        self._resting = False
        self._budget: float | None = None
        self._gathers = 0.0
        self._ticked = -math.inf
        self._held_bytes = held_bytes
        self._turn_times = turn_times
        self._clock = clock
        self._posted: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="forebay-dispatcher", daemon=True)
        self.turns = 0
        """How many turns it has made; what a watcher compares to see that it moves."""

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def post(self, action: Callable[[], None]) -> None:
        """Has an action run in the dispatcher's thread, soon. From any thread."""
        self._posted.append(action)
        self._wire.wake()

    def call(self, action: Callable[[], _T], timeout: float = 30.0) -> _T:
        """Has an action run in the dispatcher's thread and waits for its result. From any other thread.

        Raises:
            DispatcherEnded: The thread has ended.
            TimeoutError: It did not come to it in so many seconds.
            Exception: What the action raised.
        """
        done = threading.Event()
        results: list[_T] = []
        faults: list[Exception] = []

        def run() -> None:
            try:
                results.append(action())
            except Exception as fault:  # noqa: BLE001  # it is the caller's
                faults.append(fault)
            done.set()

        self.post(run)
        until = time.monotonic() + timeout
        while not done.wait(min(ALIVE_EVERY, max(0.0, until - time.monotonic()))):
            if not self._thread.is_alive() and not done.is_set():
                raise DispatcherEnded("the dispatcher has ended")
            if time.monotonic() >= until:
                raise TimeoutError("the dispatcher does not answer")
        if faults:
            raise faults[0]
        return results[0]

    def rest(self, resting: bool) -> None:  # noqa: FBT001  # reads as what it says
        """Has the watchdog rest while something may hold the GIL for long, or wake up again. From any thread."""
        self._resting = resting
        self.post(self._set_watchdog)

    def _set_watchdog(self) -> None:
        budget = None
        if self._watchdog is not None and not self._resting:
            budget = self._watchdog + self._runner.longest_batch()
        if budget != self._budget:
            self._budget = budget
            self._wire.watch(budget)

    def stop(self, timeout: float = 30.0) -> None:
        """Ends the loop after what is posted has run, and waits for the thread."""
        self.post(self._stop)
        self._thread.join(timeout)

    def _stop(self) -> None:
        self._stopping = True

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException:  # noqa: BLE001  # whatever it is, the process must not go on as if it served
            _log.exception("dispatcher_failed")
            if self._on_fault is not None:
                self._on_fault()
        finally:
            self._wire.watch(None)  # it does not come back, and is not stuck

    def _loop(self) -> None:
        wire, outbox, clock = self._wire, self._outbox, self._clock
        take, answer, turn = wire.take, wire.answer, self._runner.turn
        flushes, afterwards = self._flushes, self._afterwards
        handlers = self._handlers()
        on_full = tuple({endpoint.on_full for endpoint in self._endpoints})
        turn_times = self._turn_times
        timeout = 0.0
        next_look = 0.0
        while not self._stopping:
            events = take(EVENTS_A_TURN, min(LONGEST_WAIT, timeout))
            self.turns += 1
            while self._posted:
                self._guard(self._posted.popleft())
            now = clock()
            if now >= next_look:
                next_look = now + LOOK_EVERY
                self._held_bytes(wire.figures().held_bytes)
                self._set_watchdog()
            for event in events:
                try:
                    handlers[event[0]][event[2]](event)
                except Exception as fault:  # noqa: BLE001  # one event's fault must not stop all others
                    self._fault(event, fault)
            self._tick(now, came=bool(events))
            timeout = self._soonest(turn(clock()))
            self._gather(now)
            for flush in flushes:
                flush()
            if outbox:
                full = answer(outbox)
                outbox.clear()
                for call in full:
                    for tell in on_full:  # each knows its own calls
                        tell(call)
            afterwards()
            turn_times.append(clock() - now)

    def _gather(self, now: float) -> None:
        """Tells the front end until when nothing that arrives could run, if that has changed."""
        until = self._runner.busy_until(now)
        if until != self._gathers:
            self._gathers = until
            self._wire.gather(until)

    def _handlers(self) -> list[list[Handler]]:
        """By kind of event, then by method."""
        columns: list[list[Handler]] = [[] for _ in range(port.WRITABLE + 1)]
        for endpoint in self._endpoints:
            columns[port.CALL].append(endpoint.on_call)
            columns[port.OPEN].append(endpoint.on_call)
            columns[port.MESSAGE].append(endpoint.on_message)
            columns[port.HALF_CLOSE].append(endpoint.on_half_close)
            columns[port.CANCEL].append(endpoint.on_cancel)
            columns[port.WRITABLE].append(endpoint.on_writable)
        columns[0] = [ignore] * len(self._endpoints)
        return columns

    def _tick(self, now: float, *, came: bool) -> None:
        if came and now - self._ticked < TIMED_WAIT:
            return
        self._ticked = now
        for part in self._timed:
            if part.due <= now:
                try:
                    part.tick(now)
                except Exception:  # noqa: BLE001  # see above: the loop goes on
                    _log.exception("tick_failed", part=type(part).__name__)

    def _soonest(self, timeout: float) -> float:
        """Seconds until the next turn, at most: `timeout`, or until the first part is due."""
        if not self._timed:
            return timeout
        due = min(part.due for part in self._timed)
        return timeout if due == math.inf else min(timeout, max(0.0, due - self._clock()))

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:  # noqa: BLE001  # see above: the loop goes on
            _log.exception("posted_action_failed")

    def _fault(self, event: Event, fault: Exception) -> None:
        self._outbox.append((port.FAIL, event[1], failure(internal(fault))))
