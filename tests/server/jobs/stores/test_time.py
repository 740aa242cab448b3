"""What time brings: expiry, takeovers, suspects, purging."""

import pytest

from forebay_server.jobs.states import FINAL, JobState
from forebay_server.jobs.store import SUSPECT_CRASHES, Found

PENDING, RUNNING, SUCCEEDED, FAILED, CANCELLED, EXPIRED = JobState


@pytest.mark.parametrize("state", [PENDING, RUNNING])
def test_what_nobody_needs_any_more_expires(world, state):
    """At its instant, not before; with the outcome that the reaper was given."""
    job = world.in_state(state, expire_after=10.0, ttl=60.0)
    world.now += 9.875
    assert world.reap() == []
    world.now += 0.125
    end = job._replace(state=EXPIRED, ended=world.now, purges=world.now + 60.0)
    assert world.reap() == [end]
    assert world.get(job) == Found(end, b"expired")
    assert world.reap() == []


def test_expiry_goes_in_order_and_stops_at_the_limit(world):
    """The longest expired first, among equals the oldest."""
    third = world.submit(expire_after=3.0)
    first = world.submit(expire_after=1.0)
    second = world.running(model="n", expire_after=2.0)
    fourth = world.submit(expire_after=3.0)
    world.submit()
    world.now += 50.0
    assert [job.id for job in world.reap(limit=3)] == [first.id, second.id, third.id]
    assert [job.id for job in world.reap(limit=3)] == [fourth.id]
    assert world.reap(limit=3) == []


def test_a_takeover_makes_it_wait_again(world):
    """With the crash counted; the attempt stays counted."""
    job = world.running()
    world.submit()
    assert world.crash() == [job._replace(state=PENDING, crashes=1)]
    assert world.get(job) == Found(job._replace(state=PENDING, crashes=1), None)
    assert world.reap() == []


def test_a_takeover_needs_an_owner_that_is_gone(world):
    """By its own word or by time, and of that owner only."""
    world.renew("p", 10.0)
    theirs = world.submit()
    world.claim(owner="p")
    ours = world.running(owner="o")
    world.now += 9.875
    assert world.reap() == []
    world.now += 0.125
    assert [job.id for job in world.reap()] == [theirs.id]
    assert world.get(ours).job == ours


def test_takeovers_stop_at_the_limit(world):
    """In order of sequence."""
    jobs = [world.running(priority=1 + n % 3) for n in range(5)]
    world.renew(seconds=0.0)
    assert [job.id for job in world.reap(limit=3)] == [job.id for job in jobs[:3]]
    assert [job.id for job in world.reap(limit=3)] == [job.id for job in jobs[3:]]


def test_the_limit_is_for_each_of_both(world):
    """Expiry does not keep takeovers waiting. What is expired and abandoned is expired."""
    expiring = [world.running(expire_after=1.0) for _ in range(3)]
    plain = [world.running() for _ in range(3)]
    world.now += 1.0
    world.renew(seconds=0.0)
    changed = world.reap(limit=3)
    assert [(job.id, job.state) for job in changed] == [
        *((job.id, EXPIRED) for job in expiring),
        *((job.id, PENDING) for job in plain),
    ]


def test_after_the_last_attempt_a_takeover_is_the_end(world):
    """FAILED with the outcome that the reaper was given."""
    job = world.running(ttl=60.0)
    for attempt in (1, 2):
        owner = "o" if attempt == 1 else f"o{attempt}"
        world.renew(owner, 0.0)
        (job,) = world.reap(max_attempts=3)
        assert (job.state, job.attempt, job.crashes) == (PENDING, attempt, attempt)
        world.renew(f"o{attempt + 1}")
        ((job, _),) = world.claim(owner=f"o{attempt + 1}", suspect=attempt >= SUSPECT_CRASHES)
    world.now += 1.0
    world.renew("o3", 0.0)
    (end,) = world.reap(max_attempts=3)
    assert end == job._replace(state=FAILED, crashes=3, ended=world.now, purges=world.now + 60.0)
    assert world.get(job) == Found(end, b"crashed")


def test_a_delay_ends_with_a_takeover(world):
    """It was the delay of an earlier release, and has passed when the job was claimed."""
    job = world.running()
    world.release(job, delay=4.0)
    world.now += 4.0
    world.claim()
    world.crash()
    assert world.backlog()[0].ready == 0.0


def test_a_job_that_brought_two_owners_down_is_a_suspect(world):
    """It leaves its flow for that of the suspects, where it is claimed like any other."""
    assert SUSPECT_CRASHES == 2
    job, other = world.running(), world.submit()
    world.crash("o")
    world.renew("p")
    assert [claimed.id for claimed, _ in world.claim(1, owner="p")] == [job.id]
    world.crash("p")
    world.renew("q")
    assert [claimed.id for claimed, _ in world.claim(10, owner="q")] == [other.id]
    ((claimed, payload),) = world.claim(10, owner="q", suspect=True)
    assert (claimed.id, claimed.attempt, claimed.crashes, payload) == (job.id, 3, 2, b"request")
    world.release(claimed, owner="q")
    assert world.claim(10, owner="q") == []
    ((claimed, _),) = world.claim(10, owner="q", suspect=True)
    assert world.finish(claimed, owner="q").state is SUCCEEDED


@pytest.mark.parametrize("state", sorted(FINAL))
def test_a_purge_deletes_what_has_had_its_time(world, state):
    """At its instant, not before."""
    job = world.ended(state, ttl=60.0)
    world.now += 59.875
    assert world.purge() == 0
    assert not world.gone(job)
    world.now += 0.125
    assert world.purge() == 1
    assert world.gone(job)
    assert world.page() == []
    assert world.purge() == 0


@pytest.mark.parametrize("state", [PENDING, RUNNING])
def test_a_purge_leaves_what_is_not_final(world, state):
    """However old it is."""
    job = world.in_state(state, ttl=1.0)
    world.now += 1e6
    assert world.purge() == 0
    assert world.get(job).job == job


def test_a_purge_goes_in_order_and_stops_at_the_limit(world):
    """What has been due for longest first, among equals the oldest; the count tells whether there may be more."""
    jobs = [world.ended(ttl=ttl) for ttl in (3.0, 1.0, 2.0, 3.0)]
    world.now += 10.0
    assert world.purge(3) == 3
    assert world.page() == [jobs[3]]
    assert world.purge(3) == 1
    assert world.purge(3) == 0


def test_a_purge_waits_for_the_webhook(world):
    """A job whose message is not dealt with stays, and does not stand in the way of others."""
    told = world.ended(ttl=1.0, webhook=world.HOOK)
    plain = world.ended(ttl=1.0)
    world.now += 2.0
    assert world.purge(1) == 1
    assert world.gone(plain)
    assert world.purge() == 0
    assert [delivery.job for delivery in world.deliveries()] == [told]
    assert world.purge() == 0
    world.delivered(told)
    assert world.purge() == 1
    assert world.gone(told)
