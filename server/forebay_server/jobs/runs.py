"""What is known of jobs that are claimed here: each of them, and what they are together for a model."""

from collections.abc import Sequence
from math import inf
from typing import Protocol

from forebay_server.errors import ForebayError
from forebay_server.jobs.lives import Owner
from forebay_server.jobs.pending import flow_of
from forebay_server.jobs.store import Job
from forebay_server.scheduling.figures import Pace
from forebay_server.scheduling.request import Request


class Told(Protocol):
    """Who hears how a run has ended."""

    def succeeded(self, run: "Run", response: bytes, version: int) -> None:
        """It has its result."""

    def succeeded_all(self, runs: "Sequence[Run]", responses: Sequence[bytes], version: int) -> None:
        """They have their results, serialized `PredictResponse`s; all are of one model."""

    def failed(self, run: "Run", error: ForebayError) -> None:
        """It has none."""


class Run:
    """A claimed job, on its way to its end."""

    __slots__ = ("claimed", "course", "ended", "job", "owner", "payload", "request", "runner", "version")

    def __init__(self, runner: Told, course: "Course", owner: Owner, job: Job, payload: bytes, claimed: float) -> None:
        self.runner = runner
        self.course = course
        self.owner = owner
        self.job = job
        self.payload = payload
        self.claimed = claimed
        """When it was, monotonic seconds."""
        self.request: Request | None = None
        """Once it is in the scheduler."""
        self.ended = False
        """It has its end here; the store may not know."""
        self.version = 0
        """The model version that ran."""

    @property
    def alone(self) -> bool:
        """Whether it must not share a batch."""
        return flow_of(self.job).suspect

    @property
    def nbytes(self) -> int:
        """What it holds."""
        return len(self.payload) if self.request is None else self.request.nbytes

    def succeeded(self, response: bytes, version: int) -> None:
        """It has its result: a serialized `PredictResponse`."""
        self.runner.succeeded(self, response, version)

    def failed(self, error: ForebayError) -> None:
        """It has no result."""
        self.runner.failed(self, error)


class Lot:
    """Jobs that one claim has brought, as far as they are not in the scheduler."""

    __slots__ = ("course", "next", "runs", "tenant")

    def __init__(self, course: "Course", runs: Sequence[Run]) -> None:
        self.course = course
        self.runs = runs
        self.next = 0
        """The first that is not."""
        self.tenant = runs[0].job.tenant
        """All are of one flow."""


class Course:
    """What is claimed of one model."""

    __slots__ = ("asked", "held", "model", "pace", "pace_at", "pause", "resume_at", "rows_per_job", "served")

    def __init__(self, model: str) -> None:
        self.model = model
        self.served = True
        self.held = 0
        """Jobs that are claimed and have not ended."""
        self.asked = 0
        """Jobs that claims on their way may bring."""
        self.rows_per_job = 1.0
        self.pause = 0.0
        """Seconds of the last pause; 0 after a success."""
        self.resume_at = 0.0
        """Nothing is claimed before."""
        self.pace: Pace | None = None
        self.pace_at = -inf
