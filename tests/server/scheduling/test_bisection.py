"""Batches that fail: the culprit alone gets the error."""

from math import ceil, inf, log2

import pytest

from forebay_server.errors import EngineRestarted, EngineUnavailable, InputRejected, Internal
from forebay_server.scheduling.outcomes import Died, Faulted, NoMemory, Rejected
from forebay_server.scheduling.request import State


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 32])
@pytest.mark.parametrize("culprits", [1, 2, 3])
def test_only_the_culprits_fail_within_the_bound(world, size, culprits):
    """At most 2 k ceil(log2 n) further runs, and every neighbour succeeds."""
    w = world(max_batch_size=32, best_batch_size=32)
    requests = [w.admit() for _ in range(size)]
    poison = requests[:: max(1, size // culprits)][:culprits]
    error = Internal("abc")
    ran = w.run(poison=poison, fault=error)
    assert [request.error for request in requests] == [error if one in poison else None for one in requests]
    assert all(request.outputs is not None for request in requests if request not in poison)
    assert len(ran) - 1 <= 2 * len(poison) * ceil(log2(size)) if size > 1 else len(ran) == 1
    assert w.core.held_bytes == 0
    assert w.core.idle()


def test_named_rows_fail_and_the_others_run_again_together(world):
    """Rows 1 and 4 belong to the first and the third request."""
    w = world()
    requests = [w.admit(rows=2) for _ in range(4)]
    w.finish(w.take(), 0.018, Rejected("too dark", [1, 4]))
    assert [request.error is not None for request in requests] == [True, False, True, False]
    assert isinstance(requests[0].error, InputRejected)
    assert requests[0].error.message == "too dark"
    assert w.run() == [[requests[1], requests[3]]]


@pytest.mark.parametrize("rows", [None, [], [8], [-1, 0]])
def test_rows_that_make_no_sense_are_searched(world, rows):
    """The engine can't tell, or tells nonsense: the batch is cut up."""
    w = world()
    requests = [w.admit() for _ in range(2)]
    w.finish(w.take(), 0.018, Rejected("no", rows))
    w.finish(w.take(), 0.018, Rejected("no", rows))
    assert isinstance(requests[0].error, InputRejected)
    w.finish(w.take(), 0.018)
    assert requests[1].outputs == 0


def test_cancelled_and_expired_ones_do_not_run_again(world):
    """Between the runs of a search requests may end."""
    w = world()
    gone, late, stays = w.admit(), w.admit(deadline=0.5), w.admit()
    batch = w.take()
    w.core.cancel(gone, 0.1)
    w.finish(batch, 0.6, Faulted(Internal()))
    assert late.state is State.EXPIRED
    assert w.run(0.6) == [[stays]]
    assert w.core.held_bytes == 0


def test_the_search_is_charged_to_the_culprit(world):
    """A tenant that poisons batches pays for the further runs with its share."""
    w = world()
    poison = [w.admit(tenant="bad") for _ in range(1)]
    for _ in range(40):
        w.admit(tenant="bad")
        w.admit(tenant="good")
    for _ in range(7):  # the batch, and its halves down to the culprit
        batch = w.take()
        bad = any(part.request in poison for part in batch.parts)
        w.finish(batch, 0.0, Faulted(Internal()) if bad else None)
    served = [part.request.tenant for part in w.take().parts]
    assert served == ["good"] * 8


def test_a_tenant_that_poisons_often_is_kept_apart(world):
    """After a few culprits within a minute its requests share no batch with others', for a minute."""
    w = world()
    for index in range(4):
        request = w.admit(tenant="bad", now=float(index))
        w.run(float(index), poison=[request], fault=Internal())
    for _ in range(3):
        w.admit(tenant="bad", now=4.0)
        w.admit(tenant="good", now=4.0)
    ran = [{request.tenant for request in batch} for batch in w.run(4.0)]
    assert all(len(tenants) == 1 for tenants in ran)
    assert len(ran) <= 3
    now = 64.0
    w.admit(tenant="bad", now=now)
    w.admit(tenant="good", now=now)
    assert len(w.take(now).parts) == 2


def test_out_of_memory_halves_the_cap_and_runs_the_halves(world):
    """8 rows do not fit, 4 do: nobody fails, and the cap comes back by a row per hundred good batches."""
    w = world()
    requests = [w.admit(rows=rows) for rows in (1, 6, 1)]
    w.finish(w.take(), 0.018, NoMemory())
    sizes = []
    while (batch := w.take()) is not None:
        sizes.append([(part.start, part.rows) for part in batch.parts])
        w.finish(batch, 0.018)
    assert sizes == [[(0, 1), (0, 3)], [(3, 3), (0, 1)]]
    assert requests[1].outputs == [(0, 3), (3, 3)]
    assert w.core.held_bytes == 0
    assert w.lane().cap == 4
    for _ in range(98):
        w.admit()
        w.run()
    assert w.lane().cap == 5


def test_a_row_that_does_not_fit_alone_fails(world):
    """A single row without memory: the engine is unavailable to it."""
    w = world()
    request = w.admit()
    w.finish(w.take(), 0.018, NoMemory())
    assert isinstance(request.error, EngineUnavailable)
    assert w.core.idle()


def test_a_dead_instance_fails_what_it_ran_and_no_more_if_another_lives(world):
    """The caller may retry here; what waits runs on the other instance."""
    w = world(instances=2)
    ran = w.admit(rows=8)
    waits = w.admit()
    w.finish(w.take(), 0.018, Died())
    assert isinstance(ran.error, EngineRestarted)
    assert w.core.health == [(("m", 1), 1, 2)]
    assert w.take() is None
    batch = w.take(instance=w.instances[1])
    assert w.finish(batch, 0.020) == [waits]


def test_the_last_dead_instance_fails_everything(world):
    """Nothing waits for an engine that will not come; new requests are refused."""
    w = world()
    requests = [w.admit(rows=8), w.admit(), w.admit(tenant="b"), w.admit(rows=20)]
    w.finish(w.take(), 0.018, Died())
    assert all(isinstance(request.error, EngineUnavailable) for request in requests)
    assert isinstance(w.refuse(), EngineUnavailable)
    assert (w.core.idle(), w.core.held_bytes) == (True, 0)


def test_a_stuck_batch_fails_once_and_the_instance_may_come_back(world):
    """At its limit the instance counts as stuck; when the batch returns after all, it serves again."""
    w = world(max_execution=2.0, instances=2)
    requests = [w.admit(rows=8), w.admit(rows=8)]
    batch = w.take(0.0)
    w.core.tick(1.5)
    assert w.core.next_wakeup() == 2.0
    w.core.tick(1.999)
    assert w.settle() == []
    w.core.tick(2.0)
    assert w.settle() == [requests[0]]
    assert isinstance(requests[0].error, EngineUnavailable)
    assert w.core.health == [(("m", 1), 1, 2)]
    assert w.take(2.0) is None
    assert w.finish(batch, 9.0) == []
    assert w.core.health == [(("m", 1), 1, 2), (("m", 1), 2, 2)]
    assert w.finish(w.take(9.0), 9.1) == [requests[1]]
    assert w.core.held_bytes == 0


def test_with_all_instances_stuck_nothing_waits(world):
    """Callers are told to go elsewhere, and are taken again once the batch is back."""
    w = world(max_execution=2.0)
    w.admit(rows=8)
    batch = w.take(0.0)
    waits = w.admit()
    w.core.tick(2.0)
    w.settle()
    assert isinstance(waits.error, EngineUnavailable)
    assert isinstance(w.refuse(now=2.0), EngineUnavailable)
    w.finish(batch, 3.0, Faulted(Internal()))
    w.admit(now=3.0)
    assert w.core.held_bytes == 10


def test_inline_instances_are_not_watched_here(world):
    """Nobody is there to notice: the wire's watchdog does."""
    w = world(inline=True, max_execution=2.0)
    w.admit()
    w.take(0.0)
    w.core.tick(1.0)  # The alarm of its queue.
    assert w.core.next_wakeup() == inf


def test_a_part_that_fails_fails_its_request(world):
    """Its other rows no longer wait, and the part on the other instance is ignored."""
    w = world(instances=2)
    big = w.admit(rows=30)
    first, second = w.take(), w.take(instance=w.instances[1])
    w.finish(first, 0.018, Faulted(Internal()))
    assert isinstance(big.error, Internal)
    assert (w.figures().queued_rows, w.core.held_bytes) == (0, 10)
    assert w.finish(second, 0.018) == []
    assert w.core.held_bytes == 0
    assert w.core.idle()
