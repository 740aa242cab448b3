"""The histogram against exact quantiles."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay_server.telemetry.histogram import BOUNDS, Histogram


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
    assert histogram.quantiles((0.5, 1.0)) == [1e-7, BOUNDS[-1]]
    assert BOUNDS[-1] > 3600
