"""Where a job may be in its life, and where it may go from there.

Theory
------
A job is a row in a store that survives every process. It runs *at least once*, and its outcome becomes visible *exactly
once*. Three rules give that:

* **Durable first.** A job is acknowledged when it is on disk. That it is about to run, and for which time, is on disk
  before it is given to an engine, so that a job which brings its server down is recognised by what it leaves behind.
* **Claims.** A server that runs a job holds a claim on it: (owner, attempt). The owner is one process, under a random
  name that is never used again, and its life is renewed as long as it runs. No other owner takes the job while that
  life lasts. Once it has ended, any owner may take the job over; the old claim is worth nothing from then on, even if
  its holder turns up again.
* **Compare and set.** Every transition names the state, and for one out of RUNNING by its runner the claim, that it
  starts from, and happens only if they still hold; outcome and state are written in one transaction. So of two that
  finish the same job, one wins, and the other's result is dropped.

Who makes a transition: *anyone* (the job's tenant, or time) may cancel or expire what is not final; only the *holder*
of the claim may finish or release a job; only a *claim* makes it run, and only of a PENDING one; a *takeover* is for
jobs whose owner is gone.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Final


class JobState(IntEnum):
    """Numbered as in the contract."""

    PENDING = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELLED = 5
    EXPIRED = 6


TRANSITIONS: Final[Mapping[JobState, Mapping[JobState, str]]] = {
    JobState.PENDING: {
        JobState.RUNNING: "claim",
        JobState.CANCELLED: "anyone",
        JobState.EXPIRED: "anyone",
    },
    JobState.RUNNING: {
        JobState.PENDING: "holder, takeover",  # No room, no engine, or draining; or the owner is gone.
        JobState.SUCCEEDED: "holder",
        JobState.FAILED: "holder, takeover",  # A takeover after the last attempt.
        JobState.CANCELLED: "anyone",
        JobState.EXPIRED: "anyone, holder",
    },
    JobState.SUCCEEDED: {},
    JobState.FAILED: {},
    JobState.CANCELLED: {},
    JobState.EXPIRED: {},
}
"""From each state, the states that may follow and who may cause it. A job comes into being as PENDING."""

FINAL: Final = frozenset(state for state, following in TRANSITIONS.items() if not following)
"""States that nothing follows."""
