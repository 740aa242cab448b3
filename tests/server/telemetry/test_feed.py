"""Events on their way to those who add them up."""

from collections import deque

import pytest

from forebay_server.jobs import events as jobs
from forebay_server.telemetry import feed, names
from forebay_server.telemetry.feed import Feed
from forebay_server.telemetry.statistics import Statistics
from forebay_server.telemetry.tallies import Tallies

KEY = ("m", 1)
DONE = ("done", KEY, 0, "OK", 0.1, 0.2)


class Core:
    """Who has events."""

    def __init__(self):
        self.events = []


class House:
    def __init__(self):
        self.core = Core()
        self.statistics = Statistics({})
        self.tallies = Tallies()
        self.feed = Feed(self.statistics, self.tallies, self.core)

    @property
    def counted(self):
        return self.statistics.of(KEY).outcomes.get("OK", 0)


@pytest.fixture
def house():
    return House()


def test_events_of_the_core_and_of_others_are_taken_once(house):
    """Both lists stay the same objects, and are empty after."""
    core, others = house.core.events, house.feed.events
    core.append(DONE)
    others.append(DONE)
    house.feed.absorb()
    house.feed.absorb()

    assert house.counted == 2
    assert (core, others) == ([], [])
    assert house.core.events is core
    assert house.feed.events is others


def test_few_events_wait(house):
    """A flush takes nothing until there are enough, wherever they are."""
    house.core.events.extend([DONE] * (feed.ABSORB_AT - 1))
    house.feed.flush()
    assert house.counted == 0
    house.core.events.append(DONE)
    house.feed.flush()
    assert house.counted == feed.ABSORB_AT

    house.feed.events.extend([DONE] * feed.ABSORB_AT)
    house.feed.flush()
    assert house.counted == 2 * feed.ABSORB_AT


def test_turns_of_the_dispatcher(house):
    """Are durations; many of them are taken, too, when nothing else happens."""
    turns = house.tallies.durations(names.TURN_DURATION)
    house.feed.turns.extend([0.5] * feed.ABSORB_AT)
    house.feed.flush()

    assert (turns.count, turns.sum) == (feed.ABSORB_AT, feed.ABSORB_AT / 2)
    assert house.feed.turns == []


def test_jobs_are_heard_of_when_somebody_listens(house):
    """All sources are emptied, and what may come is known from then on."""
    first, second = deque([(jobs.SUBMITTED,)]), deque([(jobs.SUBMITTED,), (jobs.GROUP, 0.5)])
    house.feed.absorb()
    assert len(first) == 1
    house.feed.listen(first, second)
    house.feed.absorb()

    counts = {metric.name: value for metric, _, value in house.tallies.samples() if not metric.labels}
    assert counts["forebay.jobs.submitted"] == 2
    assert counts["forebay.store.duration"].buckets[-1] == 1
    assert not first
    assert not second


def test_events_of_jobs_are_added_up_a_few_at_a_time(house):
    """However little else happens: one of them may stand for many jobs."""
    source = jobs.new_events()
    house.feed.listen(source)
    source.extend([(jobs.CLAIMED, [0.5] * 3)] * (feed.ABSORB_JOBS_AT - 1))
    house.feed.flush()
    assert len(source) == feed.ABSORB_JOBS_AT - 1
    source.append((jobs.CLAIMED, [0.5]))
    house.feed.flush()

    assert not source
    assert house.tallies.durations(names.JOB_WAIT).count == 3 * (feed.ABSORB_JOBS_AT - 1) + 1
