"""The histogram against exact quantiles."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay_server.telemetry.histogram import BOUNDS, SMALLEST, Histogram, place


@given(st.lists(st.floats(1e-6, 3000), min_size=1, max_size=200))
def test_quantiles_are_within_ten_percent(values):
    """Each quantile is within 10 % of the exact one, which is a value that was recorded."""
    histogram = Histogram()
    for value in values:
        histogram.record(value)

    found = histogram.quantiles((0.1, 0.5, 0.9, 0.99, 1.0))

    exact = np.quantile(values, (0.1, 0.5, 0.9, 0.99, 1.0), method="inverted_cdf")
    assert found == pytest.approx(exact.tolist(), rel=0.1)
    assert histogram.count == len(values)
    assert histogram.sum == pytest.approx(math.fsum(values))


def test_empty():
    """Nothing took no time."""
    assert Histogram().quantiles((0.5, 0.99)) == [0.0, 0.0]


def test_extremes_are_kept():
    """Nothing is too short or too long to count."""
    histogram = Histogram()
    for value in (-1.0, 0.0, 1e-12, 1e9):
        histogram.record(value)

    assert histogram.counts[0] == 3
    assert histogram.counts[-1] == 1
    assert histogram.quantiles((0.5, 1.0)) == [SMALLEST, BOUNDS[-1]]
    assert BOUNDS[-1] > 3600


def test_powers_of_two_are_bounds():
    """So that coarser buckets, and exponential ones, are exact."""
    assert [BOUNDS[place(power)] for power in (-23, -1, 0, 9, 12)] == [2.0**-23, 0.5, 1.0, 512.0, 4096.0]
    assert BOUNDS[place(0.25)] == 2**0.25


@given(st.lists(st.floats(1e-6, 3000), min_size=1, max_size=100))
def test_many_at_once_are_the_same_as_one_by_one(values):
    """By numpy or not."""
    single, many = Histogram(), Histogram()
    for value in values:
        single.record(value)
    many.record_all(values)

    assert (many.counts, many.count) == (single.counts, single.count)
    assert many.sum == pytest.approx(single.sum)


def test_a_copy_stands_still():
    """And one can be added to another."""
    histogram = Histogram()
    histogram.record(1.0)
    copied = histogram.copy()
    histogram.add(copied)

    assert (copied.count, histogram.count, histogram.sum) == (1, 2, 2.0)
    assert max(histogram.counts) == 2
