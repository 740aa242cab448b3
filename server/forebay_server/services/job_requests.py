"""From a stored request to one that the scheduler runs on the job level, and from its outputs to the stored response.

What was checked when the job was submitted is checked again: the model may be another one by now. Runs in the
dispatcher thread.
"""

from collections.abc import Callable
from typing import Any, Protocol

from google.protobuf.message import DecodeError

from forebay.v1 import inference_pb2
from forebay_server.errors import ForebayError, InvalidRequest
from forebay_server.jobs.store import Job
from forebay_server.scheduling.events import JOB
from forebay_server.scheduling.request import Batch, Level, Request
from forebay_server.services.codec import Outputs
from forebay_server.services.intake import Intake
from forebay_server.services.pending import Inference
from forebay_server.services.status import CODE_NAMES, internal
from forebay_server.telemetry.tracing import records
from forebay_server.telemetry.tracing.names import OK
from forebay_server.telemetry.tracing.records import Trace
from forebay_server.telemetry.tracing.tracer import Tracer


class Run(Protocol):
    """A job that is to run; `jobs.runner.Run`."""

    job: Job
    claimed: float
    """When, monotonic seconds."""
    version: int
    """The version that answers; to be set if that happens at once."""

    def succeeded(self, response: bytes, version: int) -> None:
        """It has its serialized `PredictResponse`, by this version."""

    def failed(self, error: ForebayError) -> None:
        """It has none."""


class JobInference(Inference):
    """A request of a job: `owner` is the decoder."""

    __slots__ = ("run",)

    method = JOB
    run: Run

    def succeed(self, outputs: Outputs, start: int, batch: Batch) -> None:
        """Gives the job its response."""
        run = self.run
        try:
            response = self.response(outputs, start, batch, self.owner.clock)
        except ForebayError as error:
            self.fail(error)
        except Exception as error:  # noqa: BLE001  # whatever an engine's outputs may lead to, the others go on
            self.fail(internal(error, method="Submit"))
        else:
            self.owner.ended(self, run)
            run.succeeded(response, self.lane.key[1])

    def fail(self, error: ForebayError) -> None:
        """Tells the job that it has none."""
        self.owner.ended(self, self.run, error.reason)
        self.run.failed(error)


class JobDecoder:
    """Makes requests of stored ones; a `jobs.runner.Decoder`.

    Args:
        intake: Builds requests.
        tracer: Who keeps what becomes spans; None: nobody.
    """

    def __init__(self, intake: Intake, tracer: Tracer | None = None) -> None:
        self._intake = intake
        self._tracer = tracer
        self.clock: Callable[[], float] = intake.clock

    def decode(self, payload: bytes, tenant: str, deadline: float, now: float, run: Run) -> Request | bytes:
        """A request to be admitted, or the response at once for one without rows.

        Args:
            payload: A serialized `PredictRequest`.
            tenant: Whose job it is.
            deadline: Absolute monotonic seconds; `math.inf` without one.
            now: Monotonic seconds.
            run: Told what comes of it.

        Raises:
            ForebayError: It can't be run.
        """
        intake = self._intake
        template = intake.match(payload)
        if template is not None:
            request = intake.follow(template, JobInference, self, 0, payload, deadline, tenant, now)
        else:
            try:
                message = _parse(payload)
            except DecodeError:
                raise InvalidRequest([("request", "the stored message can't be parsed")]) from None
            request = intake.build(JobInference, self, 0, message, deadline, tenant, now)
            if not request.rows:
                run.version = intake.resolve(message.model, message.version).version
                return request.encoder.empty(request.tail)
            intake.learn(payload, message, request)
        request.level = Level.JOB
        request.run = run
        if self._tracer is not None:
            request.trace = self._tracer.resume(run.job.traceparent)
            if isinstance(request.trace, Trace):
                request.trace.decoded = self.clock()
        return request

    def ended(self, request: JobInference, run: Run, reason: str = "") -> None:
        """An attempt has ended; `reason` is that of the error, empty if it went well."""
        if self._tracer is None:
            return
        job = run.job
        wait = 0.0 if job.started is None else job.started - job.created
        code = CODE_NAMES[reason] if reason else OK
        what = (job.id, job.attempt, wait)
        self._tracer.ended(request.trace, records.JOB, run.claimed, what, code, reason, request.lane.key, request.rows)


_parse: Any = inference_pb2.PredictRequest.FromString
