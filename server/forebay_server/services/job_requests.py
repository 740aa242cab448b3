"""From a stored request to one that the scheduler runs on the job level, and from its outputs to the stored response.

What was checked when the job was submitted is checked again: the model may be another one by now. Runs in the
dispatcher thread.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from google.protobuf.message import DecodeError

from forebay.v1 import inference_pb2
from forebay_server.errors import ForebayError, InvalidRequest
from forebay_server.jobs.store import Job
from forebay_server.scheduling.events import JOB
from forebay_server.scheduling.request import Batch, Level, Request
from forebay_server.services.codec import Encoder, Outputs
from forebay_server.services.intake import Intake
from forebay_server.services.pending import Completion, Inference
from forebay_server.services.status import CODE_NAMES, internal
from forebay_server.telemetry.tracing import records
from forebay_server.telemetry.tracing.names import OK
from forebay_server.telemetry.tracing.records import Trace
from forebay_server.telemetry.tracing.tracer import Tracer


class Runner(Protocol):
    """Who runs jobs; `jobs.runner.Runner`."""

    def succeeded_all(self, runs: Sequence[Any], responses: Sequence[bytes], version: int) -> None:
        """As `Run.succeeded` for each; all are of one model."""


class Run(Protocol):
    """A job that is to run; `jobs.runs.Run`."""

    job: Job
    payload: bytes
    """A serialized `PredictRequest`."""
    claimed: float
    """When, monotonic seconds."""
    version: int
    """The version that answers; to be set if that happens at once."""

    @property
    def runner(self) -> Runner:
        """Who runs it."""

    def succeeded(self, response: bytes, version: int) -> None:
        """It has its serialized `PredictResponse`, by this version."""

    def failed(self, error: ForebayError) -> None:
        """It has none."""


class JobInference(Inference):
    """A request of a job: `owner` is the decoder."""

    __slots__ = ("run",)

    method = JOB
    run: Run

    together = True

    @classmethod
    def succeed_all(cls, done: list[Completion], outputs: Outputs) -> list[Completion]:
        """Does all jobs of one row whose responses differ in data and id only."""
        rest: list[Completion] = []
        group: list[tuple[JobInference, int]] = []
        encoder: Encoder | None = None
        for completion in done:
            request, row, pieces = completion
            plain = type(request) is cls and pieces is None and request.shapes is None and request.rows == 1
            if not plain or request.report or type(request.trace) is Trace:
                rest.append(completion)
            elif encoder is None or request.encoder is encoder:
                encoder = request.encoder
                group.append((request, row))
            else:
                rest.append(completion)
        rows = None if encoder is None else encoder.rows(outputs)
        if rows is None:
            return done
        before, whole, size = rows
        responses = [before + whole[row * size : (row + 1) * size] + request.tail for request, row in group]
        first, _ = group[0]
        first.run.runner.succeeded_all([request.run for request, _ in group], responses, first.lane.key[1])
        return rest

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
            self._trace(request, self._tracer)
        return request

    def decode_all(self, runs: Sequence[Run], tenant: str, now: float) -> Sequence[Request]:
        """Requests of as many of the first of some jobs without a deadline as differ in their data and id only.

        This takes less than `decode` for each. There may be none: then `decode` has to do it.
        """
        intake = self._intake
        template = intake.match(runs[0].payload)
        if template is None:
            return ()
        bodies = [run.payload for run in runs]
        requests = intake.follow_all(template, JobInference, self, bodies, math.inf, tenant, now, Level.JOB)
        for request, run in zip(requests, runs, strict=False):
            request.run = run
        if self._tracer is not None:
            for request in requests:
                self._trace(request, self._tracer)
        return requests

    def _trace(self, request: JobInference, tracer: Tracer) -> None:
        """Goes on with the trace of whoever submitted the job."""
        request.trace = tracer.resume(request.run.job.traceparent)
        if isinstance(request.trace, Trace):
            request.trace.decoded = self.clock()

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
