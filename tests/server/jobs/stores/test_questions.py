"""Asking: single jobs, pages, and the backlog."""

import pytest

from forebay_server.errors import JobNotFound
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import Cancel, Flow, Get, Waiting

PENDING, RUNNING, SUCCEEDED, FAILED, CANCELLED, EXPIRED = JobState


@pytest.mark.parametrize("operation", [Get, Cancel])
def test_an_unknown_job_is_not_found(world, operation):
    """Whatever it is that was taken for an id."""
    for name in ("0" * 32, "", "x' OR '1'='1", "ü"):
        outcome = world.one(operation(name, "t"))
        assert isinstance(outcome, JobNotFound)
        assert outcome.message == f"there is no job {name}"


@pytest.mark.parametrize("operation", [Get, Cancel])
def test_another_tenants_job_is_not_found(world, operation):
    """With the same words as one that is not there, and it stays as it is."""
    job = world.running(tenant="a")
    for tenant in ("b", "", "A"):
        outcome = world.one(operation(job.id, tenant))
        assert isinstance(outcome, JobNotFound)
        assert outcome.message == f"there is no job {job.id}"
    assert world.get(job, "a").job == job


def test_a_page_has_the_newest_first(world):
    """Of one tenant only."""
    jobs = [world.submit(tenant="ab"[n % 2]) for n in range(6)]
    assert world.page(tenant="a") == jobs[4::-2]
    assert world.page(tenant="b") == jobs[5::-2]
    assert world.page(tenant="c") == []


def test_pages_follow_each_other(world):
    """The last sequence of one is where the next goes on; jobs that come meanwhile do not disturb."""
    jobs = [world.submit() for _ in range(7)]
    first = world.page(limit=3)
    world.submit()
    second = world.page(limit=3, before=first[-1].sequence)
    third = world.page(limit=3, before=second[-1].sequence)
    assert [*first, *second, *third] == jobs[::-1]
    assert world.page(limit=3, before=third[-1].sequence) == []


def test_a_page_of_some_states(world):
    """One, several, or any."""
    jobs = {state: world.in_state(state) for state in reversed(JobState)}
    for state, job in jobs.items():
        assert world.page(state) == [job]
    assert world.page(FAILED, PENDING) == [jobs[PENDING], jobs[FAILED]]
    assert world.page(*JobState) == world.page() == list(jobs.values())[::-1]


def test_a_page_of_a_model(world):
    """Alone, and together with states."""
    ours, theirs = world.submit(model="m"), world.submit(model="n")
    ended = world.ended(model="k")
    assert world.page(model="m") == [ours]
    assert world.page(model="n") == [theirs]
    assert world.page(model="k") == [ended]
    assert world.page(SUCCEEDED, model="m") == []
    assert world.page(model="") == [ended, theirs, ours]


def test_the_backlog_is_empty_at_first(world):
    """No flow, no line."""
    assert world.backlog() == []


def test_the_backlog_of_each_flow(world):
    """Counts and the first and last sequence, sorted by flow."""
    b = [world.submit(tenant="b") for _ in range(3)]
    a = [world.submit(tenant="a", priority=priority) for priority in (3, 1, 1)]
    n = world.submit(model="l", tenant="z")
    assert world.backlog() == [
        Waiting(Flow("l", "z", 2, suspect=False), 1, n.sequence, n.sequence, 0.0),
        Waiting(Flow("m", "a", 1, suspect=False), 2, a[1].sequence, a[2].sequence, 0.0),
        Waiting(Flow("m", "a", 3, suspect=False), 1, a[0].sequence, a[0].sequence, 0.0),
        Waiting(Flow("m", "b", 2, suspect=False), 3, b[0].sequence, b[2].sequence, 0.0),
    ]


def figures(world):
    return [waiting[1:] for waiting in world.backlog()]


def test_the_backlog_follows_each_change(world):
    """Claims, releases, cancellations, expiry and ends."""
    s = [world.submit(expire_after=100.0 if n == 2 else None).sequence for n in range(5)]
    jobs = world.page()[::-1]
    world.renew()
    assert figures(world) == [(5, s[0], s[4], 0.0)]
    ((first, _),) = world.claim()  # The one that expires is the most urgent.
    assert first.sequence == s[2]
    assert figures(world) == [(4, s[0], s[4], 0.0)]
    world.cancel(jobs[4])
    assert figures(world) == [(3, s[0], s[3], 0.0)]
    world.cancel(jobs[0])
    assert figures(world) == [(2, s[1], s[3], 0.0)]
    world.release(first)
    assert figures(world) == [(3, s[1], s[3], 0.0)]
    world.now += 100.0
    assert figures(world) == [(3, s[1], s[3], 0.0)]
    world.reap()
    assert figures(world) == [(2, s[1], s[3], 0.0)]
    ((first, _),) = world.claim()
    assert figures(world) == [(1, s[3], s[3], 0.0)]
    world.finish(first)
    ((second, _),) = world.claim()
    assert world.backlog() == []
    world.crash()
    assert figures(world) == [(1, second.sequence, second.sequence, 0.0)]


def test_the_backlog_tells_when_something_is_ready(world):
    """The shortest delay that is left, 0 if there is something without."""
    job = world.running()
    other = world.running()
    world.release(job, delay=8.0)
    assert figures(world) == [(1, job.sequence, job.sequence, 8.0)]
    world.now += 2.0
    world.release(other, delay=4.0)
    assert figures(world) == [(2, job.sequence, other.sequence, 4.0)]
    world.now += 3.0
    assert figures(world) == [(2, job.sequence, other.sequence, 1.0)]
    world.cancel(other)
    assert figures(world) == [(1, job.sequence, job.sequence, 3.0)]
    third = world.submit()
    assert figures(world) == [(2, job.sequence, third.sequence, 0.0)]
    world.cancel(third)
    world.now += 3.0
    assert figures(world) == [(1, job.sequence, job.sequence, 0.0)]
    world.now += 3.0
    assert figures(world) == [(1, job.sequence, job.sequence, 0.0)]


def test_suspects_are_a_flow_of_their_own(world):
    """In the backlog as for claims."""
    job = world.running()
    world.crash("o")
    world.renew("p")
    world.claim(owner="p")
    world.crash("p")
    other = world.submit()
    assert world.backlog() == [
        Waiting(Flow("m", "t", 2, suspect=False), 1, other.sequence, other.sequence, 0.0),
        Waiting(Flow("m", "t", 2, suspect=True), 1, job.sequence, job.sequence, 0.0),
    ]


def test_the_backlog_of_a_reopened_store(lasting):
    """Counted anew from what is there, delays and suspects included."""
    job = lasting.running()
    lasting.crash("o")
    lasting.renew("p")
    lasting.claim(owner="p")
    lasting.crash("p")
    delayed = lasting.running(tenant="d", owner="q")
    lasting.release(delayed, owner="q", delay=8.0)
    first, _, third = (lasting.submit(tenant="x") for _ in range(3))
    expected = [
        Waiting(Flow("m", "d", 2, suspect=False), 1, delayed.sequence, delayed.sequence, 6.0),
        Waiting(Flow("m", "t", 2, suspect=True), 1, job.sequence, job.sequence, 0.0),
        Waiting(Flow("m", "x", 2, suspect=False), 3, first.sequence, third.sequence, 0.0),
    ]
    lasting.now += 2.0
    assert lasting.backlog() == expected
    lasting.reopen()
    assert lasting.backlog() == expected
