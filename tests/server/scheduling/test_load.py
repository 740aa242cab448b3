"""Shares of the time, at exact instants."""

from math import exp

import pytest

from forebay_server.scheduling.load import MEMORY, Load


def test_nothing_was_done():
    """Neither at first nor at any time."""
    assert Load().share(5.0) == 0.0


def test_work_counts_less_as_time_goes_by():
    """By a factor of e in `MEMORY` seconds."""
    load = Load()
    load.add(0.3 * MEMORY, 10.0)
    assert load.share(10.0) == pytest.approx(0.3)
    assert load.share(10.0 + MEMORY) == pytest.approx(0.3 / exp(1))
    load.add(0.1 * MEMORY, 10.0 + MEMORY)
    assert load.share(10.0 + MEMORY) == pytest.approx(0.3 / exp(1) + 0.1)


@pytest.mark.parametrize("part", [0.02, 0.5, 1.0])
def test_steady_work_is_its_part_of_the_time(part):
    """Each millisecond so much of it."""
    load = Load()
    for number in range(10_000):
        load.add(part * 0.001, number * 0.001)
    assert load.share(10.0) == pytest.approx(part, rel=0.01)
