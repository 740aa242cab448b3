"""The figures of many short windows, exactly; and that a machine that is not quiet changes them little."""

from random import Random

import pytest

from bench.windows import Window, pooled, quiet, together


def test_a_quiet_window_is_the_one_that_a_quarter_are_better_than():
    """Of latencies the lower quarter, of rates the upper one."""
    assert quiet([5.0, 1.0, 2.0, 3.0, 4.0], more_is_better=False) == 2.0
    assert quiet([5.0, 1.0, 2.0, 3.0, 4.0], more_is_better=True) == 4.0
    assert quiet([1.0, 2.0], more_is_better=False) == 1.25


def test_disturbance_changes_it_little_and_the_median_much():
    """Half of the windows of one side are three times as slow, which says nothing of the server."""
    random = Random(1)
    calm = [random.gauss(1.0, 0.05) for _ in range(28)]
    disturbed = [latency * (3.0 if place % 2 else 1.0) for place, latency in enumerate(calm)]

    assert quiet(disturbed, more_is_better=False) == pytest.approx(quiet(calm, more_is_better=False), rel=0.05)
    assert sorted(disturbed)[14] > 1.5 * sorted(calm)[14]


def test_what_is_slower_in_each_window_is_seen():
    """Positive control: seven per cent."""
    calm = [1.0 + place / 100 for place in range(8)]
    slower = [latency * 1.07 for latency in calm]

    assert quiet(slower, more_is_better=False) / quiet(calm, more_is_better=False) == pytest.approx(1.07)


def test_pooled_latencies_are_those_of_all_requests():
    """Windows count by their requests, not each alike."""
    windows = [[[1_000_000, 98], [2_000_000, 1]], [[9_000_000, 1]]]

    assert pooled(windows, 0.5) == 1.0
    assert pooled(windows, 0.98) == 1.0
    assert pooled(windows, 0.99) == 2.0
    assert pooled(windows, 1.0) == 9.0
    with pytest.raises(ValueError, match="no request"):
        pooled([[], []], 0.99)


def test_windows_together_have_medians_and_all_failures():
    """And the p99 of all requests, which is not the median of theirs."""
    windows = [
        Window({"p99_ms": p99, "rps": rps, "failures": failures}, [[round(p99 * 1e6), 100]])
        for p99, rps, failures in ((1.0, 10.0, 0.0), (9.0, 30.0, 2.0), (2.0, 20.0, 1.0))
    ]

    assert together(windows) == {"p99_ms": 2.0, "rps": 20.0, "failures": 3.0, "p99_of_all_ms": 9.0}
