"""What is told of operations: of many at once the same as of each."""

from collections import Counter

import pytest

from forebay_server.errors import StoreFull
from forebay_server.jobs import events
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import ClaimLost, Finish, Job, Release


def job(created, ended, state=JobState.SUCCEEDED):
    return Job("0", "t", 1, state, "m", "", 1, 2, "", 1, 0, created, created, ended, None, None)


def finish():
    return Finish("0", "o", 1, JobState.SUCCEEDED, b"", 1)


def flat(told):
    """Events as if each operation had told its own."""
    found = Counter()
    for event in told:
        match event:
            case (events.OPERATION, _, _, many):
                found[event[:3]] += many
            case (events.ENDED, _, seconds):
                found.update((*event[:2], each) for each in seconds)
            case _:
                found[event] += 1
    return found


@pytest.mark.parametrize(
    ("operations", "outcomes", "most"),
    [
        ([finish()] * 3, [job(1.0, 2.0), job(1.0, 3.0), job(2.0, 3.0)], 2),
        ([finish()] * 2, [job(1.0, 2.0), job(1.0, 3.0, JobState.FAILED)], 4),
        ([finish()] * 3, [job(1.0, 2.0), ClaimLost(), StoreFull("full", retry_after=1.0)], 6),
        ([finish(), Release("0", "o", 1, 0.0, refund=True)], [job(1.0, 2.0), job(1.0, None, JobState.PENDING)], 4),
        ([Release("0", "o", 1, 0.0, refund=True)], [ClaimLost()], 2),
    ],
)
def test_many_tell_what_each_would(operations, outcomes, most):
    """Ends that went well are told as two events, however many they are."""
    together, each = events.new_events(), events.new_events()
    events.leave_all(together, operations, outcomes)
    for operation, outcome in zip(operations, outcomes, strict=True):
        events.leave(each, operation, outcome)
    assert flat(together) == flat(each)
    assert len(together) <= most
