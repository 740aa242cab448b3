"""What waits, counted between two answers of the store."""

from math import inf

from forebay_server.jobs.ages import Ages
from forebay_server.jobs.pending import Pending, flow_of
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import Flow, Job, Waiting
from forebay_server.scheduling.request import Priority


def job(sequence, *, tenant="t", priority=Priority.NORMAL, crashes=0, model="m"):
    return Job(
        str(sequence), tenant, sequence, JobState.PENDING, model, "", 0, priority, "", 0, crashes, 0.0, None, None,
        None, None,
    )  # fmt: skip


FLOW = Flow("m", "t", Priority.NORMAL, False)


def test_a_job_with_two_crashes_is_suspect():
    """Its flow is another one."""
    assert [flow_of(job(1, crashes=crashes)).suspect for crashes in (0, 1, 2)] == [False, False, True]


def test_what_passes_through_is_counted():
    """Submitted, claimed, released with a delay; gone when none is left."""
    pending = Pending()
    for sequence in (1, 2, 3):
        pending.submitted(job(sequence), 0.0)
    assert (pending.total, pending.ready("m", 0.0)) == (3, {FLOW: 3})
    pending.claimed(FLOW, 2, 2)
    assert pending.ready("m", 0.0) == {FLOW: 1}
    pending.claimed(FLOW, 1, 1)
    assert (pending.total, pending.ready("m", 0.0)) == (0, {})
    pending.released(job(1), 5.0)
    assert (pending.ready("m", 4.9), pending.next_ready("m", 4.9)) == ({}, 5.0)
    assert (pending.ready("m", 5.0), pending.next_ready("m", 5.0)) == ({FLOW: 1}, inf)


def test_a_claim_that_brings_less_stops_the_flow_until_more_is_known():
    """What is left has a delay: the store is asked."""
    pending = Pending()
    pending.replace([Waiting(FLOW, 10, 1, 10, 0.0)], now=1.0)
    pending.claimed(FLOW, 8, 3)
    assert (pending.total, pending.ready("m", 100.0), pending.next_ready("m", 1.0)) == (7, {}, inf)
    pending.replace([Waiting(FLOW, 7, 4, 10, 0.5)], now=2.0)
    assert pending.next_ready("m", 2.0) == 2.5
    pending.submitted(job(11), 2.0)
    assert pending.ready("m", 2.0) == {FLOW: 8}


def test_the_stores_word_replaces_what_was_thought():
    """All of it."""
    pending = Pending()
    pending.submitted(job(1, model="gone"), 0.0)
    pending.replace([Waiting(FLOW, 4, 1, 8, 0.0)], now=0.0)
    assert (pending.total, pending.ready("gone", 0.0), pending.ready("m", 0.0)) == (4, {}, {FLOW: 4})


def test_how_many_are_ahead():
    """jobs x (sequence - first) / (last - first + 1), of equal or better priority, all tenants together."""
    pending = Pending()
    low, high = FLOW._replace(priority=Priority.LOW), FLOW._replace(priority=Priority.HIGH, tenant="u")
    suspect = FLOW._replace(suspect=True)
    pending.replace(
        [Waiting(FLOW, 10, 1, 20, 0.0), Waiting(low, 5, 1, 5, 0.0), Waiting(high, 4, 11, 14, 0.0),
         Waiting(suspect, 9, 1, 9, 0.0)],
        now=0.0,
    )  # fmt: skip
    assert pending.ahead(job(11)) == 10 * 10 / 20 + 0
    assert pending.ahead(job(13)) == 10 * 12 / 20 + 4 * 2 / 4
    assert pending.ahead(job(100)) == 14
    assert pending.ahead(job(100, priority=Priority.HIGH)) == 4
    assert pending.ahead(job(3, priority=Priority.LOW)) == 10 * 2 / 20 + 5 * 2 / 5
    assert pending.ahead(job(3, model="other")) == 0


def test_claims_move_the_front():
    """The first of those that wait is supposed to be further on."""
    pending = Pending()
    pending.replace([Waiting(FLOW, 10, 1, 10, 0.0)], now=0.0)
    pending.claimed(FLOW, 5, 5)
    assert pending.ahead(job(8)) == 2
    assert pending.ahead(job(11)) == 5


def test_the_oldest_is_as_old_as_the_last_glimpse_of_nothing_newer():
    """Ages are lower bounds: a job is as old as the first mark that is not before it."""
    pending = Pending()
    assert pending.oldest(5.0) == 0.0
    pending.replace([Waiting(FLOW, 5, 10, 14, 0.0)], now=5.0)
    pending.submitted(job(15), 8.0)
    assert pending.oldest(9.0) == 4.0
    pending.claimed(FLOW, 5, 5)
    assert pending.oldest(9.0) == 1.0
    pending.claimed(FLOW, 1, 1)
    assert pending.oldest(9.0) == 0.0


def test_marks_are_bounded():
    """However long it goes on; the first stays, so the oldest keeps its age."""
    ages = Ages()
    for second in range(100_000):
        ages.seen(second, float(second))
    assert len(ages._sequences) <= 1024
    assert ages.age(0, 100_000.0) == 100_000.0
    assert ages.age(50_000, 100_000.0) <= 50_000.0
    assert ages.age(200_000, 100_000.0) == 0.0
