"""Counts and durations of what happens seldom."""

from forebay_server.telemetry import names
from forebay_server.telemetry.tallies import Tallies


def values(tallies):
    return {(metric, *labels): value for metric, labels, value in tallies.samples()}


def test_counts_and_durations_by_labels():
    """Each combination has its own."""
    tallies = Tallies()
    tallies.count(names.CALLS, "a", "OK")
    tallies.count(names.CALLS, "a", "OK")
    tallies.count(names.CALLS, "a", "NOT_FOUND", by=5)
    tallies.durations(names.CALL_DURATION, "a").record(0.5)
    tallies.durations(names.CALL_DURATION, "a").record(0.25)
    found = values(tallies)

    assert found[names.CALLS, "a", "OK"] == 2
    assert found[names.CALLS, "a", "NOT_FOUND"] == 5
    assert (found[names.CALL_DURATION, "a"].buckets[-1], found[names.CALL_DURATION, "a"].sum) == (2, 0.75)
    assert len(found) == 3


def test_what_is_known_before_it_happens():
    """Is zero, and stays what it is if it has happened."""
    tallies = Tallies()
    tallies.count(names.TAKEOVERS, by=0)
    assert values(tallies) == {(names.TAKEOVERS,): 0}
    tallies.count(names.TAKEOVERS)
    tallies.count(names.TAKEOVERS, by=0)
    assert values(tallies) == {(names.TAKEOVERS,): 1}


def test_a_copy_no_longer_moves():
    """Nor does the original with it."""
    tallies = Tallies()
    tallies.count(names.TAKEOVERS)
    tallies.durations(names.STORE_DURATION).record(1.0)
    copied = tallies.copy()
    tallies.count(names.TAKEOVERS)
    tallies.durations(names.STORE_DURATION).record(1.0)
    copied.count(names.JOBS_SUBMITTED)
    found = values(copied)

    assert found[names.TAKEOVERS,] == 1
    assert found[names.STORE_DURATION,].buckets[-1] == 1
    assert (names.JOBS_SUBMITTED,) not in values(tallies)
