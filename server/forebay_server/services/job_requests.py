"""From a stored request to one that the scheduler runs on the job level, and from its outputs to the stored response.

What was checked when the job was submitted is checked again: the model may be another one by now. Runs in the
dispatcher thread.
"""

from collections.abc import Callable
from typing import Any, Protocol

from google.protobuf.message import DecodeError

from forebay.v1 import inference_pb2
from forebay_server.errors import ForebayError, InvalidRequest
from forebay_server.scheduling.events import JOB
from forebay_server.scheduling.request import Batch, Level, Request
from forebay_server.services.codec import Outputs
from forebay_server.services.intake import Intake
from forebay_server.services.pending import Inference
from forebay_server.services.status import internal


class Run(Protocol):
    """A job that is to run; `jobs.runner.Run`."""

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
            run.failed(error)
        except Exception as error:  # noqa: BLE001 - whatever an engine's outputs may lead to, the others go on
            run.failed(internal(error, method="Submit"))
        else:
            run.succeeded(response, self.lane.key[1])

    def fail(self, error: ForebayError) -> None:
        """Tells the job that it has none."""
        self.run.failed(error)


class JobDecoder:
    """Makes requests of stored ones; a `jobs.runner.Decoder`.

    Args:
        intake: Builds requests.
    """

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
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
        return request


_parse: Any = inference_pb2.PredictRequest.FromString
