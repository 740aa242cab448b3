"""The tuples that jobs leave for telemetry. The first item is the kind.

They are appended to deques, from any thread, and taken out by the dispatcher; a deque that nobody empties drops the
oldest.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from forebay_server.errors import ForebayError
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import (
    Cancel,
    Claim,
    ClaimLost,
    Finish,
    Job,
    Operation,
    Outcome,
    Reap,
    Release,
    Submit,
    Submitted,
)

Event = tuple[Any, ...]

GROUP: Final = "group"
"""`(GROUP, seconds)`: a transaction of the store."""
OPERATION: Final = "operation"
"""`(OPERATION, name, outcome, many)`: so many operations of the store; `ok`, or the reason of their error."""
SUBMITTED: Final = "submitted"
"""`(SUBMITTED,)`: a job was taken in."""
CLAIMED: Final = "claimed"
"""`(CLAIMED, seconds)`: jobs were claimed so long after they were submitted, a list."""
UNCLAIMED: Final = "unclaimed"
"""`(UNCLAIMED, outcome)`: a claim has ended without an end of its job: `released` or `lost`."""
ENDED: Final = "ended"
"""`(ENDED, state, seconds)`: jobs were given their end so long after they were submitted, a list; the state in lower
case."""
TAKEN_OVER: Final = "taken over"
"""`(TAKEN_OVER,)`: a job was taken from a server that had gone away."""
WEBHOOK: Final = "webhook"
"""`(WEBHOOK, outcome, seconds)`: a try to send a message: `delivered`, `undelivered` (there will be another) or
`given_up`."""

MOST: Final = 65_536
"""Events that are kept for a telemetry that does not come."""


def new_events() -> deque[Event]:
    """Where to leave events."""
    return deque(maxlen=MOST)


def leave(  # noqa: C901  # a case for each operation that tells more
    events: deque[Event], operation: Operation, outcome: Outcome | Exception
) -> None:
    """Leaves what is to be told of an operation and its outcome. A second `Cancel` of a job looks like the first."""
    events.append((OPERATION, type(operation).__name__.lower(), _word(outcome), 1))
    match operation, outcome:
        case Submit(), Submitted(created=True):
            events.append((SUBMITTED,))
        case Claim(), list() | tuple():
            if outcome:
                events.append((CLAIMED, [_since(job, job.started) for job, _ in outcome]))
        case (Finish(), Job()) | (Cancel(), Job(state=JobState.CANCELLED)):
            assert isinstance(outcome, Job)  # noqa: S101  # matched, which mypy does not see
            _ended(events, outcome)
        case Release(), Job():
            events.append((UNCLAIMED, "released"))
        case ((Finish() | Release()), ClaimLost()):
            events.append((UNCLAIMED, "lost"))
        case Reap(), list() | tuple():
            for job in outcome:
                if job.state is not JobState.EXPIRED:
                    events.append((TAKEN_OVER,))
                if job.state is not JobState.PENDING:
                    _ended(events, job)
        case _:
            pass


def leave_all(events: deque[Event], operations: Sequence[Operation], outcomes: Sequence[Outcome | Exception]) -> None:
    """Leaves what is to be told of many operations; of ends that went well, as they mostly do, all at once."""
    first = outcomes[0]
    if isinstance(first, Job) and all(
        type(operation) is Finish and type(outcome) is Job and outcome.state is first.state
        for operation, outcome in zip(operations, outcomes, strict=True)
    ):
        events.append((OPERATION, type(operations[0]).__name__.lower(), "ok", len(operations)))
        ages = [job.ended - job.created for job in outcomes]  # type: ignore[union-attr,operator]  # all are jobs that have ended
        events.append((ENDED, first.state.name.lower(), [max(0.0, age) for age in ages]))
        return
    for operation, outcome in zip(operations, outcomes, strict=True):
        leave(events, operation, outcome)


def _ended(events: deque[Event], job: Job) -> None:
    events.append((ENDED, job.state.name.lower(), [_since(job, job.ended)]))


def _since(job: Job, at: float | None) -> float:
    return max(0.0, (at if at is not None else job.created) - job.created)


def _word(outcome: Outcome | Exception) -> str:
    if isinstance(outcome, ForebayError):
        return outcome.reason
    if isinstance(outcome, ClaimLost):
        return "CLAIM_LOST"
    return "INTERNAL" if isinstance(outcome, Exception) else "ok"
