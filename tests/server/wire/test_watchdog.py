"""The watchdog of the second adapter. That it bites is shown in the wire suite, in a process of its own."""

import faulthandler
import time

import pytest

from forebay_server.wire.watchdog import Watchdog


class Timer:
    """Stands for faulthandler's timer, so that the test's own process survives."""

    def __init__(self):
        self.set = []
        self.cancelled = 0

    def dump_traceback_later(self, seconds, *, file, exit):  # noqa: A002  # the name in faulthandler
        assert exit
        assert file == 2, "a descriptor, for sys.stderr may have none"
        self.set.append(seconds)

    def cancel_dump_traceback_later(self):
        self.cancelled += 1


@pytest.fixture
def timer(monkeypatch):
    """Replaces faulthandler's timer."""
    timer = Timer()
    monkeypatch.setattr(faulthandler, "dump_traceback_later", timer.dump_traceback_later)
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", timer.cancel_dump_traceback_later)
    return timer


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock


def test_the_timer_is_set_again_only_when_the_margin_is_used_up(timer, clock):
    """Signs of life within a quarter of the budget cost nothing; the timer never ends before a whole budget."""
    watchdog = Watchdog()
    watchdog.watch(8.0)
    assert timer.set == [10.0]
    clock.now = 1002.0
    watchdog.alive()
    assert timer.set == [10.0]
    clock.now = 1002.5
    watchdog.alive()
    assert timer.set == [10.0, 10.0]


def test_without_a_budget_no_timer_runs(timer, clock):
    """None lets the watchdog rest, at first and later."""
    watchdog = Watchdog()
    watchdog.alive()
    assert timer.set == []
    watchdog.watch(8.0)
    watchdog.watch(None)
    assert timer.cancelled == 1
    watchdog.alive()
    assert timer.set == [10.0]
    assert not watchdog.armed()


def test_a_rest_ends_with_a_sign_of_life(timer, clock):
    """While its owner waits the timer does not run; with the next sign of life it does."""
    watchdog = Watchdog()
    watchdog.watch(8.0)
    assert watchdog.patience() == 5.0
    watchdog.rest()
    assert (timer.cancelled, watchdog.patience()) == (1, 0.0)
    watchdog.alive()
    assert timer.set == [10.0, 10.0]


def test_a_new_budget_counts_from_now(timer, clock):
    """A shorter or longer budget replaces the timer at once."""
    watchdog = Watchdog()
    watchdog.watch(8.0)
    watchdog.watch(0.8)
    watchdog.watch(80.0)
    assert timer.set == [10.0, 1.0, 100.0]
