"""`forebay.v1.InferenceService`: unary `Predict` here, `StreamPredict` in `services.streams`.

Handlers parse a message once, build a request (`services.intake`) and admit it. The answer comes later, through the
request's `succeed` or `fail`, and is appended to the outbox. Everything runs in the dispatcher thread.

The dispatcher calls `flush` at the end of each of its turns, before it hands the outbox to the wire.
"""

from typing import Any

from google.protobuf.message import DecodeError

from forebay.v1 import inference_pb2, inference_service_pb2
from forebay_server import errors
from forebay_server.errors import ForebayError
from forebay_server.scheduling.request import Batch
from forebay_server.services.codec import Outputs
from forebay_server.services.complaints import Complaints
from forebay_server.services.intake import Intake
from forebay_server.services.pending import Inference
from forebay_server.services.service import Endpoint, Outbox, Service
from forebay_server.services.status import CODE_NAMES, failure, internal
from forebay_server.services.streams import Streams
from forebay_server.telemetry.tracing.names import OK, PREDICT
from forebay_server.telemetry.tracing.records import CALL
from forebay_server.telemetry.tracing.tracer import Mark, Tracer, decoded
from forebay_server.wire.port import FAIL, RESPOND, Event, Metadata, Method, MethodKind

NAME: str = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
"""Asked of the contract, which thereby is known to reflection."""

_MALFORMED = errors.InvalidRequest([("", "the message can't be parsed as a PredictRequest")])
MALFORMED = failure(_MALFORMED)
_DRAINING = errors.Draining("the server is shutting down")
DRAINING = failure(_DRAINING)


class UnaryInference(Inference):
    """A request of a unary call: `ident` is the call, `owner` the service."""

    __slots__ = ("metadata",)

    metadata: Metadata | None
    """Of the call."""

    def succeed(self, outputs: Outputs, start: int, batch: Batch) -> None:
        """Answers the call with the response."""
        owner = self.owner
        call = self.ident
        owner.calls.pop(call, None)
        try:
            owner.outbox.append((RESPOND, call, self.response(outputs, start, batch, owner.clock)))
        except ForebayError as error:
            self._failed(error)
        except Exception as error:  # noqa: BLE001  # whatever an engine's outputs may lead to, the others go on
            self._failed(internal(error, method="Predict"))
        else:
            if self.trace is not None:
                owner.tracer.answered(self, PREDICT)

    def fail(self, error: ForebayError) -> None:
        """Answers the call with the error."""
        self.owner.calls.pop(self.ident, None)
        self._failed(error)

    def _failed(self, error: ForebayError) -> None:
        owner = self.owner
        owner.outbox.append((FAIL, self.ident, failure(error)))
        owner.complaints.failed(error, "Predict", self, self.metadata)
        if owner.tracer is not None:
            owner.tracer.failed(self, PREDICT, error.reason)


class InferenceService:
    """Inference over gRPC.

    Args:
        intake: Builds requests.
        outbox: Where answers go.
        stream_window: Items in flight on one stream.
        max_send_bytes: The largest message that the wire sends.
        complaints: Told of requests that were refused or have failed.
        tracer: Who keeps what becomes spans; None: nobody.
    """

    def __init__(
        self,
        intake: Intake,
        outbox: Outbox,
        *,
        stream_window: int = 256,
        max_send_bytes: int = 16 << 20,
        complaints: Complaints | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._intake = intake
        self.outbox = outbox
        self.tracer = tracer
        self.clock = intake.clock
        self.complaints = complaints or Complaints(intake.clock)
        self.calls: dict[int, UnaryInference] = {}
        """Unary calls that wait for their answer."""
        self.streams = Streams(
            intake,
            outbox,
            window=stream_window,
            max_send_bytes=max_send_bytes,
            complaints=self.complaints,
            tracer=tracer,
        )
        self.flush = self.streams.flush
        """Sends the results that streams have gathered. To be called at the end of each turn of the dispatcher."""

    def service(self) -> Service:
        """The service for the dispatcher."""
        streams = self.streams
        return Service(
            name=NAME,
            endpoints=[
                Endpoint(
                    method=Method(path=f"/{NAME}/Predict", kind=MethodKind.UNARY),
                    on_call=self.predict,
                    on_cancel=self.cancel,
                ),
                Endpoint(
                    method=Method(path=f"/{NAME}/StreamPredict", kind=MethodKind.BIDI_STREAM),
                    on_call=streams.opened,
                    on_message=streams.message,
                    on_half_close=streams.half_closed,
                    on_cancel=streams.cancelled,
                    on_writable=streams.writable,
                    on_full=streams.full,
                ),
            ],
        )

    def drain(self, grace: float) -> None:
        """Refuses new requests from now on, and tells the open streams.

        Args:
            grace: Seconds for which accepted requests are waited for.
        """
        self._intake.draining = True
        self.streams.drain(grace)

    def in_flight(self) -> int:
        """Requests whose answers are still due, calls and stream items together."""
        return len(self.calls) + self.streams.in_flight()

    def predict(self, event: Event) -> None:
        """CALL on `Predict`."""
        _, call, _, body, deadline, peer, metadata = event
        intake = self._intake
        mark = None if self.tracer is None else self.tracer.begin(metadata)
        now = self.clock()
        if intake.draining:
            self.outbox.append((FAIL, call, DRAINING))
            self.complaints.refused(_DRAINING, "Predict", message=body, metadata=metadata)
            intake.refused(UnaryInference.method, _DRAINING, intake.tenant(peer, metadata))
            self._ended(mark, now, errors.Draining.reason)
            return
        tenant = ""
        try:
            deadline = intake.deadline(deadline, now)
            tenant = intake.tenant(peer, metadata)
            body = body or b""
            template = intake.match(body)
            if template is not None:
                request = intake.follow(template, UnaryInference, self, call, body, deadline, tenant, now)
            else:
                message = _parse(body)
                request = intake.build(UnaryInference, self, call, message, deadline, tenant, now)
                intake.learn(body, message, request)
            request.metadata = metadata
            if mark is not None:
                decoded(request, mark, self.clock())
            if request.rows:
                refusal = intake.admit(request, now)
                if refusal is None:
                    self.calls[call] = request
                else:
                    self._refuse(request, refusal)
            else:
                self.outbox.append((RESPOND, call, request.encoder.empty(request.tail)))
                self._ended(mark, now, "")
        except ForebayError as error:
            self.outbox.append((FAIL, call, failure(error)))
            self.complaints.refused(error, "Predict", message=body, metadata=metadata)
            self._ended(mark, now, error.reason)
        except DecodeError:
            self.outbox.append((FAIL, call, MALFORMED))
            self.complaints.refused(_MALFORMED, "Predict", metadata=metadata)
            intake.refused(UnaryInference.method, _MALFORMED, tenant)
            self._ended(mark, now, errors.InvalidRequest.reason)
        except Exception as error:  # noqa: BLE001  # nothing that one message does may stop the dispatcher
            self.outbox.append((FAIL, call, failure(internal(error, method="Predict"))))
            self._ended(mark, now, errors.Internal.reason)

    def _refuse(self, request: UnaryInference, error: ForebayError) -> None:
        """The scheduler does not take a request."""
        self.outbox.append((FAIL, request.ident, failure(error)))
        self.complaints.refused(error, "Predict", request=request, metadata=request.metadata)
        if self.tracer is not None:
            self.tracer.failed(request, PREDICT, error.reason)

    def _ended(self, mark: Mark, began: float, reason: str) -> None:
        """A call has ended without a request for the scheduler."""
        if self.tracer is not None:
            self.tracer.ended(mark, CALL, began, PREDICT, CODE_NAMES[reason] if reason else OK, reason)

    def cancel(self, event: Event) -> None:
        """CANCEL on `Predict`."""
        request = self.calls.pop(event[1], None)
        if request is not None:
            self._intake.cancel(request, self.clock())
            if self.tracer is not None:
                self.tracer.cancelled(request, PREDICT)


_parse: Any = inference_pb2.PredictRequest.FromString
