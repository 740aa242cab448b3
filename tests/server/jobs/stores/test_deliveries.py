"""The outbox of webhook messages."""

import pytest

from forebay_server.jobs.states import FINAL, JobState
from forebay_server.jobs.store import Delivery, Webhook


@pytest.mark.parametrize("state", sorted(FINAL))
def test_a_message_is_there_when_its_job_is_final(world, state):
    """Not before; with the job as it is then."""
    hook = Webhook("https://ü.test/?a=1&b='", "secret name")
    job = world.running(webhook=hook, expire_after=100.0)
    assert world.deliveries() == []
    end = world.cancel(job) if state is JobState.CANCELLED else world.finish(job, state)
    assert world.deliveries() == [Delivery(end, hook, 0)]


def test_the_reaper_leaves_messages_too(world):
    """Of jobs that expired, and of those that brought too many owners down."""
    expiring = world.submit(webhook=world.HOOK, expire_after=1.0)
    crashing = world.running(webhook=world.HOOK, model="n")
    world.now += 1.0
    world.renew(seconds=0.0)
    expired, failed = world.reap(max_attempts=1)
    assert (expired.id, failed.id) == (expiring.id, crashing.id)
    assert world.deliveries() == [Delivery(expired, world.HOOK, 0), Delivery(failed, world.HOOK, 0)]


def test_no_webhook_no_message(world):
    """Nobody asked."""
    world.ended()
    assert world.deliveries() == []


def test_a_message_is_taken_by_one_for_a_while(world):
    """Then, if nobody said what came of it, by the next."""
    job = world.ended(webhook=world.HOOK)
    assert world.deliveries(seconds=30.0) == [Delivery(job, world.HOOK, 0)]
    world.now += 29.875
    assert world.deliveries() == []
    world.now += 0.125
    assert world.deliveries(seconds=5.0) == [Delivery(job, world.HOOK, 1)]
    world.now += 5.0
    assert world.deliveries() == [Delivery(job, world.HOOK, 2)]


def test_a_message_that_did_not_arrive_is_due_again(world):
    """After the delay, counted from the report."""
    job = world.ended(webhook=world.HOOK)
    world.deliveries(seconds=30.0)
    world.now += 2.0
    assert world.undelivered(job, 10.0) is None
    world.now += 9.875
    assert world.deliveries() == []
    world.now += 0.125
    assert world.deliveries() == [Delivery(job, world.HOOK, 1)]


def test_a_message_that_was_dealt_with_is_gone(world):
    """For good, also if somebody reports otherwise later."""
    job = world.ended(webhook=world.HOOK)
    world.deliveries(seconds=1.0)
    assert world.delivered(job) is None
    assert world.undelivered(job, 0.0) is None
    world.now += 100.0
    assert world.deliveries() == []
    assert world.delivered(job) is None


def test_reports_of_what_is_not_there_change_nothing(world):
    """Unknown jobs, jobs without a message, jobs that are not final yet."""
    plain, waiting = world.ended(), world.submit(webhook=world.HOOK)
    for job in (plain, waiting, plain._replace(id="f" * 32)):
        assert world.undelivered(job, 0.0) is None
        assert world.delivered(job) is None
    assert world.deliveries() == []
    end = world.cancel(waiting)
    assert world.deliveries() == [Delivery(end, world.HOOK, 0)]


def test_the_longest_due_goes_first(world):
    """Up to the limit; among equals the oldest job."""
    early = world.ended(webhook=world.HOOK)
    world.deliveries()
    world.undelivered(early, 5.0)
    world.now += 1.0
    first = world.submit(webhook=world.HOOK)
    second = world.submit(webhook=world.HOOK)
    second, first = world.cancel(second), world.cancel(first)
    world.now += 10.0
    third = world.ended(webhook=world.HOOK)
    assert world.deliveries(limit=2) == [Delivery(first, world.HOOK, 0), Delivery(second, world.HOOK, 0)]
    assert world.deliveries(limit=2) == [Delivery(early, world.HOOK, 1), Delivery(third, world.HOOK, 0)]
    assert world.deliveries(limit=2) == []
