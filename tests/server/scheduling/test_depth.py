"""Instances that may have a second batch on its way while the first runs: when it is formed, and what it changes.

The model takes 10 ms and 1 ms per row, 18 ms for a full batch of 8.
"""

import pytest

from forebay_server.errors import DeadlineUnreachable, EngineRestarted, EngineUnavailable, Internal
from forebay_server.scheduling.events import BATCH
from forebay_server.scheduling.latency import CostModel
from forebay_server.scheduling.outcomes import Died, Faulted, NoMemory, Succeeded
from forebay_server.scheduling.policy import ModelPolicy
from forebay_server.scheduling.request import Reason, State
from tests.server.scheduling.conftest import BUCKET, KEY, OTHER_BUCKET


def admitted(w, count, **fields):
    """So many requests of one row."""
    return [w.admit(**fields) for _ in range(count)]


# --- When


def test_a_full_batch_goes_behind_at_once(world):
    """It can't grow. A third has no room until the first is done."""
    w = world(depth=2)
    admitted(w, 24)
    first, second = w.take(0.0), w.take(0.001)
    assert (first.rows, second.rows, second.reason) == (8, 8, Reason.FULL)
    assert w.take(0.002) is None
    w.finish(first, 0.018)

    assert w.take(0.018).rows == 8


def test_a_batch_that_is_not_full_goes_behind_late(world):
    """When a quarter of the first one's 18 ms is left, with all that has come by then; and not without need."""
    w = world(depth=2)
    admitted(w, 8)
    w.take(0.0)
    assert w.take(0.0) is None
    assert w.core.next_wakeup() == 1.0  # nothing waits; this is the alarm for those that run
    admitted(w, 2)
    assert w.take(0.0) is None
    assert w.core.next_wakeup() == pytest.approx(0.0135)
    assert w.take(0.0134) is None
    w.admit(now=0.0134)
    at = w.core.next_wakeup()
    batch = w.take(at)

    assert (batch.rows, batch.reason, batch.dispatched) == (3, Reason.IDLE, at)
    assert w.core.next_wakeup() == 1.0


def test_the_first_that_is_done_early_lets_the_next_begin(world):
    """Whatever was predicted."""
    w = world(depth=2)
    admitted(w, 8)
    first = w.take(0.0)
    w.admit()
    assert w.take(0.001) is None
    w.finish(first, 0.002)

    assert w.take(0.002).rows == 1


def test_without_costs_a_batch_goes_behind_at_once(world):
    """Nobody knows when the first will be done."""
    w = world(depth=2)
    w.admit(bucket=OTHER_BUCKET)
    assert w.take(0.0).predicted is None
    w.admit()

    assert w.take(0.0).rows == 1


def test_depth_one_waits_for_the_first(world):
    """As ever."""
    w = world(depth=1)
    admitted(w, 16)
    first = w.take(0.0)
    assert w.take(0.017) is None
    w.finish(first, 0.018)

    assert w.take(0.018).rows == 8


def test_a_deeper_one_is_reckoned_from_the_last(world):
    """Of three, the third that is not full is formed near the end of the second, at 36 ms."""
    w = world(depth=3)
    admitted(w, 17)
    assert [w.take(0.0).rows, w.take(0.0).rows] == [8, 8]
    assert w.take(0.0) is None

    assert w.core.next_wakeup() == pytest.approx(0.0315)


def test_a_delay_holds_behind_another_too(world):
    """The policy's delay counts from the request's arrival; it does not wait for the delay and the batch in turn."""
    w = world(depth=2, max_delay=0.015)
    admitted(w, 8)
    w.take(0.0)
    w.admit(now=0.001)
    assert w.take(0.0136) is None
    assert w.core.next_wakeup() == pytest.approx(0.016)

    assert w.take(0.016).reason is Reason.DELAY


# --- What is predicted


def test_admission_counts_all_that_the_instance_has(world):
    """Two full batches are 36 ms; what the first took too long is added."""
    w = world(depth=2)
    admitted(w, 16)
    first, second = w.take(0.0), w.take(0.0)
    assert isinstance(w.refuse(deadline=0.050), DeadlineUnreachable)
    w.admit(deadline=0.060)
    w.finish(first, 0.030)
    assert isinstance(w.refuse(deadline=0.060, now=0.030), DeadlineUnreachable)

    assert w.core._books.slots[second.instance].until == pytest.approx(0.048)


def test_a_deadline_counts_from_when_the_batch_can_begin(world):
    """Behind a batch until 18 ms, of nine rows only seven go with one that is due at 40 ms: 18 + 1.25 x 17 ms."""
    w = world(depth=2)
    admitted(w, 8)
    w.take(0.0)
    urgent = w.admit(deadline=0.040)
    admitted(w, 8)
    batch = w.take(0.0)

    assert batch.rows == 7
    assert batch.parts[0].request is urgent


def test_costs_are_learned_from_the_end_of_the_one_before(world):
    """What a batch spends behind another is not its own time; what it spends before it is issued neither."""
    w = world(depth=2)
    admitted(w, 16)
    first, second = w.take(0.0), w.take(0.0)
    first.collated, first.finished = 0.001, 0.020
    w.core.finished(first, Succeeded("outputs"), 0.021)
    second.collated, second.finished = 0.002, 0.031
    w.core.finished(second, Succeeded("outputs"), 0.032)
    admitted(w, 8, now=0.040)
    third = w.take(0.040)
    third.collated, third.finished = 0.042, 0.060
    w.core.finished(third, Succeeded("outputs"), 0.061)

    assert [event[-1] for event in w.core.events if event[0] == BATCH] == pytest.approx([0.019, 0.011, 0.018])


def test_the_front_end_gathers_while_there_is_no_room(world):
    """With both places taken and a full batch waiting, until nine tenths of the first."""
    w = world(depth=2)
    admitted(w, 8)
    first = w.take(0.0)
    admitted(w, 8)
    assert w.core.busy_until(0.0) == 0.0
    w.take(0.0)
    assert w.core.busy_until(0.0) == 0.0
    admitted(w, 8)
    assert w.core.busy_until(0.0) == pytest.approx(0.0162)
    w.finish(first, 0.020)
    assert w.core.busy_until(0.020) == 0.0


def test_figures_tell_batches_and_since_when_the_engine_is_busy(world):
    """A batch behind another does not keep the engine busier; when its turn comes, that is its begin."""
    w = world(depth=2)
    admitted(w, 16)
    first, _ = w.take(0.001), w.take(0.002)
    assert (w.figures().running_batches, w.figures().running_since) == (2, (0.001,))
    w.finish(first, 0.020)

    assert (w.figures().running_batches, w.figures().running_since) == (1, (0.020,))


# --- The watchdog


def test_patience_begins_when_a_batch_is_the_first(world):
    """The second has its 5 s from when the first has come back, and the instance comes back with it."""
    w = world(depth=2, max_execution=5.0)
    requests = admitted(w, 16)
    first, second = w.take(0.0), w.take(0.0)
    w.core.tick(4.9)
    w.finish(first, 4.9)
    assert w.core.next_wakeup() <= 9.9
    w.core.tick(9.8)
    assert w.core.health == []
    w.core.tick(9.9)
    assert w.core.health == [(KEY, 0, 1)]
    assert w.settle() == requests[8:]
    assert all(isinstance(request.error, EngineUnavailable) for request in requests[8:])
    w.finish(second, 12.0)

    assert w.core.health == [(KEY, 0, 1), (KEY, 1, 1)]
    assert all(request.outputs is not None for request in requests[:8])


def test_a_stuck_batch_takes_those_behind_it_along(world):
    """They can't run before it does; if it comes back after all, they are run for nobody."""
    w = world(depth=2, max_execution=5.0)
    requests = admitted(w, 16)
    first, second = w.take(0.0), w.take(0.0)
    w.core.tick(5.0)
    assert w.settle() == requests
    w.finish(first, 6.0)
    assert w.core.health == [(KEY, 0, 1), (KEY, 1, 1)]
    assert w.finish(second, 6.1) == []

    assert w.core.idle()
    assert w.core.held_bytes == 0


# --- Faults


def test_a_failed_batch_is_cut_up_beside_another(world):
    """The halves go behind the one that runs; only the culprit fails, and the neighbour notices nothing."""
    w = world(depth=2)
    requests = [w.admit(name=f"{number}") for number in range(16)]
    poison = requests[3]
    first, second = w.take(0.0), w.take(0.0)
    w.finish(first, 0.018, Faulted(Internal()))
    now, flying = 0.018, [second]
    while True:
        while (batch := w.take(now)) is not None:
            flying.append(batch)
            assert len(flying) <= 2
        if not flying:
            break
        now += 0.018
        batch = flying.pop(0)
        bad = any(part.request is poison for part in batch.parts)
        w.finish(batch, now, Faulted(Internal()) if bad else None)

    assert [request.name for request in requests if request.error is not None] == ["3"]
    assert all(request.outputs is not None for request in requests if request is not poison)
    assert w.core.idle()


def test_too_little_memory_halves_the_cap_beside_another(world):
    """The batch in flight was formed before; the next ones are small."""
    w = world(depth=2)
    requests = admitted(w, 32)
    first, second = w.take(0.0), w.take(0.0)
    w.finish(first, 0.018, NoMemory())
    assert w.take(0.018).rows == 4
    w.finish(second, 0.036)
    assert w.take(0.036).rows == 4

    assert all(request.outputs is not None for request in requests[8:16])


def test_one_that_could_not_be_begun_may_come_back_first(world):
    """The first keeps its place and its patience."""
    w = world(depth=2, max_execution=5.0)
    admitted(w, 16)
    first, second = w.take(0.0), w.take(0.0)
    w.finish(second, 1.0, Faulted(Internal()))
    assert w.take(1.0).rows == 4
    w.core.tick(4.9)
    assert w.core.health == []
    w.core.tick(5.0)
    assert w.core.health == [(KEY, 0, 1)]
    assert first.parts[0].request.state is State.FAILED


def test_a_dead_instance_gives_all_its_batches_back(world):
    """Each as dead; health is told once, and what waits fails."""
    w = world(depth=2)
    requests = admitted(w, 20)
    first, second = w.take(0.0), w.take(0.0)
    w.finish(first, 0.018, Died())
    assert w.take(0.018) is None
    w.finish(second, 0.019, Died())

    assert w.core.health == [(KEY, 0, 1)]
    assert all(isinstance(request.error, EngineUnavailable) for request in requests)
    assert w.core.held_bytes == 0


def test_a_lost_device_takes_all_its_instances_along(world):
    """Of all models, also those that run nothing; instances elsewhere go on, and it is said which device it was."""
    w = world(depth=2, device="cuda:0", instances=2)
    policy = ModelPolicy(max_batch_size=8, instances=2)
    other = w.core.add_model(
        ("o", 1), policy, CostModel([(BUCKET, 1, 0.01)]), 0.0, devices=["cuda:0", "cuda:1"]
    )  # fmt: skip
    requests = admitted(w, 24)
    first, second, third = w.take(0.0), w.take(0.0), w.take(0.0, w.instances[1])
    w.finish(first, 0.018, Died("cuda:0"))

    assert w.core.lost_devices == ["cuda:0"]
    assert w.core.devices() == {"cuda:1"}
    assert sorted(w.core.health) == [(KEY, 0, 2), (KEY, 1, 2), (("o", 1), 1, 2)]
    error = w.refuse(now=0.019)
    assert isinstance(error, EngineUnavailable)
    assert error.message == "the device cuda:0 of the model's engine has failed"
    w.core.admit(w.request(lane=w.core.lane(("o", 1), BUCKET)), 0.02)
    assert w.take(0.02, other[0]) is None
    assert w.take(0.02, other[1]) is not None
    # What other instances had on it comes back by itself.
    for batch in (second, third):
        w.finish(batch, 0.03, Died("cuda:0"))
    assert {type(request.error) for request in requests} == {EngineUnavailable}
    assert w.core.lost_devices == ["cuda:0"]


def test_what_ran_on_a_lost_device_may_be_tried_elsewhere(world):
    """If an instance on another device is left, the callers are told so."""
    w = world(instances=2)
    w.core.remove_model(KEY, 0.0)
    w.instances = w.core.add_model(
        KEY, ModelPolicy(max_batch_size=8, instances=2), w.costs, 0.0, devices=["cuda:0", "cuda:1"]
    )  # fmt: skip
    (request,) = admitted(w, 1)
    w.finish(w.take(0.0), 0.018, Died("cuda:0"))

    assert isinstance(request.error, EngineRestarted)
    assert w.core.health == [(KEY, 1, 2)]


# --- The end


def test_a_removed_model_finishes_what_it_has(world):
    """Both batches; what waits fails at once."""
    w = world(depth=2)
    requests = admitted(w, 20)
    first, second = w.take(0.0), w.take(0.0)
    w.core.remove_model(KEY, 0.001)
    assert len(w.settle()) == 4
    w.finish(first, 0.018)
    assert w.take(0.018) is None
    assert not w.core.idle()
    w.finish(second, 0.036)

    assert w.core.idle()
    assert all(request.outputs is not None for request in requests[:16])
    assert w.core.held_bytes == 0


def test_a_drain_runs_what_waits_behind_what_runs(world):
    """Nothing waits for company, but still for the batch before it."""
    w = world(depth=2, max_delay=1.0)
    admitted(w, 9)
    first = w.take(0.0)
    assert w.take(0.0136) is None
    w.core.drain(0.0136)
    batch = w.take(0.0136)

    assert (batch.rows, batch.reason) == (1, Reason.DRAIN)
    w.finish(first, 0.018)
    w.finish(batch, 0.029)
    assert w.core.idle()
