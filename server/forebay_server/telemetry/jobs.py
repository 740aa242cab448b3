"""Adds up what jobs tell (`jobs.events`)."""

from collections import deque

from forebay_server.jobs import events as jobs
from forebay_server.telemetry import names
from forebay_server.telemetry.tallies import Tallies

STATES = ("succeeded", "failed", "cancelled", "expired")
CLAIM_OUTCOMES = ("taken", "released", "lost")
WEBHOOK_OUTCOMES = ("delivered", "undelivered", "given_up")


def prepare(tallies: Tallies) -> None:
    """Makes known what may be counted, so that the first of each is seen as an increase."""
    for state in STATES:
        tallies.count(names.JOBS_ENDED, state, by=0)
    for outcome in CLAIM_OUTCOMES:
        tallies.count(names.CLAIMS, outcome, by=0)
    for outcome in WEBHOOK_OUTCOMES:
        tallies.count(names.WEBHOOKS, outcome, by=0)
    tallies.count(names.JOBS_SUBMITTED, by=0)
    tallies.count(names.TAKEOVERS, by=0)
    for metric in (names.JOB_WAIT, names.STORE_DURATION, names.WEBHOOK_DURATION):
        tallies.durations(metric)


def absorb(events: deque[jobs.Event], tallies: Tallies) -> None:
    """Takes all events out and adds them up. In the dispatcher; others may append meanwhile."""
    while events:
        event = events.popleft()
        match event:
            case (jobs.OPERATION, operation, outcome, many):
                tallies.count(names.STORE_OPERATIONS, operation, outcome, by=many)
            case (jobs.GROUP, seconds):
                tallies.durations(names.STORE_DURATION).record(seconds)
            case (jobs.CLAIMED, seconds):
                tallies.count(names.CLAIMS, "taken", by=len(seconds))
                tallies.durations(names.JOB_WAIT).record_all(seconds)
            case (jobs.ENDED, state, seconds):
                tallies.count(names.JOBS_ENDED, state, by=len(seconds))
                tallies.durations(names.JOB_AGE, state).record_all(seconds)
            case (jobs.SUBMITTED,):
                tallies.count(names.JOBS_SUBMITTED)
            case (jobs.UNCLAIMED, outcome):
                tallies.count(names.CLAIMS, outcome)
            case (jobs.TAKEN_OVER,):
                tallies.count(names.TAKEOVERS)
            case (jobs.WEBHOOK, outcome, seconds):
                tallies.count(names.WEBHOOKS, outcome)
                tallies.durations(names.WEBHOOK_DURATION).record(seconds)
            case _:
                pass
