"""Until when the front end may let arrivals wait for each other: `Core.busy_until`."""

import pytest

from forebay_server.scheduling.latency import CostModel
from forebay_server.scheduling.policy import ModelPolicy
from forebay_server.scheduling.request import Level

BUCKET = ((4,),)


def test_busy_while_a_batch_runs_and_a_full_one_waits(world):
    """Until nine tenths of its 18 ms have passed, and not when one row is missing or nothing runs."""
    w = world()
    assert w.core.busy_until(0.0) == 0.0
    for _ in range(15):
        w.admit()
    assert w.core.busy_until(0.0) == 0.0
    batch = w.take(0.25)
    assert w.core.busy_until(0.25) == 0.0
    w.admit()
    assert w.core.busy_until(0.25) == pytest.approx(0.2662)
    w.finish(batch, 0.268)
    assert w.core.busy_until(0.268) == 0.0


def test_jobs_that_wait_do_not_count(world):
    """What comes goes before them, so it must not be kept from the next batch."""
    w = world()
    for _ in range(8):
        w.admit()
    for _ in range(16):
        w.admit(level=Level.JOB)
    w.take(0.0)
    assert w.core.busy_until(0.0) == 0.0
    for _ in range(8):
        w.admit()
    assert w.core.busy_until(0.0) == pytest.approx(0.0162)


def test_the_first_of_all_instances_counts(world):
    """An instance without a batch could run what comes; of those that have one, the first to be done."""
    w = world(instances=2)
    for _ in range(24):
        w.admit()
    assert w.take(0.0) is not None
    assert w.core.busy_until(0.0) == 0.0
    assert w.take(0.005, w.instances[1]) is not None
    assert w.core.busy_until(0.005) == pytest.approx(0.0162)


def test_a_model_that_is_not_used_does_not_count(world):
    """A second after its last batch: nothing comes for it, most likely."""
    w = world()
    w.core.add_model(("other", 1), ModelPolicy(max_batch_size=1), CostModel([(BUCKET, 1, 0.001)]), 5.0)
    for _ in range(16):
        w.admit(now=5.0)
    w.take(5.5)
    assert w.core.busy_until(5.9) == 0.0
    assert w.core.busy_until(6.0) == pytest.approx(5.5162)
