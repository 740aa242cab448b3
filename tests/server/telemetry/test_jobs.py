"""What jobs tell, added up."""

import ast
import inspect
from collections import deque

from forebay_server.jobs import events
from forebay_server.telemetry import jobs, names
from forebay_server.telemetry.tallies import Tallies

KINDS = {value for name, value in vars(events).items() if name.isupper() and isinstance(value, str)}


def absorbed(*told):
    """Counts and numbers of durations, by metric and labels."""
    tallies = Tallies()
    queue = deque(told)
    jobs.absorb(queue, tallies)
    assert not queue
    return {
        (metric.name, *labels): value if isinstance(value, int | float) else (value.buckets[-1], value.sum)
        for metric, labels, value in tallies.samples()
    }


def test_each_event_counts():
    """Under the labels that it brings."""
    found = absorbed(
        (events.OPERATION, "submit", "ok", 1),
        (events.OPERATION, "submit", "ok", 3),
        (events.OPERATION, "finish", "CLAIM_LOST", 1),
        (events.GROUP, 0.25),
        (events.SUBMITTED,),
        (events.CLAIMED, [1.5, 0.5]),
        (events.UNCLAIMED, "released"),
        (events.UNCLAIMED, "lost"),
        (events.ENDED, "succeeded", [2.0, 3.0]),
        (events.ENDED, "succeeded", [1.0]),
        (events.ENDED, "failed", [4.0]),
        (events.TAKEN_OVER,),
        (events.WEBHOOK, "delivered", 0.125),
        (events.WEBHOOK, "given_up", 0.5),
    )

    assert found == {
        ("forebay.store.operations", "submit", "ok"): 4,
        ("forebay.store.operations", "finish", "CLAIM_LOST"): 1,
        ("forebay.store.duration",): (1, 0.25),
        ("forebay.jobs.submitted",): 1,
        ("forebay.job.claims", "taken"): 2,
        ("forebay.job.claims", "released"): 1,
        ("forebay.job.claims", "lost"): 1,
        ("forebay.job.wait.duration",): (2, 2.0),
        ("forebay.jobs.ended", "succeeded"): 3,
        ("forebay.jobs.ended", "failed"): 1,
        ("forebay.job.duration", "succeeded"): (3, 6.0),
        ("forebay.job.duration", "failed"): (1, 4.0),
        ("forebay.job.takeovers",): 1,
        ("forebay.webhooks", "delivered"): 1,
        ("forebay.webhooks", "given_up"): 1,
        ("forebay.webhook.duration",): (2, 0.625),
    }


def test_no_kind_of_event_is_left_out():
    """Each that jobs may tell has its case here: the names in `absorb` are those of `jobs.events`."""
    tree = ast.parse(inspect.getsource(jobs.absorb))
    cases = {node.value.attr for node in ast.walk(tree) if isinstance(node, ast.MatchValue)}
    assert {getattr(events, name) for name in cases} == KINDS


def test_what_nobody_knows_is_passed_over():
    """A kind that is told by a newer part is no reason to stop."""
    assert absorbed(("something else", 1), (events.SUBMITTED,)) == {("forebay.jobs.submitted",): 1}


def test_all_are_known_before_they_happen():
    """So that the first of each is seen as an increase; labels that are not bounded here are not made up."""
    tallies = Tallies()
    jobs.prepare(tallies)
    found = {(metric.name, *labels): value for metric, labels, value in tallies.samples()}

    assert all(value == 0 or value.buckets[-1] == 0 for value in found.values())
    assert {key[1] for key in found if key[0] == names.JOBS_ENDED.name} == {
        "succeeded",
        "failed",
        "cancelled",
        "expired",
    }
    assert {key[1] for key in found if key[0] == names.WEBHOOKS.name} == {"delivered", "undelivered", "given_up"}
    assert {key[0] for key in found} == {
        metric.name
        for metric in (
            names.JOBS_ENDED,
            names.CLAIMS,
            names.WEBHOOKS,
            names.JOBS_SUBMITTED,
            names.TAKEOVERS,
            names.JOB_WAIT,
            names.STORE_DURATION,
            names.WEBHOOK_DURATION,
        )
    }
