"""What is asked of the store again and again: how often, and after the store was slow or away."""

import pytest

from forebay_server.errors import StoreUnavailable
from forebay_server.jobs.store import Backlog, Purge, Reap
from forebay_server.jobs.upkeep import COUNT_LEAST, COUNT_MOST, COUNT_PART, COUNT_SHARED, INTERVAL, Upkeep


class Asked:
    """Instead of a keeper: what was asked and not answered, and a clock that stands still."""

    def __init__(self):
        self.now = 100.0
        self.open = {}
        self.upkeep = Upkeep(
            self,
            reap=Reap(256, 5, b"", b""),
            shared=True,
            reaped=lambda _: None,
            counted=lambda _: None,
            clock=lambda: self.now,
        )

    def do(self, operation, done):
        assert type(operation) not in self.open, "an errand is on its way once"
        self.open[type(operation)] = done

    def go_on(self, seconds, **answers):
        """Time passes; then these are answered, and what is due is sent."""
        self.now += seconds
        for kind, done in list(self.open.items()):
            if kind.__name__ in answers:
                del self.open[kind]
                done(answers[kind.__name__])
        self.upkeep.tick(self.now)


@pytest.fixture
def asked():
    started = Asked()
    started.upkeep.tick(started.now)
    assert set(started.open) == {Backlog, Purge, Reap}
    return started


def until_asked(asked, kind):
    """Seconds until an errand is sent again, if all is sent when it is due."""
    begin = asked.now
    while kind not in asked.open:
        assert asked.upkeep.due > asked.now
        asked.go_on(asked.upkeep.due - asked.now)
    return pytest.approx(asked.now - begin)


def test_each_errand_comes_again(asked):
    """After its interval, from its answer on, or at once if there is more."""
    asked.go_on(0.01, Reap=[], Purge=256, Backlog=[])
    assert Purge in asked.open
    assert until_asked(asked, Reap) == INTERVAL


def test_a_count_that_waited_for_the_store_delays_the_next_no_more_than_others(asked):
    """The store was away for long: what waits is counted soon after it is back, also if somebody asks for it."""
    for _ in range(3):
        asked.go_on(600.0, Backlog=[])
        assert until_asked(asked, Backlog) == COUNT_SHARED
        asked.go_on(0.001, Backlog=[])
        asked.upkeep.count()
        assert until_asked(asked, Backlog) == COUNT_LEAST


@pytest.mark.parametrize(("took", "pause"), [(0.5, 0.5 / COUNT_PART), (60.0, COUNT_MOST)])
def test_counts_that_take_long_are_rare(asked, took, pause):
    """They take a small part of the time, but go on."""
    asked.go_on(took, Backlog=[])
    until_asked(asked, Backlog)
    asked.go_on(took, Backlog=[])
    asked.upkeep.count()
    assert until_asked(asked, Backlog) == pause


def test_an_errand_that_failed_comes_again(asked):
    """As if it had found nothing."""
    asked.go_on(0.01, Backlog=StoreUnavailable("away"))
    assert until_asked(asked, Backlog) == INTERVAL
