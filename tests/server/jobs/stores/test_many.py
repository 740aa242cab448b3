"""Ends that come by the hundred, as they do from a server: each gets its own, whatever stands beside it."""

from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import Cancel, Claim, ClaimLost, Finish, Flow, Get, Release

S = JobState
FLOW = Flow("m", "t", 2, suspect=False)


def running(world, count):
    """Jobs that `o` has claimed with one claim."""
    for outcome in world.do(*(world.new(ttl=60.0 + number, webhook=world.HOOK) for number in range(count))):
        assert outcome.created
    world.renew()
    return [claimed.job for claimed in world.one(Claim("o", FLOW, count))]


def end(job, state=S.SUCCEEDED, outcome=b"response", *, owner="o", attempt=None, version=3):
    return Finish(job.id, owner, job.attempt if attempt is None else attempt, state, outcome, version)


def test_each_gets_its_own_end(world):
    """States, versions and outcomes of every size in one group; what is answered is what is found afterwards."""
    jobs = running(world, 8)
    bodies = [b"a", b"", b"b" * 300_000, b"c" * 100, b"", b"d", b"b" * 300_000, b"e"]
    states = [S.SUCCEEDED, S.FAILED, S.SUCCEEDED, S.EXPIRED, S.SUCCEEDED, S.SUCCEEDED, S.FAILED, S.SUCCEEDED]
    world.now += 1.0
    ends = [
        end(job, state, body, version=number % 3)
        for number, (job, state, body) in enumerate(zip(jobs, states, bodies, strict=True))
    ]
    outcomes = world.do(*reversed(ends))[::-1]
    for number, (job, outcome, body) in enumerate(zip(jobs, outcomes, bodies, strict=True)):
        assert outcome == job._replace(
            state=states[number], served_version=number % 3, ended=world.now, purges=world.now + 60.0 + number
        )
        assert world.get(job) == (outcome, body)
    assert {delivery.job for delivery in world.deliveries()} == set(outcomes)


def test_wrong_ones_among_many(world):
    """A wrong owner or attempt, a second end, and one after a cancellation are lost; the others are not concerned."""
    jobs = running(world, 6)
    outcomes = world.do(
        end(jobs[0], owner="other"),
        end(jobs[1], attempt=2),
        end(jobs[2]),
        end(jobs[2], S.FAILED, b"late"),
        Cancel(jobs[3].id, "t"),
        end(jobs[3]),
        Release(jobs[4].id, "o", 1, 0.0, refund=True),
        end(jobs[4]),
        end(jobs[5]),
    )
    lost = [isinstance(outcome, ClaimLost) for outcome in outcomes]
    assert lost == [True, True, False, True, False, True, False, True, False]
    states = [found.job.state for found in world.do(*(Get(job.id, "t") for job in jobs))]
    assert states == [S.RUNNING, S.RUNNING, S.SUCCEEDED, S.CANCELLED, S.PENDING, S.SUCCEEDED]
    assert world.get(jobs[2]).outcome == b"response"
    assert [outcome.state for outcome in world.do(end(jobs[0]), end(jobs[1]))] == [S.SUCCEEDED] * 2


def test_a_claim_that_was_taken_over_is_lost(world):
    """Its job ended under another claim meanwhile; the first owner's end comes too late, in whatever group."""
    first, second = running(world, 2)
    world.crash()
    world.renew("p")
    again = [claimed.job for claimed in world.one(Claim("p", FLOW, 2))]
    assert [job.attempt for job in again] == [2, 2]
    outcomes = world.do(end(first), end(again[0], owner="p"), end(second), end(again[1], owner="p"))
    assert [isinstance(outcome, ClaimLost) for outcome in outcomes] == [True, False, True, False]


def test_ends_after_the_store_was_opened_again(world):
    """What was only remembered is gone, and nothing depends on it."""
    if not world.lasts:
        return
    jobs = running(world, 3)
    world.reopen()
    outcomes = world.do(*(end(job) for job in jobs))
    assert [getattr(outcome, "state", None) for outcome in outcomes] == [S.SUCCEEDED] * 3
    assert [world.get(job).outcome for job in jobs] == [b"response"] * 3
