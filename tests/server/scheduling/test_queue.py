"""Queues of one flow: order, marks, rebuilding."""

import random
from math import inf

from forebay_server.scheduling.request import State


def test_many_marks_are_rebuilt_and_the_order_stays(world):
    """Cancelling most of a long queue leaves a short one, still in order of deadline."""
    w = world(max_batch_size=1, best_batch_size=1, base=0.0, row=1e-6)
    rng = random.Random(7)
    requests = [w.admit(deadline=0.1 + 0.8 * rng.random()) for _ in range(1000)]
    queue = requests[0].queue
    kept = set(rng.sample(range(1000), 50))
    for index, request in enumerate(requests):
        if index not in kept:
            w.core.cancel(request, 0.0)
    assert len(queue.line) + len(queue.early) < 150
    assert (queue.rows, w.figures().queued_rows) == (50, 50)
    ran = [batch[0] for batch in w.run()]
    assert ran == sorted((requests[index] for index in kept), key=lambda request: request.deadline)
    assert not queue.line
    assert not queue.early
    assert queue.marks == 0


def test_the_newest_is_the_last_in_the_line_that_still_waits(world):
    """Marks at the tail are skipped; without a line the heap is asked."""
    w = world()
    first, second, early = w.admit(deadline=0.6), w.admit(deadline=20.0), w.admit(deadline=0.5)
    queue = first.queue
    w.core.cancel(second, 0.0)
    assert queue.newest() is first
    w.core.cancel(first, 0.0)
    assert queue.newest() is early
    w.core.cancel(early, 0.0)
    assert queue.newest() is None


def test_alarms_do_not_pile_up(world):
    """Ever earlier deadlines set an alarm each; those that were replaced are dropped."""
    w = world(base=0.0, row=1e-9)
    requests = [w.admit(deadline=(10_000 - index) / 10_001) for index in range(5000)]
    assert len(w.core._books.alarms) < 600
    w.core.tick(5_001 / 10_001)
    assert w.settle() == requests[-1:]
    assert w.core.next_wakeup() == 5_002 / 10_001


def test_those_that_wait_beyond_the_horizon_are_watched_and_then_forgotten(world):
    """One alarm at the first `due`; none is kept much longer than it waits, however far its deadline is."""
    w = world(base=0.0, row=1e-6)
    requests = [w.admit(now=0.001 * index, deadline=3600.0 - index) for index in range(100)]
    requests += [w.admit(now=0.1, deadline=1.1001)]
    queue = requests[0].queue
    assert len(w.core._books.alarms) == 1
    assert w.core.next_wakeup() == 1.0
    w.core.tick(1.05)
    assert [entry[2] for entry in sorted(queue.watch)] == requests[50::-1]
    w.core.tick(1.1)
    assert (len(queue.watch), w.core.next_wakeup()) == (101, 1.1001)
    for request in requests[:90]:
        w.core.cancel(request, 1.1)
    w.core.tick(1.1001)
    assert w.settle() == requests[-1:]
    assert [entry[2] for entry in sorted(queue.watch)] == requests[99:89:-1]
    assert len(w.run(1.1001)) == 2
    w.core.tick(2.2)
    assert queue.watch == []
    assert w.core.next_wakeup() == inf


def test_a_request_goes_through_its_life_step_by_step(world):
    """NEW, WAITING, RUNNING, SUCCEEDED (the table forbids anything else; the probe checks each step)."""
    w = world()
    request = w.request()
    states = [request.state]
    w.core.admit(request, 0.0)
    states.append(request.state)
    batch = w.take()
    states.append(request.state)
    w.finish(batch, 0.011)
    states.append(request.state)
    assert states == [State.NEW, State.WAITING, State.RUNNING, State.SUCCEEDED]
    assert w.core.cancel(request, 1.0) is False
