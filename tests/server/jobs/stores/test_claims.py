"""Who gets which jobs, in which order, and when a claim is worth nothing any more."""

import pytest

from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import DUE_ANYWAY, ClaimLost


def ids(claimed):
    return [job.id for job, _ in claimed]


def test_without_a_life_there_is_nothing(world):
    """Owners that never began, that have ended, and whose time is over get no jobs."""
    job = world.submit()
    assert world.claim(owner="never") == []
    world.renew("ended")
    world.renew("ended", 0.0)
    assert world.claim(owner="ended") == []
    world.renew("late", 10.0)
    world.now += 10.0
    assert world.claim(owner="late") == []
    assert world.get(job).job == job
    world.renew("alive", 10.0)
    world.now += 9.875
    assert ids(world.claim(owner="alive")) == [job.id]


def test_a_life_is_prolonged_until_it_has_ended(world):
    """Each renewal counts from now; after the end there is none."""
    assert world.renew("o", 10.0) is True
    world.now += 9.0
    assert world.renew("o", 10.0) is True
    world.now += 9.0
    assert world.renew("o", 10.0) is True
    world.now += 10.0
    assert world.renew("o", 10.0) is False
    assert world.renew("o", 10.0) is False
    world.submit()
    assert world.claim() == []


def test_an_ended_life_stays_ended(world):
    """Also if it was ended by its owner, also if the clock is set back."""
    assert world.renew("o", 10.0) is True
    assert world.renew("o", 0.0) is True
    assert world.renew("o", 10.0) is False
    world.now -= 3600.0
    assert world.renew("o", 10.0) is False
    assert world.renew("new", 0.0) is True
    assert world.renew("new", 10.0) is False


@pytest.mark.parametrize("size", [100, 300_000], ids=["rows", "files"])
def test_payloads_bound_a_claim(world, size):
    """No more jobs once they have so many bytes in all; the first is claimed however large it is; the rest waits."""
    jobs = [world.submit(payload=bytes([number]) * size) for number in range(6)]
    world.renew()
    assert ids(world.claim(10, nbytes=1)) == [jobs[0].id]
    assert ids(world.claim(10, nbytes=2 * size)) == [jobs[1].id, jobs[2].id]
    claimed = world.claim(10, nbytes=2 * size + 1)
    assert ids(claimed) == [job.id for job in jobs[3:]]
    assert [payload for _, payload in claimed] == [bytes([number]) * size for number in (3, 4, 5)]


def test_a_flow_is_claimed_alone(world):
    """Model, tenant and priority must all be equal."""
    jobs = {
        (model, tenant, priority): world.submit(model=model, tenant=tenant, priority=priority)
        for model in ("m", "n")
        for tenant in ("t", "u", "")
        for priority in (1, 2, 3)
    }
    world.renew()
    for (model, tenant, priority), job in jobs.items():
        assert ids(world.claim(10, model=model, tenant=tenant, priority=priority)) == [job.id]
    assert world.claim(10, model="k") == []


def test_equal_urgency_goes_by_sequence(world):
    """First come, first served; and never more than the limit."""
    jobs = [outcome.job for outcome in world.do(*(world.new() for _ in range(10)))]
    world.renew()
    assert world.claim(0) == []
    assert ids(world.claim(3)) == [job.id for job in jobs[:3]]
    assert ids(world.claim(3)) == [job.id for job in jobs[3:6]]
    assert ids(world.claim(100)) == [job.id for job in jobs[6:]]
    assert world.claim(100) == []


def test_the_earliest_deadline_goes_first(world):
    """A job without one is as urgent as if it had to be done within an hour of coming in."""
    assert DUE_ANYWAY == 3600.0
    late = world.submit(expire_after=5000.0)
    plain = world.submit()
    soon = world.submit(expire_after=10.0)
    same = world.submit(expire_after=3600.0)
    before = world.submit(expire_after=3599.875)
    world.now += 8.0
    sooner = world.submit(expire_after=1.0)
    younger = world.submit(expire_after=9000.0)
    world.renew()
    order = [sooner, soon, before, late, plain, same, younger]
    assert ids(world.claim(3)) == [job.id for job in order[:3]]
    assert ids(world.claim(10)) == [job.id for job in order[3:]]


def test_what_should_have_expired_is_left_out(world):
    """From the very instant on."""
    expired = world.submit(expire_after=10.0)
    kept = world.submit(expire_after=10.125)
    world.now += 10.0
    world.renew()
    assert ids(world.claim(10)) == [kept.id]
    assert world.get(expired).job == expired


def test_a_released_job_waits_for_its_delay(world):
    """Others of the flow go before it meanwhile; then it has its old place."""
    first = world.running()
    second, third = world.submit(), world.submit()
    world.release(first, delay=5.0)
    assert ids(world.claim(1)) == [second.id]
    world.now += 4.875
    assert ids(world.claim(2)) == [third.id]
    assert world.claim(1) == []
    fourth = world.submit()
    world.now += 0.125
    assert ids(world.claim(2)) == [first.id, fourth.id]


def test_a_clock_that_is_set_back_keeps_nothing_waiting(world):
    """What has no delay can be claimed at any time."""
    jobs = [world.submit() for _ in range(3)]
    world.renew()
    world.claim()
    world.release(jobs[0], attempt=1)
    world.now -= 3600.0
    assert world.backlog()[0].ready == 0.0
    world.renew("p")
    assert ids(world.claim(3, owner="p")) == [job.id for job in jobs]


def test_a_claimed_job_is_nobody_elses(world):
    """As long as its owner lives."""
    job = world.running(owner="o")
    world.renew("p")
    assert world.claim(10, owner="p") == []
    assert world.reap() == []
    assert isinstance(world.finish(job, owner="p"), ClaimLost)
    assert isinstance(world.release(job, owner="p"), ClaimLost)
    assert world.finish(job, owner="o").state is JobState.SUCCEEDED


@pytest.mark.parametrize("attempt", [0, 2])
def test_a_claim_is_of_one_attempt(world, attempt):
    """The owner's own earlier or later attempts do not count."""
    job = world.running()
    assert isinstance(world.finish(job, attempt=attempt), ClaimLost)
    assert isinstance(world.release(job, attempt=attempt), ClaimLost)
    assert world.get(job).job == job


def cancel(world, job):
    world.cancel(job)


def expire(world, job):
    world.now += 100.0
    world.reap()


def take_over(world, job):
    world.crash()


def take_over_and_run(world, job):
    world.crash()
    world.renew("p")
    world.claim(owner="p")


def take_over_and_finish(world, job):
    take_over_and_run(world, job)
    world.finish(job, owner="p", attempt=2, outcome=b"theirs")


def release(world, job):
    world.release(job)


def run_again(world, job):
    world.release(job)
    world.claim()


def purge(world, job):
    world.finish(job)
    world.now += 100.0
    assert world.purge() == 1


LOSSES = (cancel, expire, take_over, take_over_and_run, take_over_and_finish, release, run_again, purge)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_lost_claim_is_worth_nothing(world, loss):
    """Neither a result nor a release gets through, and the job stays as it is."""
    job = world.running(expire_after=100.0, ttl=60.0)
    loss(world, job)
    before = world.page(), None if loss is purge else world.get(job)
    assert isinstance(world.finish(job, outcome=b"too late"), ClaimLost)
    assert isinstance(world.finish(job, JobState.FAILED, outcome=b"too late"), ClaimLost)
    assert isinstance(world.release(job), ClaimLost)
    assert (world.page(), None if loss is purge else world.get(job)) == before


def test_a_claim_holds_until_it_is_taken_over(world):
    """A result that comes after the owner's time, but before anyone took notice, is good."""
    world.renew("o", 10.0)
    job = world.submit()
    ((claimed, _),) = world.claim()
    world.now += 11.0
    assert world.finish(claimed) == job._replace(
        state=JobState.SUCCEEDED, attempt=1, started=job.created, ended=world.now, served_version=3,
        purges=world.now + 60.0,
    )  # fmt: skip


def test_a_refund_counts_no_attempt(world):
    """Any number of times; and claims without refund count up."""
    job = world.running()
    for _ in range(5):
        assert world.release(job, refund=True).attempt == 0
        ((job, _),) = world.claim()
        assert job.attempt == 1
    for attempt in range(1, 5):
        assert world.release(job).attempt == attempt
        ((job, _),) = world.claim()
        assert job.attempt == attempt + 1


def test_claims_by_their_urgency_over_releases_and_takeovers(world):
    """The place in the order is a job's own, whatever happened to it."""
    world.renew("p")
    jobs = [world.submit() for _ in range(4)]
    world.renew()
    claimed = [job for job, _ in world.claim(4)]
    world.release(claimed[3])
    world.release(claimed[1])
    world.crash()
    assert ids(world.claim(10, owner="p")) == [job.id for job in jobs]


def test_a_claim_gives_back_what_was_submitted(world):
    """Payloads of every byte and size, files among them, odd texts, and times to the last digit."""
    world.now = 1_795_305_600.1234567
    payloads = [bytes(range(256)), b"", b"\0", b"x" * 300_000, b"\xff\xfe" * 50, b"", b"y" * 300_000, b"z"]
    keys = ['"', "\\", "\t\n\x01\x7f", "\u2028\u00e9\U0001f600", "{}", "[1]", "'", "null"]
    jobs = [
        world.submit(payload=payload, request_id=key, version=key, traceparent=key, expire_after=0.1 * number + 1000.3)
        for number, (payload, key) in enumerate(zip(payloads, keys, strict=True))
    ]
    world.renew()
    claimed = world.claim(10)
    assert [payload for _, payload in claimed] == payloads
    assert [job for job, _ in claimed] == [
        job._replace(state=JobState.RUNNING, attempt=1, started=world.now) for job in jobs
    ]
