"""The store's thread: groups, what happens when the store is full, away or slow, and that each is told exactly once."""

import itertools
import threading
import time
from collections import deque

import pytest

from forebay_server.errors import ConfigError, Internal, QueueFull, StoreFull, StoreUnavailable
from forebay_server.jobs.keeper import TURN_SECONDS, Keeper
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import Backlog, Claim, Finish, Flow, Get, Purge, Submit

FLOW = Flow("m", "t", 2, False)


def submit(number, payload=b""):
    return Submit(str(number), "t", "", b"", "m", "", 2, payload, None, 1.0, None)


class Script:
    """A store that answers each operation with its own name, or does what `act` says. Groups can be held up."""

    name = "script"

    def __init__(self):
        self.groups = []
        self.act = lambda operations: None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.open_fault = None
        self.threads = set()
        self.closed = False

    def open(self, changed):
        self.changed = changed
        self.threads.add(threading.current_thread())
        if self.open_fault:
            raise self.open_fault

    def apply(self, operations):
        self.threads.add(threading.current_thread())
        self.entered.set()
        assert self.gate.wait(20)
        self.groups.append(list(operations))
        self.act(operations)
        return [f"{operation.id}" if hasattr(operation, "id") else "done" for operation in operations]

    def close(self):
        self.threads.add(threading.current_thread())
        self.closed = True


class Rig:
    """A keeper, and the dispatcher's part played by the test."""

    def __init__(self, timeout=5.0, **kwargs):
        self.store = Script()
        self.posted = deque()
        self.woken = threading.Event()
        self.told = []
        self.recovered = []
        self.changed = []
        self.keeper = Keeper(self.store, post=self.post, timeout=timeout, **kwargs)
        self.keeper.listen(self.changed.append, lambda: self.recovered.append(1))

    def post(self, action):
        self.posted.append(action)
        self.woken.set()

    def do(self, operation):
        name = getattr(operation, "id", type(operation).__name__)
        self.keeper.do(operation, lambda outcome: self.told.append((name, outcome)))

    def pump(self):
        self.woken.clear()
        while self.posted or not self.keeper.due:
            while self.posted:
                self.posted.popleft()()
            if not self.keeper.due:
                self.keeper.tick(time.monotonic())

    def until(self, condition):
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            self.pump()
            self.woken.wait(0.01)

    def names(self):
        return [[getattr(each, "id", type(each).__name__) for each in group] for group in self.store.groups]


@pytest.fixture
def rig():
    made = []

    def make(**kwargs):
        made.append(Rig(**kwargs))
        made[-1].keeper.start()
        return made[-1]

    yield make
    for each in made:
        each.store.gate.set()
        each.store.act = lambda operations: None
        assert each.keeper.close(5.0)


def test_what_comes_while_a_group_is_applied_is_the_next_group(rig):
    """Group commit: the first goes alone, all others together, in order; outcomes come back as one action."""
    rig = rig()
    rig.store.gate.clear()
    rig.do(submit(0))
    assert rig.store.entered.wait(5)
    for number in range(1, 9):
        rig.do(submit(number))
    assert rig.keeper.on_their_way() == 9
    rig.store.gate.set()
    rig.until(lambda: len(rig.told) == 9)
    assert rig.names() == [["0"], [str(number) for number in range(1, 9)]]
    assert rig.told == [(str(number), str(number)) for number in range(9)]
    assert (rig.keeper.groups, rig.keeper.applied, rig.keeper.on_their_way()) == (2, 9, 0)


def test_ends_go_before_the_claims_of_their_group(rig):
    """Each kind stands together and keeps its order; beside anything else, all stay as they came."""
    rig = rig()

    def end(name):
        return Finish(name, "o", 1, JobState.SUCCEEDED, b"", 1)

    def queued(*operations):
        rig.store.gate.clear()
        rig.store.entered.clear()
        rig.do(submit("first"))
        assert rig.store.entered.wait(5)
        for operation in operations:
            rig.do(operation)
        rig.store.gate.set()
        rig.until(lambda: not rig.keeper.on_their_way())
        return rig.names()[-1]

    claims = [Claim("o", FLOW, 1), Claim("o", FLOW, 2)]
    assert queued(claims[0], end("a"), claims[1], end("b")) == ["a", "b", "Claim", "Claim"]
    assert rig.store.groups[-1][2:] == claims
    mixed = queued(claims[0], end("a"), submit("s"), claims[1], end("b"))
    assert mixed == ["Claim", "a", "s", "Claim", "b"]


def test_groups_are_bounded(rig):
    """By number, and by the bytes that they carry."""
    rig = rig(most=3)
    rig.store.gate.clear()
    rig.do(submit("a"))
    assert rig.store.entered.wait(5)
    for number in range(4):
        rig.do(submit(number))
    for number in range(4, 8):
        rig.do(submit(number, bytes(9 << 20)))
    rig.store.gate.set()
    rig.until(lambda: len(rig.told) == 9)
    assert rig.names() == [["a"], ["0", "1", "2"], ["3", "4", "5"], ["6", "7"]]


def test_the_outcome_never_comes_from_within(rig):
    """Not even a refusal: the queue of callers' operations is bounded by number and by bytes, others' is not."""
    rig = rig(most_waiting=2, most_bytes=100)
    rig.store.gate.clear()
    rig.do(submit(0))
    rig.do(submit(1, bytes(101)))
    rig.do(submit(2))
    rig.do(Purge(1))
    assert rig.told == []
    rig.pump()
    assert [(name, type(outcome)) for name, outcome in rig.told] == [("1", QueueFull)]
    rig.do(submit(3))
    rig.do(submit(4))
    rig.pump()
    assert [name for name, _ in rig.told] == ["1", "3", "4"]
    rig.store.gate.set()
    rig.until(lambda: len(rig.told) == 6)
    assert rig.keeper.on_their_way() == 0
    assert (rig.keeper._waiting, rig.keeper._bytes) == (0, 0)


@pytest.mark.parametrize("fault", [StoreFull("full", retry_after=1.0), RuntimeError("secret")])
def test_the_culprit_alone_gets_the_error(rig, fault):
    """A group that fails as a whole is applied one by one, in order."""
    rig = rig()
    rig.store.gate.clear()
    rig.do(Get("first", "t"))
    assert rig.store.entered.wait(5)

    def act(operations):
        if any(isinstance(operation, Submit) for operation in operations):
            raise fault

    rig.store.act = act
    for operation in (Get("a", "t"), submit("b"), Get("c", "t")):
        rig.do(operation)
    rig.store.gate.set()
    rig.until(lambda: len(rig.told) == 4)
    assert [name for name, _ in rig.told] == ["first", "a", "b", "c"]
    expected = StoreFull if isinstance(fault, StoreFull) else Internal
    assert [type(outcome) for _, outcome in rig.told] == [str, str, expected, str]
    assert rig.names() == [["first"], ["a", "b", "c"], ["a"], ["b"], ["c"]]
    assert rig.keeper.healthy


def test_what_can_be_repeated_is(rig):
    """A store that does not answer: claims fail at once, the others are done again in their order, and then told."""
    rig = rig()
    rig.store.gate.clear()
    rig.do(Get("first", "t"))
    assert rig.store.entered.wait(5)
    failures = [2]

    def act(operations):
        if failures[0] and operations[0].id != "first":
            failures[0] -= 1
            raise StoreUnavailable("gone")

    rig.store.act = act
    for operation in (submit("a"), Claim("o", FLOW, 1), Finish("b", "o", 1, 3, b"", 1), Get("c", "t")):
        rig.do(operation)
    rig.store.gate.set()
    rig.until(lambda: len(rig.told) == 5)
    kinds = {name: type(outcome) for name, outcome in rig.told}
    assert kinds["a"] is kinds["b"] is kinds["c"] is str
    assert [name for name, _ in rig.told if name in "abc"] == ["a", "b", "c"]
    rig.until(lambda: rig.keeper.healthy)


def ends(*names):
    return [Finish(name, "o", 1, 3, b"", 1) for name in names]


def test_many_operations_are_told_at_once(rig):
    """In one group if they fit, with what else waits; each has its outcome, and counts as one."""
    rig = rig(most=4)
    rig.store.gate.clear()
    rig.do(Get("first", "t"))
    assert rig.store.entered.wait(5)
    rig.keeper.do_all(ends("a", "b", "c"), lambda outcomes: rig.told.append(("abc", list(outcomes))))
    rig.do(Get("d", "t"))
    rig.keeper.do_all(ends("e", "f"), lambda outcomes: rig.told.append(("ef", list(outcomes))))
    rig.keeper.do_all(ends(*"ghijk"), lambda outcomes: rig.told.append(("more than a group", list(outcomes))))
    assert rig.keeper.on_their_way() == 12
    rig.store.gate.set()
    rig.until(lambda: len(rig.told) == 5)
    assert rig.names() == [["first"], ["a", "b", "c", "d"], ["e", "f"], list("ghijk")]
    assert rig.told == [
        ("first", "first"),
        ("abc", ["a", "b", "c"]),
        ("d", "d"),
        ("ef", ["e", "f"]),
        ("more than a group", list("ghijk")),
    ]
    assert (rig.keeper.applied, rig.keeper.on_their_way()) == (12, 0)


def test_the_culprit_among_many_alone_gets_the_error(rig):
    """They are applied one by one; the store goes away in between: what it has done is not done again."""
    rig = rig()
    faults = {"b": [StoreFull("full", retry_after=1.0)], "d": [StoreUnavailable("gone")]}

    def act(operations):
        if len(operations) > 1:
            raise StoreFull("full", retry_after=1.0)
        if operations[0].id in faults and faults[operations[0].id]:
            raise faults[operations[0].id].pop()

    rig.store.act = act
    rig.keeper.do_all(ends(*"abcde"), rig.told.append)
    rig.until(lambda: rig.told)
    (outcomes,) = rig.told
    assert [type(outcome) for outcome in outcomes] == [str, StoreFull, str, str, str]
    assert [name for names in rig.names() if len(names) == 1 for name in names if len(name) == 1] == list("abcdde")
    assert rig.keeper.on_their_way() == 0
    rig.until(lambda: rig.keeper.healthy)


def test_many_that_nobody_serves_any_more_are_failed(rig):
    """All of them, once."""
    rig = rig()
    assert rig.keeper.close(5.0)
    rig.keeper.do_all(ends("a", "b"), rig.told.append)
    rig.pump()
    assert [[type(outcome) for outcome in outcomes] for outcomes in rig.told] == [[StoreUnavailable] * 2]
    assert rig.keeper.on_their_way() == 0


def test_a_claim_fails_at_once_and_recovery_is_told(rig):
    """Nobody knows whether it happened; that the store is back is told once, by a probe if nothing else is asked."""
    rig = rig()
    rig.store.act = _raise(StoreUnavailable("gone"))
    rig.do(Claim("o", FLOW, 1))
    rig.until(lambda: rig.told)
    assert [(name, type(outcome)) for name, outcome in rig.told] == [("Claim", StoreUnavailable)]
    rig.until(lambda: not rig.keeper.healthy)
    assert rig.recovered == []
    rig.store.act = lambda operations: None
    rig.until(lambda: rig.recovered)
    assert rig.keeper.healthy
    assert len(rig.recovered) == 1


def test_unavailable_in_the_middle_of_one_by_one(rig):
    """Order is kept: what was not reached comes after what is repeated."""
    rig = rig()
    rig.store.gate.clear()
    rig.do(Get("first", "t"))
    assert rig.store.entered.wait(5)
    calls = []

    def act(operations):
        if operations[0].id == "first":
            return
        calls.append(len(operations))
        if len(operations) == 3 and len(calls) == 1:
            raise StoreFull("full", retry_after=1.0)
        if len(calls) == 3:
            raise StoreUnavailable("gone")

    rig.store.act = act
    for name in "abc":
        rig.do(Get(name, "t"))
    rig.store.gate.set()
    rig.until(lambda: len(rig.told) == 4)
    assert [name for name, _ in rig.told] == ["first", "a", "b", "c"]


def test_callers_time_out_the_servers_own_work_does_not(rig):
    """At its instant, once; what was not begun is not done any more; a late outcome is dropped."""
    rig = rig(timeout=0.05)
    rig.store.gate.clear()
    rig.do(Get("slow", "t"))
    assert rig.store.entered.wait(5)
    rig.do(Get("queued", "t"))
    rig.do(Finish("end", "o", 1, 3, b"", 1))
    due = rig.keeper.due
    assert rig.keeper.tick(due - 0.001) == due
    assert rig.told == []
    assert rig.keeper.tick(due + 1.0) == float("inf")
    assert [(name, type(outcome)) for name, outcome in rig.told] == [
        ("slow", StoreUnavailable),
        ("queued", StoreUnavailable),
    ]
    assert not rig.keeper.healthy
    rig.store.gate.set()
    rig.until(lambda: len(rig.told) == 3 and rig.keeper.healthy)
    assert rig.told[2] == ("end", "end")
    assert rig.names() == [["slow"], ["end"]]


def test_others_may_ask(rig):
    """From another thread, by way of the same groups; what went wrong is raised there."""
    rig = rig()
    assert rig.keeper.ask(Get("x", "t"), 5.0) == "x"
    rig.store.act = _raise(RuntimeError("secret"))
    with pytest.raises(Internal):
        rig.keeper.ask(Get("x", "t"), 5.0)
    rig.store.gate.clear()
    with pytest.raises(StoreUnavailable):
        rig.keeper.ask(Get("x", "t"), 0.02)


def test_changes_of_others_are_told_by_the_dispatcher(rig):
    """From any thread they come as posted actions."""
    rig = rig()
    rig.store.changed(["a"])
    assert rig.changed == []
    rig.pump()
    assert rig.changed == [["a"]]


def test_one_callback_that_raises_costs_the_others_nothing(rig):
    """It is logged."""
    rig = rig()
    rig.store.gate.clear()
    rig.do(Get("first", "t"))
    assert rig.store.entered.wait(5)
    rig.keeper.do(Get("bad", "t"), lambda outcome: 1 / 0)
    rig.do(Get("good", "t"))
    rig.store.gate.set()
    rig.until(lambda: len(rig.told) == 2)
    assert rig.keeper.on_their_way() == 0


def test_close_serves_what_is_queued_and_fails_what_comes_later(rig):
    """One thread alone has touched the store."""
    rig = rig()
    rig.store.gate.clear()
    for number in range(5):
        rig.do(submit(number))
    rig.store.gate.set()
    assert rig.keeper.close(5.0)
    rig.pump()
    assert [outcome for _, outcome in rig.told] == [str(number) for number in range(5)]
    rig.do(Backlog())
    rig.pump()
    assert isinstance(rig.told[-1][1], StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        rig.keeper.ask(Backlog(), 5.0)
    assert rig.store.closed
    assert rig.store.threads == {rig.keeper._thread.thread}


def test_close_does_not_wait_for_a_store_that_is_away(rig):
    """After its patience the rest is failed."""
    rig = rig()
    rig.store.act = _raise(StoreUnavailable("gone"))
    rig.do(Finish("end", "o", 1, 3, b"", 1))
    began = time.monotonic()
    assert rig.keeper.close(0.1)
    assert time.monotonic() - began < 3.0
    rig.pump()
    assert [type(outcome) for _, outcome in rig.told] == [StoreUnavailable]


def test_a_store_that_does_not_open_is_the_starters(rig):
    """With the store's own sentence."""
    made = Rig()
    made.store.open_fault = ConfigError("it is corrupt")
    with pytest.raises(ConfigError, match="corrupt"):
        made.keeper.start()
    assert made.keeper.close(1.0)


def _raise(fault):
    def act(operations):
        raise fault

    return act


def test_outcomes_are_told_over_several_turns(rig):
    """As many as a turn allows, at least one, in their order; nothing else is due until all are told."""
    times = itertools.count()
    rig = rig(clock=lambda: next(times) * 2 * TURN_SECONDS)
    rig.store.gate.clear()
    rig.do(Get("first", "t"))
    assert rig.store.entered.wait(5)
    for name in "abc":
        rig.do(Get(name, "t"))
    rig.store.gate.set()
    while len(rig.posted) < 2:  # the group of the first, and that of the others
        rig.woken.wait(0.01)
    while rig.posted:
        rig.posted.popleft()()
    assert [name for name, _ in rig.told] == ["first", "a"]
    assert rig.keeper.due == 0.0
    assert rig.keeper.tick(0.0) == 0.0
    assert [name for name, _ in rig.told] == ["first", "a", "b"]
    assert rig.keeper.tick(0.0) == float("inf")
    assert [name for name, _ in rig.told] == ["first", "a", "b", "c"]
