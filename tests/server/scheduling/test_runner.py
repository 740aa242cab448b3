"""The runner with real threads: what runs where, who is told, and that nothing is ever lost. No sleeps: events only."""

import os
import sys
import threading
import time

import pytest

from forebay_server.background import STEPS
from forebay_server.engines.base import EngineBatch, EngineDead, OutOfMemory, RejectInput
from forebay_server.errors import EngineUnavailable, InputRejected, Internal
from forebay_server.scheduling.core import Core
from forebay_server.scheduling.latency import CostModel
from forebay_server.scheduling.policy import ModelPolicy
from forebay_server.scheduling.request import Level, Request
from forebay_server.scheduling.runner import LONGEST_WAIT, Runner

KEY = ("m", 1)
BUCKET = ((1,),)


class Call(Request):
    """A request whose inputs are numbers, one per row, and whose result are their doubles."""

    __slots__ = ("batch", "clumsy", "done", "error", "result")

    def __init__(self, lane, values, deadline, arrival, *, clumsy=False, level=Level.ONLINE):
        super().__init__(lane, len(values), 8 * len(values), deadline, values, arrival=arrival, level=level)
        self.done = threading.Event()
        self.result = self.error = self.batch = None
        self.clumsy = clumsy

    def succeed(self, outputs, start, batch):
        if self.clumsy:
            raise RuntimeError("a fault in a callback")
        assert not self.done.is_set()
        self.result, self.batch = outputs[start : start + self.rows], batch
        self.done.set()

    def fail(self, error):
        assert not self.done.is_set()
        self.error = error
        self.done.set()


class Collate:
    """Lists instead of arrays."""

    def collate(self, parts, bucket, padded_rows, instance, parameters):
        rows = [value for part in parts for value in part.request.inputs[part.start : part.start + part.rows]]
        return EngineBatch(rows + [0] * (padded_rows - len(rows)), len(rows), parameters)

    def outputs(self, arrays, rows):
        return arrays[:rows]

    def join(self, pieces):
        return [value for outputs, start, rows in pieces for value in outputs[start : start + rows]]


class Doubler:
    """An instance that doubles, and does as it is told on certain values."""

    def __init__(self):
        self.closed = threading.Event()
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.threads = set()
        self.nice = set()
        self.memory = 1000

    def infer(self, batch):
        self.threads.add(threading.current_thread().name)
        self.nice.add(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        self.entered.set()
        assert self.gate.wait(30)
        if len(batch.inputs) > self.memory:
            raise OutOfMemory
        for index, value in enumerate(batch.inputs):
            if value == "raise":
                raise ValueError("secret")
            if value == "reject":
                raise RejectInput("too odd", [index])
            if value == "dead":
                raise EngineDead
            if value == "exit":
                raise SystemExit(3)
        return [2 * value for value in batch.inputs]

    def stage(self, shapes):
        return None

    def close(self):
        self.closed.set()


class Relay(Doubler):
    """One that has a batch on its way while another is computed."""

    depth = 2
    device = "cuda:0"

    def __init__(self):
        super().__init__()
        self.issued = []
        self.both = threading.Event()

    def issue(self, batch):
        self.threads.add(threading.current_thread().name)
        if "refuse" in batch.inputs:
            raise ValueError("secret")
        if "leave" in batch.inputs:
            raise SystemExit(3)
        self.issued.append(batch.inputs)
        if len(self.issued) == 2:
            self.both.set()
        return batch.inputs

    def collect(self, ticket):
        if "lost" in ticket:
            raise EngineDead("no more", self.device)
        return self.infer(EngineBatch(ticket, len(ticket)))


class Host:
    """A dispatcher: turns until something is the case."""

    def __init__(self, *, inline=False, instances=1, for_jobs=0, clock=time.monotonic, kind=Doubler, **policy):
        self.woken = threading.Event()
        self.clock = clock
        self.core = Core()
        self.runner = Runner(self.core, wake=self.woken.set, clock=clock)
        self.doublers = [kind() for _ in range(instances + for_jobs)]
        self.health = []
        self.lost = []
        self.runner.listen(lambda *change: self.health.append(change))
        self.runner.listen_for_devices(self.lost.append)
        costs = CostModel([(BUCKET, rows, 1e-5) for rows in (1, 4)])
        policy = ModelPolicy(**({"max_batch_size": 4, "best_batch_size": 4} | policy))
        some, others = self.doublers[:instances], self.doublers[instances:]
        self.numbers = self.runner.add(KEY, policy, costs, some, Collate(), inline, clock(), others)

    def call(self, *values, patience=60.0, clumsy=False, level=Level.ONLINE):
        now = self.clock()
        call = Call(self.core.lane(KEY, BUCKET), values, now + patience, now, clumsy=clumsy, level=level)
        assert self.runner.admit(call, now) is None
        return call

    def until(self, condition):
        for _ in range(1000):
            wait = self.runner.turn(self.clock())
            if condition():
                return
            self.woken.wait(min(wait, 5.0))
            self.woken.clear()
        pytest.fail("it never came to pass")


@pytest.fixture
def host():
    """Makes hosts and ends their threads."""
    hosts = []

    def make(**kwargs):
        hosts.append(Host(**kwargs))
        return hosts[-1]

    yield make
    for one in hosts:
        for doubler in one.doublers:
            doubler.gate.set()
        assert one.runner.close()
        assert all(doubler.closed.is_set() for doubler in one.doublers)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priorities of their own")
def test_an_instance_for_jobs_gives_way(host):
    """Its thread runs jobs alone, and after the others."""
    h = host(for_jobs=1)
    call = h.call(1)
    job = h.call(2, level=Level.JOB)
    h.until(lambda: call.result and job.result)
    requests, jobs = (doubler.nice for doubler in h.doublers)
    assert jobs == {min(19, value + STEPS) for value in requests}


@pytest.mark.parametrize("inline", [True, False])
def test_each_gets_its_own_result(host, inline):
    """Results go back to those who asked, in the right thread, with the batch's times in order."""
    h = host(inline=inline)
    calls = [h.call(value, value + 100) for value in range(7)]
    h.until(lambda: all(call.done.is_set() for call in calls))
    assert [call.result for call in calls] == [[2 * value, 2 * value + 200] for value in range(7)]
    batch = calls[0].batch
    assert batch.dispatched <= batch.collated <= batch.finished <= batch.completed
    assert h.doublers[0].threads == {"MainThread" if inline else "instance-0"}
    assert h.runner.idle()


def test_inline_runs_one_batch_a_turn(host):
    """Arrivals are taken between batches: 0 means that more is waiting."""
    h = host(inline=True)
    calls = [h.call(value) for value in range(9)]
    assert h.runner.turn(h.clock()) == 0.0
    assert [call.done.is_set() for call in calls] == [True] * 4 + [False] * 5
    assert h.runner.turn(h.clock()) == 0.0
    assert h.runner.turn(h.clock()) == pytest.approx(LONGEST_WAIT, abs=0.1)
    assert all(call.done.is_set() for call in calls)


def test_turn_says_how_long_nothing_is_to_be_done(host):
    """Until the next deadline or the end of a delay, at most a second."""
    times = [100.0]
    h = host(inline=True, clock=lambda: times[0], max_delay=0.25)
    assert h.runner.turn(100.0) == LONGEST_WAIT
    call = h.call(1)
    assert h.runner.turn(100.0) == 0.25
    times[0] = 100.25
    h.runner.turn(100.25)
    assert call.result == [2]


@pytest.mark.parametrize("inline", [True, False])
def test_only_the_culprit_fails(host, inline):
    """An exception of the model becomes an internal error for the culprit; its text stays here."""
    h = host(inline=inline)
    calls = [h.call(value) for value in (1, "raise", 3, 4)]
    h.until(lambda: all(call.done.is_set() for call in calls))
    assert [call.result for call in calls] == [[2], None, [6], [8]]
    assert isinstance(calls[1].error, Internal)
    assert "secret" not in str(calls[1].error)


def test_a_refused_input_gets_the_models_words(host):
    """And its neighbours their results."""
    h = host(inline=True)
    calls = [h.call(value) for value in (1, "reject", 3)]
    h.until(lambda: all(call.done.is_set() for call in calls))
    assert [call.result for call in calls] == [[2], None, [6]]
    assert isinstance(calls[1].error, InputRejected)
    assert str(calls[1].error) == "too odd"


def test_oversized_requests_are_joined(host):
    """Eleven rows through batches of four, and then of two for want of memory."""
    h = host(inline=False)
    h.doublers[0].memory = 2
    call = h.call(*range(11))
    h.until(call.done.is_set)
    assert call.result == [2 * value for value in range(11)]


def test_a_dead_engine_fails_what_it_ran_and_the_others_go_on(host):
    """Health is told; the second instance serves."""
    h = host(inline=False, instances=2)
    call = h.call("dead")
    h.until(call.done.is_set)
    assert call.error.reason == "ENGINE_RESTARTED"
    assert h.health == [(KEY, 1, 2)]
    assert h.runner.stuck() == [KEY]
    after = h.call(5)
    h.until(after.done.is_set)
    assert after.result == [10]


def test_a_worker_that_ends_is_not_lost_silently(host):
    """SystemExit from a model ends the thread: the batch fails, what waits fails, the model takes no more."""
    h = host(inline=False)
    first = h.call("exit")
    h.runner.turn(h.clock())
    second = h.call(1)
    h.until(lambda: first.done.is_set() and second.done.is_set() and h.doublers[0].closed.is_set())
    assert isinstance(first.error, EngineUnavailable)
    assert isinstance(second.error, EngineUnavailable)
    now = h.clock()
    refused = h.runner.admit(Call(h.core.lane(KEY, BUCKET), [1], now + 9, now), now)
    assert isinstance(refused, EngineUnavailable)
    assert h.health == [(KEY, 0, 1)]


def test_a_stuck_worker_turns_health_and_back(host):
    """At its limit its requests fail once; when the batch comes back after all, the instance serves again."""
    times = [0.0]
    h = host(inline=False, clock=lambda: times[0], max_execution=2.0)
    doubler = h.doublers[0]
    doubler.gate.clear()
    hung = h.call(1)
    h.runner.turn(0.0)
    assert doubler.entered.wait(30)
    times[0] = 2.0
    h.runner.turn(2.0)
    assert isinstance(hung.error, EngineUnavailable)
    assert h.health == [(KEY, 0, 1)]
    doubler.gate.set()
    h.until(lambda: h.runner.stuck() == [])
    assert h.health == [(KEY, 0, 1), (KEY, 1, 1)]
    after = h.call(4)
    h.until(after.done.is_set)
    assert after.result == [8]


def test_waiting_requests_expire_while_the_engine_is_busy(host):
    """The dispatcher does not wait for the worker; cancelling afterwards does no harm."""
    times = [0.0]
    h = host(inline=False, clock=lambda: times[0])
    h.doublers[0].gate.clear()
    running = [h.call(value) for value in range(4)]
    h.runner.turn(0.0)
    waiting = h.call(9, patience=0.5)
    assert h.runner.turn(0.0) == 0.5
    times[0] = 0.5
    h.runner.turn(0.5)
    assert waiting.error.reason == "DEADLINE_EXPIRED"
    assert h.runner.cancel(waiting, 0.5) is False
    h.doublers[0].gate.set()
    h.until(lambda: all(call.done.is_set() for call in running))


def test_a_callback_that_raises_costs_nobody_else_anything(host):
    """It gets an internal error, its neighbours their results."""
    h = host(inline=True)
    calls = [h.call(1), h.call(2, clumsy=True), h.call(3)]
    h.until(lambda: all(call.done.is_set() for call in calls))
    assert [call.result for call in calls] == [[2], None, [6]]
    assert isinstance(calls[1].error, Internal)


@pytest.mark.parametrize("inline", [True, False])
def test_a_removed_model_closes_its_instances_and_says_so(host, inline):
    """What waits fails, what runs is finished, then `closed` is called, in the dispatcher."""
    h = host(inline=inline)
    h.doublers[0].gate.set()
    closed = []
    waiting = h.call(1)
    h.runner.remove(KEY, h.clock(), lambda: closed.append(threading.current_thread().name))
    assert isinstance(waiting.error, EngineUnavailable)
    h.until(lambda: closed)
    assert closed == ["MainThread"]
    assert h.doublers[0].closed.is_set()
    assert h.runner.idle()


def test_drain_finishes_what_was_accepted(host):
    """Nothing new, no delay; idle at the end."""
    h = host(inline=False, max_delay=30.0)
    calls = [h.call(value) for value in range(6)]
    h.runner.drain(h.clock())
    now = h.clock()
    assert h.runner.admit(Call(h.core.lane(KEY, BUCKET), [1], now + 9, now), now).reason == "DRAINING"
    h.until(h.runner.idle)
    assert all(call.result for call in calls[1:])


def test_the_watchdog_is_told_what_an_inline_batch_may_take(host):
    """Nothing for workers; for inline instances the model's own limit, once it has a lane."""
    assert host(inline=False).runner.longest_batch() == 0.0
    h = host(inline=True, max_execution=7.0)
    h.call(1)
    assert h.runner.longest_batch() == 7.0


# --- Instances that have a second batch on its way


def in_flight(h, first, second):
    """Two calls of four rows, each a batch, of which the first is being computed and the second issued."""
    relay = h.doublers[0]
    relay.gate.clear()
    calls = [h.call(*first), h.call(*second)]
    h.runner.turn(h.clock())
    assert relay.entered.wait(30)
    return calls


def test_a_second_batch_is_issued_while_the_first_runs(host):
    """By a thread of its own; a third waits for the first to come back, and results come in order."""
    h = host(kind=Relay)
    calls = in_flight(h, range(4), range(4, 8))
    relay = h.doublers[0]
    assert relay.both.wait(30)
    third = h.call(*range(8, 12))
    h.runner.turn(h.clock())
    assert h.core.figures(KEY).running_batches == 2
    relay.gate.set()
    h.until(third.done.is_set)

    assert [call.result for call in (*calls, third)] == [[2 * (4 * n + i) for i in range(4)] for n in range(3)]
    assert calls[0].batch.finished <= calls[1].batch.finished <= third.batch.finished
    assert relay.threads == {"instance-0-issue", "instance-0"}
    assert h.runner.idle()


def test_a_batch_that_can_not_be_issued_comes_back_after_the_one_before(host):
    """And is cut up; only the culprit fails."""
    h = host(kind=Relay)
    relay = h.doublers[0]
    relay.gate.clear()
    first = h.call(*range(4))
    calls = [h.call(value) for value in (1, "refuse", 3, 4)]
    h.runner.turn(h.clock())
    assert relay.entered.wait(30)
    relay.gate.set()
    h.until(lambda: first.done.is_set() and all(call.done.is_set() for call in calls))

    assert first.result == [0, 2, 4, 6]
    assert [call.result for call in calls] == [[2], None, [6], [8]]
    assert isinstance(calls[1].error, Internal)


def test_what_is_in_flight_at_the_end_of_a_collecting_thread_fails(host):
    """Nothing is lost silently: the batch behind and what waits fail, the instance is closed."""
    h = host(kind=Relay)
    calls = in_flight(h, ("exit", 1, 2, 3), range(4))
    assert h.doublers[0].both.wait(30)
    waiting = h.call(1)
    h.doublers[0].gate.set()
    h.until(lambda: all(call.done.is_set() for call in (*calls, waiting)) and h.doublers[0].closed.is_set())
    h.until(h.runner.idle)

    assert {type(call.error) for call in (*calls, waiting)} == {EngineUnavailable}
    assert h.health == [(KEY, 0, 1)]
    assert h.core.held_bytes == 0


def test_what_was_issued_before_the_end_of_an_issuing_thread_is_collected(host):
    """The batch that it ended in fails, the one before it does not."""
    h = host(kind=Relay)
    calls = in_flight(h, range(4), ("leave", 1, 2, 3))
    h.doublers[0].gate.set()
    h.until(lambda: all(call.done.is_set() for call in calls) and h.doublers[0].closed.is_set())
    h.until(h.runner.idle)

    assert calls[0].result == [0, 2, 4, 6]
    assert isinstance(calls[1].error, EngineUnavailable)
    assert h.core.held_bytes == 0


def test_a_removed_model_finishes_both_batches(host):
    """Then its instance is closed."""
    h = host(kind=Relay)
    calls = in_flight(h, range(4), range(4, 8))
    closed = []
    h.runner.remove(KEY, h.clock(), lambda: closed.append(True))
    h.runner.turn(h.clock())
    assert not closed
    h.doublers[0].gate.set()
    h.until(lambda: closed)

    assert [call.result for call in calls] == [[0, 2, 4, 6], [8, 10, 12, 14]]


def test_a_lost_device_is_told(host):
    """After the health of what ran on it."""
    h = host(kind=Relay, instances=2)
    call = h.call("lost")
    h.until(call.done.is_set)

    assert isinstance(call.error, EngineUnavailable)
    assert h.health == [(KEY, 1, 2), (KEY, 0, 2)]
    assert h.lost == ["cuda:0"]


def test_a_stuck_first_batch_fails_the_one_behind(host):
    """When it returns after all, both are run for nobody, and the instance serves again."""
    times = [0.0]
    h = host(kind=Relay, clock=lambda: times[0], max_execution=2.0)
    calls = in_flight(h, range(4), range(4, 8))
    times[0] = 2.0
    h.runner.turn(2.0)
    assert {type(call.error) for call in calls} == {EngineUnavailable}
    h.doublers[0].gate.set()
    h.until(lambda: h.runner.stuck() == [])
    after = h.call(4)
    h.until(after.done.is_set)

    assert after.result == [8]
