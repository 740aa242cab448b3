"""Named places at which a test can end the process, as `kill -9` would.

Durability is about the moments between two steps. Each that matters has a name here and a `reach` in the code; armed
(`finish.committed`, or `finish.committed:3` for the third passage) by `arm` or, from the start on, by the environment
variable FOREBAY_FAILPOINT, the process kills itself there. Not armed, a `reach` is a comparison.
"""

import os
import signal
from collections.abc import Mapping
from typing import Final

NAMES: Final[Mapping[str, str]] = {
    "submit.queued": "a submitted job waits for its group",
    "submit.committed": "a submitted job is in the store, its caller does not know",
    "claim.committed": "jobs are claimed, nobody runs them yet",
    "execute.admitted": "a claimed job is in the scheduler",
    "execute.done": "a job has its outcome, in memory only",
    "finish.committed": "an outcome is in the store, nobody was told",
    "release.committed": "a job is back in the queue, nobody was told",
    "group.begun": "a group's transaction has begun",
    "group.applied": "all operations of a group are done, not committed",
    "group.committed": "a group is committed, none of its outcomes is known",
    "payload.written": "a large payload's file is written under a temporary name",
    "payload.renamed": "a large payload's file has its name, its row is not there",
    "reap.committed": "jobs were taken over or have expired, nobody was told",
    "purge.committed": "jobs are deleted, nobody was told",
    "purge.files_left": "what referred to files is deleted, they are still there",
    "purge.file_removed": "one file of a deleted job is gone",
    "renew.committed": "the owner's life is prolonged",
    "webhook.taken": "a message is taken from the outbox",
    "webhook.sent": "a message has arrived, the store does not know",
    "webhook.recorded": "the store knows that a message has arrived",
}
"""Every fail point and what has happened there."""


_name, _left = "", 0


def arm(place: str) -> None:
    """Arms one place instead of the one before: `NAME`, or `NAME:PASSAGE`, counted from now.

    Raises:
        ValueError: There is no such place.
    """
    global _name, _left
    name, _, passage = place.partition(":")
    if name not in NAMES:
        raise ValueError(f"there is no fail point {name!r}")
    _name, _left = name, int(passage or 1)


def reach(name: str) -> None:
    """Ends the process if this place is armed and was reached often enough."""
    global _left  # noqa: PLW0603  # one process, one death
    if name == _name:
        _left -= 1
        if _left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


if os.environ.get("FOREBAY_FAILPOINT"):
    arm(os.environ["FOREBAY_FAILPOINT"])
