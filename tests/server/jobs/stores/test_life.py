"""Every transition of the table happens on every store, and no other does."""

import pytest

from forebay_server.jobs.states import FINAL, TRANSITIONS, JobState
from forebay_server.jobs.store import Claim, ClaimLost, Finish, Flow, Found, Page

PENDING, RUNNING, SUCCEEDED, FAILED, CANCELLED, EXPIRED = JobState


def claim(world, job):
    world.claim(10)


def cancel(world, job):
    world.cancel(job)


def expire(world, job):
    world.now += 100.0
    world.renew()
    world.reap()


def finish(state):
    def act(world, job):
        world.finish(job, state, attempt=1)

    return act


def release(world, job):
    world.release(job, attempt=1)


def take_over(attempts):
    def act(world, job):
        world.renew(seconds=0.0)
        world.reap(max_attempts=attempts)

    return act


ACTS = {
    "claim": ("claim", RUNNING, claim),
    "cancel": ("anyone", CANCELLED, cancel),
    "expire": ("anyone", EXPIRED, expire),
    "succeed": ("holder", SUCCEEDED, finish(SUCCEEDED)),
    "fail": ("holder", FAILED, finish(FAILED)),
    "give up": ("holder", EXPIRED, finish(EXPIRED)),
    "release": ("holder", PENDING, release),
    "take over": ("takeover", PENDING, take_over(2)),
    "take over after the last attempt": ("takeover", FAILED, take_over(1)),
}
"""Who causes it, where it leads, and how it is done to a job that `o` has claimed once."""


def test_the_acts_are_all_that_the_table_knows():
    """Nothing in the table is left out here."""
    known = {(cause, target) for cause, target, _ in ACTS.values()}
    assert known == {
        (cause, target)
        for following in TRANSITIONS.values()
        for target, causes in following.items()
        for cause in causes.split(", ")
    }


@pytest.mark.parametrize("name", ACTS)
@pytest.mark.parametrize("state", JobState)
def test_a_transition_happens_if_the_table_has_it_and_else_nothing_does(world, state, name):
    """The whole of the job is compared where it must stay as it is."""
    cause, target, act = ACTS[name]
    job = world.in_state(state, expire_after=100.0, ttl=1000.0)
    before = world.get(job)
    assert before.job.state is state
    act(world, job)
    after = world.get(job)
    if cause in TRANSITIONS[state].get(target, "").split(", "):
        assert after.job.state is target
        assert (after.job.ended == world.now) == (target in FINAL)
    else:
        assert after == before


def test_a_job_comes_in_as_pending(world):
    """With what it was given, and nothing that did not happen yet."""
    job = world.submit(
        tenant="a", model="x", version="canary", priority=1, request_id="key", expire_after=8.0, ttl=60.0,
        traceparent="00-1-2-01",
    )  # fmt: skip
    assert job == (
        job.id, "a", job.sequence, PENDING, "x", "canary", 0, 1, "key", 0, 0, world.now, None, None, world.now + 8.0,
        None, "00-1-2-01",
    )  # fmt: skip
    assert isinstance(job.state, JobState)
    assert world.get(job, "a") == Found(job, None)


def test_a_claim_starts_a_job(world):
    """It is RUNNING for one more time, since now, and its payload comes with it."""
    job = world.submit(payload=b"\0\xff" * 100)
    world.renew()
    world.now += 1.0
    ((claimed, payload),) = world.claim()
    assert claimed == job._replace(state=RUNNING, attempt=1, started=world.now)
    assert payload == b"\0\xff" * 100
    assert world.get(job) == Found(claimed, None)


@pytest.mark.parametrize("state", [SUCCEEDED, FAILED, EXPIRED])
def test_an_end_by_the_holder(world, state):
    """State, outcome, version and times are there at once, and the job is kept for its time to live."""
    job = world.running(ttl=60.0)
    world.now += 2.0
    end = world.finish(job, state, outcome=b"\0out", version=7)
    assert end == job._replace(state=state, served_version=7, ended=world.now, purges=world.now + 60.0)
    assert world.get(job) == Found(end, b"\0out")


@pytest.mark.parametrize("state", [PENDING, RUNNING])
def test_cancelling(world, state):
    """It ends the job at once, without an outcome; a second time changes nothing."""
    job = world.in_state(state, ttl=60.0)
    world.now += 2.0
    end = world.cancel(job)
    assert end == job._replace(state=CANCELLED, ended=world.now, purges=world.now + 60.0)
    world.now += 2.0
    assert world.cancel(job) == end
    assert world.get(job) == Found(end, None)


@pytest.mark.parametrize("state", sorted(FINAL))
def test_cancelling_what_is_final_gives_it_as_it_is(world, state):
    """Nothing is lost by a cancellation that comes late."""
    job = world.ended(state)
    before = world.get(job)
    assert world.cancel(job) == job
    assert world.get(job) == before


def test_a_release_makes_it_wait_again(world):
    """With its attempt counted, or not."""
    job = world.running()
    back = world.release(job)
    assert back == job._replace(state=PENDING)
    ((again, _),) = world.claim()
    assert again == job._replace(attempt=2)
    refunded = world.release(again, refund=True)
    assert refunded == job._replace(state=PENDING)


def test_the_payload_is_there_for_each_attempt(world):
    """Released or taken over, it is the same request."""
    job = world.running(payload=b"the request")
    world.release(job)
    assert world.claim()[0].payload == b"the request"
    world.crash()
    world.renew("p")
    assert world.claim(owner="p")[0].payload == b"the request"


def test_of_two_that_finish_one_wins(world):
    """The first outcome stays; the other's claim is lost."""
    job = world.running()
    assert world.finish(job, outcome=b"first").state is SUCCEEDED
    lost = world.finish(job, outcome=b"second")
    assert isinstance(lost, ClaimLost)
    assert world.get(job).outcome == b"first"


def test_operations_of_a_group_see_each_other(world):
    """A group has the effects that its operations would have one after the other, at one instant."""
    new = world.new()
    world.renew()
    submitted, claimed, end, page = world.do(
        new,
        Claim("o", Flow("m", "t", 2, suspect=False), 1),
        Finish(new.id, "o", 1, SUCCEEDED, b"x", 1),
        Page("t", (), "", 0, 10),
    )
    assert submitted.job.state is PENDING
    assert claimed[0].job.state is RUNNING
    assert end.state is SUCCEEDED
    assert page == [end]
    assert end.created == end.started == end.ended == world.now
