"""The dispatcher's loop, on a wire of the test's own: what it hands to whom, and that no fault stops the others."""

import itertools
import math
import threading
import time

import pytest

from forebay_server.app.dispatcher import TIMED_WAIT, Dispatcher, DispatcherEnded, endpoints_of
from forebay_server.services.service import Endpoint, Service
from forebay_server.wire import port
from forebay_server.wire.port import Figures, Method, MethodKind
from tests.waiting import eventually


class Wire:
    """Gives out what the test puts in, and keeps what it is answered."""

    name = "test"

    def __init__(self):
        self.coming = []
        self.answered = []
        self.budgets = []
        self.gathers = []
        self.full = []
        self._woken = threading.Event()

    def take(self, most, timeout):
        self._woken.wait(min(timeout, 0.01))
        self._woken.clear()
        events, self.coming = self.coming, []
        return events

    def answer(self, actions):
        self.answered += actions
        full, self.full = self.full, []
        return full

    def wake(self):
        self._woken.set()

    def watch(self, budget):
        self.budgets.append(budget)

    def gather(self, until):
        self.gathers.append(until)

    def figures(self):
        return Figures(
            connections=1, connections_total=1, calls=1, calls_total=1, held_bytes=77,
            received_bytes_total=0, sent_bytes_total=0, refused_total=0,
        )  # fmt: skip


class Runner:
    """Does nothing, or what the test wants."""

    def __init__(self):
        self.act = lambda: None
        self.busy = 0.0

    def turn(self, now):
        self.act()
        return 1.0

    def busy_until(self, now):
        return self.busy

    def longest_batch(self):
        return 2.0


class Rig:
    """A dispatcher with two methods, and what came of them."""

    def __init__(self, watchdog=5.0, timed=(), clock=time.monotonic):
        self.wire = Wire()
        self.runner = Runner()
        self.outbox = []
        self.seen = []
        self.held = []
        self.turn_times = []
        self.flushed = []
        """When each part was told of the end of a turn, and how many had been answered by then."""
        self.faults = []
        endpoints = endpoints_of([Service(name="s", endpoints=[self._endpoint("a"), self._endpoint("b")])])
        self.dispatcher = Dispatcher(
            wire=self.wire,
            runner=self.runner,
            endpoints=endpoints,
            outbox=self.outbox,
            flushes=[lambda: self.flushed.append(("before", len(self.wire.answered)))],
            afterwards=lambda: self.flushed.append(("after", len(self.wire.answered))),
            timed=timed,
            watchdog=watchdog,
            held_bytes=self.held.append,
            turn_times=self.turn_times,
            on_fault=lambda: self.faults.append("fault"),
            clock=clock,
        )

    def _endpoint(self, name):
        def saw(what):
            def handle(event):
                if event[3] == b"bad":
                    raise ValueError("a secret")
                self.seen.append((name, what, event[1]))
                if what == "call":
                    self.outbox.append((port.RESPOND, event[1], b"ok"))

            return handle

        return Endpoint(
            method=Method(path=f"/s/{name}", kind=MethodKind.BIDI_STREAM),
            on_call=saw("call"),
            on_message=saw("message"),
            on_half_close=saw("half"),
            on_cancel=saw("cancel"),
            on_writable=saw("writable"),
            on_full=lambda call: self.seen.append((name, "full", call)),
        )

    def send(self, *events):
        self.wire.coming += [(kind, call, method, body, math.inf, None, None) for kind, call, method, body in events]
        self.wire.wake()
        self.dispatcher.call(lambda: None)
        self.dispatcher.call(lambda: None)


@pytest.fixture
def rig():
    rig = Rig()
    rig.dispatcher.start()
    yield rig
    rig.dispatcher.stop()


def test_every_event_reaches_the_handler_of_its_method(rig):
    """Kinds and methods meet in the right handler, in the order in which they came."""
    kinds = [port.OPEN, port.MESSAGE, port.HALF_CLOSE, port.CANCEL, port.WRITABLE]
    rig.send(*[(kind, 10 * kind + method, method, b"") for kind in kinds for method in (0, 1)])
    words = ["call", "message", "half", "cancel", "writable"]
    assert rig.seen == [
        (name, word, 10 * kind + method)
        for kind, word in zip(kinds, words, strict=True)
        for method, name in enumerate("ab")
    ]


def test_a_fault_of_one_event_fails_that_call_only(rig):
    """The call gets INTERNAL without the exception's text; the next event is handled."""
    rig.send((port.CALL, 1, 0, b"bad"), (port.CALL, 2, 0, b""))
    (kind, call, failure), answer = rig.wire.answered
    assert (kind, call, failure.code) == (port.FAIL, 1, 13)
    assert "secret" not in repr(failure)
    assert answer == (port.RESPOND, 2, b"ok")


def test_nobody_waits_for_what_may_come_after_the_answers(rig):
    """`flushes` run before a turn's answers are sent, and `afterwards` after that."""
    rig.send((port.CALL, 1, 0, b""))
    assert set(rig.flushed) <= {("before", 0), ("after", 0), ("after", 1), ("before", 1)}
    first = rig.flushed.index(("after", 1))
    assert rig.flushed[first - 1] == ("before", 0)


def test_full_streams_are_told_to_all(rig):
    """Each service is told of the calls whose outbox is full, and knows its own."""
    rig.wire.full = [9]
    rig.send((port.CALL, 9, 1, b""))
    assert ("a", "full", 9) in rig.seen
    assert ("b", "full", 9) in rig.seen


def test_what_is_posted_runs_and_may_fail(rig):
    """A posted action that raises does not end the loop; one that is called gives its result or its exception back."""
    rig.dispatcher.post(lambda: 1 / 0)
    assert rig.dispatcher.call(lambda: 42) == 42
    with pytest.raises(ZeroDivisionError):
        rig.dispatcher.call(lambda: 1 / 0)
    assert rig.faults == []


def test_the_front_ends_bytes_are_told(rig):
    """What the front end holds is passed on, now and then."""
    rig.dispatcher.call(lambda: None)
    assert rig.held[0] == 77


def test_the_front_end_is_told_until_when_it_may_gather(rig):
    """Once for each change, and not at all while nothing is to be told."""
    rig.dispatcher.call(lambda: None)
    assert rig.wire.gathers == []
    for until in (5.0, 5.0, 7.5, 0.0):
        rig.runner.busy = until
        rig.dispatcher.call(lambda: None)
        rig.dispatcher.call(lambda: None)
    assert rig.wire.gathers == [5.0, 7.5, 0.0]


def test_the_watchdogs_budget_follows_the_longest_batch(rig):
    """The budget is the setting and what inline batches may take; None while it rests, and after the end."""
    rig.dispatcher.call(lambda: None)
    assert rig.wire.budgets[0] == 7.0
    rig.dispatcher.rest(True)
    rig.dispatcher.call(lambda: None)
    assert rig.wire.budgets[-1] is None
    rig.dispatcher.rest(False)
    rig.dispatcher.call(lambda: None)
    assert rig.wire.budgets[-1] == 7.0
    rig.dispatcher.stop()
    assert rig.wire.budgets[-1] is None


def test_a_fault_of_the_loop_is_told():
    """A dispatcher that dies says so, lets the watchdog rest, and keeps nobody waiting."""
    rig = Rig()
    rig.dispatcher.start()

    def die():
        raise RuntimeError("a fault")

    rig.runner.act = die
    rig.wire.wake()
    eventually(lambda: rig.faults, "the fault is told")
    assert rig.faults == ["fault"]
    with pytest.raises(DispatcherEnded):
        rig.dispatcher.call(lambda: None)
    assert rig.wire.budgets[-1] is None


def test_a_question_that_is_not_answered_in_time(rig):
    """Who asks a dispatcher that is busy gets a TimeoutError."""
    gate = threading.Event()
    rig.dispatcher.post(lambda: gate.wait(5))
    with pytest.raises(TimeoutError):
        rig.dispatcher.call(lambda: None, 0.2)
    gate.set()


class Alarm:
    """Due at its instants, one after the other; remembers how late it was called."""

    def __init__(self, *instants, fault=False):
        self.instants = list(instants)
        self.late = []
        self.fault = fault

    @property
    def due(self):
        return self.instants[0] if self.instants else math.inf

    def tick(self, now):
        self.late.append(now - self.instants.pop(0))
        if self.fault:
            raise ValueError("a fault")
        return self.due


def test_parts_that_are_due_let_callers_go_first():
    """While each turn brings something they wait, but not for longer than TIMED_WAIT; in a quiet turn they do not."""
    brings = [True] * 9 + [False] * 2 + [True] * 4
    ticked = []

    class Part:
        due = 0.0

        def tick(self, now):
            ticked.append(rig.dispatcher.turns)

    # A turn takes four tenths of TIMED_WAIT: the clock is looked at four times in each.
    rig = Rig(timed=[Part()], clock=itertools.count(0.0, TIMED_WAIT / 10).__next__)

    def take(most, timeout):
        turn = rig.dispatcher.turns
        if turn == len(brings) - 1:
            rig.dispatcher._stop()
        return [(port.CALL, 1, 0, b"", math.inf, None, None)] if brings[turn] else []

    rig.wire.take = take
    rig.dispatcher._loop()
    assert ticked == [1, 4, 7, 10, 11, 14]


def test_parts_are_called_when_they_are_due():
    """Each at its instants, not before, and no turn waits beyond them; one that fails stops nobody."""
    now = time.monotonic()
    parts = [Alarm(now + 0.05, now + 0.2), Alarm(now + 0.1), Alarm(now, fault=True), Alarm()]
    rig = Rig(timed=parts)
    asked = []
    take = rig.wire.take

    def note(most, timeout):
        if timeout:
            asked.append((time.monotonic() + timeout, parts[0].due))
        return take(most, 0.005)

    rig.wire.take = note
    rig.dispatcher.start()
    try:
        while parts[0].instants or parts[1].instants:
            time.sleep(0.01)
    finally:
        rig.dispatcher.stop()
    assert [len(part.late) for part in parts] == [2, 1, 1, 0]
    assert all(late >= 0.0 for part in parts for late in part.late)
    assert all(until <= due + 0.01 for until, due in asked)
