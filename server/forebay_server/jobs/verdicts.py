"""What an error of its run means for a job: its end, or another try.

An error that would come again, because it lies in the request or in the model, ends the job. One that says that there
is no room or no engine now gives it back, and the attempt does not count. An engine that went away, or stopped, while
it ran the job may have done so because of it: that attempt counts.

Pure.
"""

from typing import Final, NamedTuple

from forebay_server.errors import (
    DeadlineExpired,
    DeadlineUnreachable,
    EngineRestarted,
    EngineUnavailable,
    ForebayError,
    Overloaded,
    Unavailable,
)
from forebay_server.jobs.states import JobState

RETRY_FIRST: Final = 0.1
"""Seconds before a job whose attempt counted is tried again; doubled with each attempt."""
RETRY_MOST: Final = 30.0
UNREACHABLE_PAUSE: Final = 0.5
"""Seconds before a job is tried again whose deadline can't be met as things are now."""


class End(NamedTuple):
    """The job has its end."""

    state: JobState


class Again(NamedTuple):
    """The job is tried again."""

    delay: float
    """Seconds from now."""
    refund: bool
    """The attempt does not count."""
    blocked: bool
    """The model can't run others now either."""


def verdict(error: ForebayError, *, attempt: int, max_attempts: int, pause: float) -> End | Again:
    """What becomes of a job.

    Args:
        error: Why its run has no result.
        attempt: The attempt that failed, from 1.
        max_attempts: How many there may be.
        pause: Seconds for which the model's jobs wait while it is not available.
    """
    if isinstance(error, DeadlineExpired):
        return End(JobState.EXPIRED)
    if isinstance(error, DeadlineUnreachable):
        return Again(UNREACHABLE_PAUSE, refund=True, blocked=False)  # Its time is not over: others may go away.
    if isinstance(error, Overloaded):
        return Again(error.retry_after, refund=True, blocked=True)
    ran = isinstance(error, EngineRestarted) or (isinstance(error, EngineUnavailable) and error.ran)
    if isinstance(error, Unavailable) and not ran:
        return Again(pause, refund=True, blocked=True)
    if not ran or attempt >= max_attempts:
        return End(JobState.FAILED)
    return Again(min(RETRY_FIRST * 2.0 ** (attempt - 1), RETRY_MOST), refund=False, blocked=False)
