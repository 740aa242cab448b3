"""The port between jobs and what keeps them: operations go down in groups, outcomes come up.

A store is a sequential machine. It is given *operations*, a group at a time, and gives an outcome for each; a group is
one transaction, durable when `apply` returns, and its operations have the effects that they would have one after the
other. So whoever has many operations pays for one commit (group commit), a store needs no lock of its own, and one
sequence of operations must give the same outcomes on every store: that is how they are tested.

What is wrong with one operation is its outcome (`JobNotFound`, `JobKeyReused`, `ClaimLost`); what is wrong with the
store is raised by `apply`, and then nothing of the group has happened, or (`StoreUnavailable` only) it is not known.

Times are seconds since 1970 by the clock of whoever keeps the store: the server's own for a store that is the server's
alone, the database's for one that several share.

A leaf of plain values: payloads, outcomes and the bodies of webhooks are bytes to a store.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from forebay_server.errors import ForebayError, JobKeyReused, JobNotFound
from forebay_server.jobs.states import JobState

DUE_ANYWAY: Final = 3600.0
"""Seconds after which a job without a deadline is as urgent as one whose deadline is now, so that it can't starve."""
SUSPECT_CRASHES: Final = 2
"""A job that was running on so many owners when they went away is run alone from then on."""


class Job(NamedTuple):
    """A job as callers see it."""

    id: str
    """128 random bits in lower-case hexadecimal."""
    tenant: str
    sequence: int
    """Grows with each job that a store takes in, of all tenants and models together; never used again."""
    state: JobState
    model: str
    version: str
    """As the caller asked: a number, a label, or empty."""
    served_version: int
    """The version that ran; 0 before."""
    priority: int
    """A `scheduling.request.Priority`."""
    request_id: str
    """The idempotency key; empty: none."""
    attempt: int
    """How many times it was claimed, refunded ones not counted."""
    crashes: int
    """How many owners went away while they had it."""
    created: float
    started: float | None
    """When it was last claimed."""
    ended: float | None
    """When it reached its final state."""
    expires: float | None
    """When it expires unless it has finished; None: never."""
    purges: float | None
    """When it is deleted; None until it has finished."""
    traceparent: str = ""
    """The W3C trace context of whoever submitted it; empty: none."""


class Flow(NamedTuple):
    """Jobs that compete with others as one, and are claimed in order among themselves.

    The order inside a flow: the earliest `min(expires, created + DUE_ANYWAY)` first, among equals the smallest
    sequence. A released job is left out until its delay has passed.
    """

    model: str
    tenant: str
    priority: int
    suspect: bool
    """Whether these are the jobs with at least SUSPECT_CRASHES."""


class Webhook(NamedTuple):
    """Whom to tell of a job's end."""

    url: str
    secret: str
    """The name of the secret."""


# --- Operations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submit:
    """Takes in a job. Outcome: `Submitted`, or `JobKeyReused`."""

    id: str
    """If there is a job with this id already, that one is the answer, as `created`: the operation was repeated because
    it was not known whether it had happened."""
    tenant: str
    request_id: str
    """Not empty: if the tenant has a job with the same key and an equal fingerprint, that one is the answer."""
    fingerprint: bytes
    """Equal for payloads that mean the same."""
    model: str
    version: str
    priority: int
    payload: bytes
    """A serialized `PredictRequest`."""
    expire_after: float | None
    """Seconds from now; None: it does not expire."""
    ttl: float
    """Seconds for which it is kept once it has finished."""
    webhook: Webhook | None
    traceparent: str = ""
    """Of at most 55 characters, see `Job`."""


class Submitted(NamedTuple):
    """A job is in the store."""

    job: Job
    created: bool
    """False: the key had been used before, for this job under another id."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Claims PENDING jobs of a flow, the most urgent first: RUNNING, attempt + 1. Outcome: a list of `Claimed`.

    Jobs that should have expired are left out.
    """

    owner: str
    """One that `Renew` has given a life that lasts; otherwise the outcome is empty."""
    flow: Flow
    limit: int
    nbytes: int = 64 << 20
    """No more jobs once their payloads have so many bytes in all; the first is claimed however large it is."""


class Claimed(NamedTuple):
    """A job to run. The claim is (owner, `job.attempt`)."""

    job: Job
    payload: bytes


class Finish(NamedTuple):
    """Gives a RUNNING job its end, by the holder of its claim. Outcome: the `Job`, or `ClaimLost`.

    A tuple, because one is made for each job, and these are made in a third of the time.
    """

    id: str
    owner: str
    attempt: int
    state: JobState
    """SUCCEEDED, FAILED or EXPIRED."""
    outcome: bytes
    """A serialized `PredictResponse` if it succeeded, else `google.rpc.Status`."""
    served_version: int


@dataclass(frozen=True, slots=True)
class Release:
    """Makes a RUNNING job PENDING again, by the holder of its claim. Outcome: the `Job`, or `ClaimLost`."""

    id: str
    owner: str
    attempt: int
    delay: float
    """Seconds before it may be claimed again."""
    refund: bool
    """It was not given to an engine: the attempt does not count (`attempt` - 1)."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Makes a job that is not final CANCELLED. Outcome: the `Job` as it is then, or `JobNotFound`."""

    id: str
    tenant: str


@dataclass(frozen=True, slots=True)
class Get:
    """Asks for a job. Outcome: `Found`, or `JobNotFound` (also for another tenant's)."""

    id: str
    tenant: str


class Found(NamedTuple):
    """A job and what came of it."""

    job: Job
    outcome: bytes | None
    """See `Finish.outcome`; None unless it is SUCCEEDED, FAILED or EXPIRED. One that expired while it was PENDING has
    what `Reap` was given."""


@dataclass(frozen=True, slots=True)
class Page:
    """Asks for a tenant's jobs, the newest (largest sequence) first. Outcome: a list of `Job`."""

    tenant: str
    states: Collection[JobState]
    """Empty: any."""
    model: str
    """Empty: any."""
    before: int
    """Only sequences below this; 0: all."""
    limit: int


@dataclass(frozen=True, slots=True)
class Renew:
    """Prolongs an owner's life, or begins it. Outcome: whether it had not ended meanwhile.

    An owner whose life had ended stays dead: it must drop all its claims and go on under another name.
    """

    owner: str
    seconds: float
    """Its life from now on; 0 ends it, so that others need not wait."""


@dataclass(frozen=True, slots=True)
class Reap:
    """Does what time brings, for up to `limit` jobs each. Outcome: a list of the `Job`s that changed.

    * Jobs that are not final and whose time to expire has come, the longest expired first: EXPIRED.
    * RUNNING jobs whose owner's life has ended, by sequence: crashes + 1; PENDING, or FAILED if `attempt` >=
      `max_attempts`.
    """

    limit: int
    max_attempts: int
    expired: bytes
    """The outcome of the former: a serialized `google.rpc.Status`."""
    crashed: bytes
    """The outcome of the latter that FAILED."""


@dataclass(frozen=True, slots=True)
class Purge:
    """Deletes jobs whose time has come and whose webhook is dealt with, the longest due first.

    Outcome: how many (`limit`: perhaps more). Until then a job is there, whatever the time.
    """

    limit: int


class Waiting(NamedTuple):
    """What waits of one flow."""

    flow: Flow
    jobs: int
    """PENDING, those in their delay after a release included."""
    first: int
    """The smallest sequence among them."""
    last: int
    """The largest."""
    ready: float
    """Seconds until the first of them may be claimed; 0: now."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Asks what waits. Outcome: a list of `Waiting`, of flows that have something, sorted by flow."""


@dataclass(frozen=True, slots=True)
class Deliveries:
    """Takes webhook messages that are due, for a while: nobody else gets them in that time.

    There is one for each job with a webhook from the moment at which it becomes final, in the same transaction.
    Outcome: a list of `Delivery`, the longest due first.
    """

    limit: int
    seconds: float
    """For how long."""


class Delivery(NamedTuple):
    """A webhook message to be sent."""

    job: Job
    """As it was when it became final."""
    webhook: Webhook
    tries: int
    """How many times it was taken before."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A webhook message is dealt with: it arrived, or nobody will try again. Outcome: None."""

    id: str
    """The job's."""


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A webhook message did not arrive, and is due again after a while. Outcome: None."""

    id: str
    """The job's."""
    delay: float
    """Seconds."""


Operation = (
    Submit
    | Claim
    | Finish
    | Release
    | Cancel
    | Get
    | Page
    | Renew
    | Reap
    | Purge
    | Backlog
    | Deliveries
    | Delivered
    | Undelivered
)


class ClaimLost(Exception):
    """The job is no longer held by that claim: it was cancelled, has expired, or was taken over. Drop the result."""


Outcome = (
    Submitted
    | Found
    | Job
    | int
    | bool
    | Sequence[Job]
    | Sequence[Claimed]
    | Sequence[Waiting]
    | Sequence[Delivery]
    | JobNotFound
    | JobKeyReused
    | ClaimLost
    | ForebayError
    | None
)
"""What comes of an operation; which of these, its docstring says."""

Changed = Callable[[Collection[str]], None]
"""Told that these jobs (ids) may have changed, or, if empty, that any may have and that there may be new ones."""


class Store(Protocol):
    """Keeps jobs. Blocking; `apply` is called by one thread at a time."""

    name: str
    """`sqlite`, `postgresql` or `memory`."""

    def open(self, changed: Changed) -> None:
        """Opens it, and brings its schema up to date. Also again, after it was closed or could not be opened.

        Args:
            changed: Told, from any thread, of changes that others made. A store that is the server's alone never calls.

        Raises:
            ConfigError: It can't be: unwritable, corrupt, locked by another process, of a newer version, ...
            StoreUnavailable: It does not answer now.
        """

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Carries out a group of operations in one transaction, which is durable at the return.

        Raises:
            StoreFull: There is no room, and nothing has happened. Operations that free room may still work.
            StoreUnavailable: The store does not answer; it is not known whether the group happened.
        """

    def close(self) -> None:
        """Lets go of everything."""
