"""Which errors end a job, and which give it back."""

import pytest

from forebay_server import errors
from forebay_server.jobs.states import JobState
from forebay_server.jobs.verdicts import Again, End, verdict

FAILED, EXPIRED = End(JobState.FAILED), End(JobState.EXPIRED)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.InvalidRequest([]), FAILED),
        (errors.InputRejected("no"), FAILED),
        (errors.MessageTooLarge("no"), FAILED),
        (errors.Unsupported("no"), FAILED),
        (errors.ModelFailed("no"), FAILED),
        (errors.ModelNotFound("no"), FAILED),
        (errors.VersionNotFound("no"), FAILED),
        (errors.Internal("id"), FAILED),
        (errors.DeadlineExpired("late"), EXPIRED),
        (errors.DeadlineUnreachable("late"), Again(0.5, refund=True, blocked=False)),
        (errors.QueueFull("full", retry_after=3.0), Again(3.0, refund=True, blocked=True)),
        (errors.BytesLimit("full", retry_after=3.0), Again(3.0, refund=True, blocked=True)),
        (errors.Draining("end"), Again(7.0, refund=True, blocked=True)),
        (errors.ModelLoading("soon"), Again(7.0, refund=True, blocked=True)),
        (errors.EngineUnavailable("dead"), Again(7.0, refund=True, blocked=True)),
        (errors.EngineUnavailable("dead", ran=True), Again(0.2, refund=False, blocked=False)),
        (errors.EngineRestarted("dead"), Again(0.2, refund=False, blocked=False)),
    ],
    ids=lambda value: getattr(value, "reason", None),
)
def test_each_error_has_its_verdict(error, expected):
    """At the second of three attempts."""
    assert verdict(error, attempt=2, max_attempts=3, pause=7.0) == expected


def test_the_last_attempt_that_counts_is_the_end():
    """One that does not count never is."""
    assert verdict(errors.EngineRestarted("dead"), attempt=3, max_attempts=3, pause=1.0) == FAILED
    assert verdict(errors.EngineUnavailable("x", ran=True), attempt=3, max_attempts=3, pause=1.0) == FAILED
    assert verdict(errors.ModelLoading("soon"), attempt=3, max_attempts=3, pause=1.0) == Again(1.0, True, True)


def test_pauses_between_attempts_are_bounded():
    """They double, up to half a minute."""
    delays = [verdict(errors.EngineRestarted("x"), attempt=n, max_attempts=99, pause=0).delay for n in (1, 2, 3, 50)]
    assert delays == [0.1, 0.2, 0.4, 30.0]
