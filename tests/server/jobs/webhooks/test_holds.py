"""Targets that do not answer are left alone for a while."""

import pytest

from forebay_server.jobs.webhooks.holds import REMEMBERED, Holds

A, B = "https://a", "https://b"


@pytest.fixture
def held():
    """A target that has failed three times in a row at 100."""
    holds = Holds()
    assert [holds.failed(A, 100.0) for _ in range(3)] == [False, False, True]
    return holds


def test_it_takes_three_failures_in_a_row():
    """An answer in between begins the count anew."""
    holds = Holds()
    holds.failed(A, 1.0)
    holds.failed(A, 1.0)
    holds.answered(A)
    holds.failed(A, 2.0)
    holds.failed(A, 2.0)
    assert holds.remaining(A, 2.0) == 0.0
    holds.failed(A, 3.0)
    assert holds.remaining(A, 4.0) == 14.0


def test_others_are_not_held(held):
    """A hold is the target's own."""
    assert held.remaining(B, 100.0) == 0.0


def test_one_message_finds_out(held):
    """At the end of a hold one may try; the others wait until it is known how that went."""
    assert held.remaining(A, 114.0) == 1.0
    assert held.remaining(A, 115.0) == 0.0
    assert held.remaining(A, 115.0) == 15.0
    held.answered(A)
    assert held.remaining(A, 115.0) == 0.0


def test_holds_grow_to_five_minutes(held):
    """Each failure at the end of a hold doubles the next one."""
    found, now = [], 100.0
    for _ in range(7):
        now += held.remaining(A, now)
        assert held.remaining(A, now) == 0.0
        assert held.failed(A, now) is False, "it was held before"
        found.append(held.remaining(A, now))
    assert found == [30.0, 60.0, 120.0, 240.0, 300.0, 300.0, 300.0]


def test_those_on_their_way_do_not_count(held):
    """Messages that were under way when the hold began do not make it longer."""
    assert [held.failed(A, 105.0) for _ in range(5)] == [False] * 5
    assert held.remaining(A, 105.0) == 10.0


def test_the_oldest_are_forgotten():
    """However many targets fail, so many are remembered."""
    holds = Holds()
    for _ in range(3):
        holds.failed(A, 1.0)
    for number in range(REMEMBERED):
        holds.failed(f"https://{number}", 1.0)
    assert holds.remaining(A, 1.0) == 0.0
    assert len(holds._records) == REMEMBERED
