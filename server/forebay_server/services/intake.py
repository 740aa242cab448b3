"""From a `PredictRequest` to a request that the scheduler takes: the one mechanism behind unary calls and stream items.

`Intake.build` resolves the model, checks the message, chooses queue and encoder, and makes an `Inference`, of which
`inference`, `item` and `job_requests` have a subclass each that knows where the answer goes. What depends on the model
version only is worked out once, in a `Plan`. Runs in the dispatcher thread.
"""

import math
import sys
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, Final, TypeVar

from forebay.v1 import inference_pb2
from forebay_server import errors
from forebay_server.errors import ForebayError, MessageTooLarge
from forebay_server.scheduling.events import DONE, JOB, NOBODY, OK, REFUSED
from forebay_server.scheduling.request import Level, Priority
from forebay_server.services.codec import (
    Encoder,
    echoed_id_part,
    parameters_of,
    request_id_part,
)
from forebay_server.services.pending import Inference
from forebay_server.services.ports import Catalogue, Scheduler, Served, Shapes
from forebay_server.services.templates import Template, Templates
from forebay_server.services.validation import Rules, check_name, validate
from forebay_server.wire.port import Metadata, Peer

MAX_SHAPES: Final = 1024
"""Distinct shapes per model version whose queue is remembered."""

Event = tuple[Any, ...]

_PRIORITIES = {priority: int(priority) for priority in Priority}


class Plan:
    """What is known about the requests to one version of a model before any has come."""

    __slots__ = ("_encoders", "_max_response", "encoder", "key", "lanes", "rules", "served")

    def __init__(self, served: Served, max_response: int) -> None:
        self.served = served
        self.key = served.key
        self.rules = Rules(served.spec, reject_nan=served.config.nan == "reject")
        self._max_response = max_response
        self.encoder = Encoder(served.name, served.version, served.spec, max_bytes=max_response)
        """For all outputs, in the fast form."""
        self._encoders: dict[tuple[tuple[int, ...] | None, bool], Encoder] = {}
        self.lanes: dict[Shapes, tuple[Any, Shapes | None]] = {}
        """For requests without parameters, by their shapes: the queue, and the shapes again if they are padded."""

    def encoder_for(self, wanted: tuple[int, ...] | None, *, readable: bool) -> Encoder:
        """The encoder for a choice of outputs."""
        encoder = self._encoders.get((wanted, readable))
        if encoder is None:
            if len(self._encoders) >= MAX_SHAPES:
                self._encoders.clear()
            served = self.served
            encoder = Encoder(
                served.name, served.version, served.spec, wanted, readable=readable, max_bytes=self._max_response
            )
            self._encoders[wanted, readable] = encoder
        return encoder


def priority_of(number: int) -> int:
    """The priority that a number of the contract means; one that nobody knows is the usual one."""
    return _PRIORITIES.get(number, Priority.NORMAL)  # type: ignore[call-overload,no-any-return]  # the contract's number


AnInference = TypeVar("AnInference", bound=Inference)


class Intake:
    """Builds requests. One for all services that take `PredictRequest`s.

    Args:
        catalogue: The models.
        scheduler: Where requests will go.
        clock: Monotonic seconds.
        default_deadline: Seconds for a request that has no deadline.
        max_deadline: Seconds; deadlines beyond are cut to it.
        trusted: For each exposure, whether `tenant_key` is believed there.
        tenant_key: The metadata key that names the tenant.
        max_response: Bytes; requests whose response is known to be larger are refused.
        events: Where refusals before admission are reported (`scheduling.events`).
    """

    def __init__(
        self,
        catalogue: Catalogue,
        scheduler: Scheduler,
        *,
        clock: Callable[[], float],
        default_deadline: float = 30.0,
        max_deadline: float = 3600.0,
        trusted: Sequence[bool] = (),
        tenant_key: str = "x-forebay-tenant",
        max_response: int = sys.maxsize,
        events: list[Event] | None = None,
    ) -> None:
        self.resolve = catalogue.resolve
        self._lane = scheduler.lane
        self.admit = scheduler.admit
        self.admit_alike = scheduler.admit_alike
        self.cancel = scheduler.cancel
        self.outage = scheduler.outage
        self.clock = clock
        self._default_deadline = default_deadline
        self._max_deadline = max_deadline
        self._trusted = tuple(trusted)
        self._tenant_key = tenant_key.lower()
        self._max_response = max_response
        self._events: list[Event] = [] if events is None else events
        self._plans: dict[tuple[str, int], Plan] = {}
        self._templates = Templates()
        self.draining = False
        """Whether new requests are refused."""

    def deadline(self, deadline: float, now: float) -> float:
        """The deadline that counts, for one that a caller gave (`math.inf`: none)."""
        if deadline == math.inf:
            return now + self._default_deadline
        most = now + self._max_deadline
        return deadline if deadline < most else most  # noqa: FURB136  # `min` would be felt

    def tenant(self, peer: Peer | None, metadata: Metadata | None) -> str:
        """Who is calling: by metadata on a trusted exposure, else by certificate, else nobody in particular."""
        if metadata is None or peer is None:
            return "" if peer is None else peer.identity or ""
        if peer.exposure < len(self._trusted) and self._trusted[peer.exposure]:
            # A proxy that adds its own header after a forged one is believed: the last counts.
            for key, value in reversed(metadata):
                if key == self._tenant_key and isinstance(value, str):
                    return value
        return peer.identity or ""

    def match(self, body: bytes) -> Template | None:
        """The template that a serialized message follows; None if it has to be parsed."""
        template = self._templates.match(body)
        return template if template is not None and self.holds(template) else None

    def holds(self, template: Template) -> bool:
        """Whether name and version of a template still mean what they meant; if not, all templates are forgotten."""
        try:
            if self.resolve(template.model, template.version) is template.served:
                return True
        except ForebayError:
            pass  # the usual way will say why
        self._templates.clear()
        return False

    def follow(
        self,
        template: Template,
        kind: type[AnInference],
        owner: Any,
        ident: int,
        body: bytes,
        deadline: float,
        tenant: str,
        now: float,
    ) -> AnInference:
        """Makes a request of a serialized message that follows a template; otherwise as `build`."""
        like = template.example
        return kind(
            like.lane,
            like.rows,
            like.nbytes,
            deadline,
            [body[template.offset : template.end]],
            now,
            tenant,
            like.priority,
            like.shapes,
            like.parameters,
            like.encoder,
            echoed_id_part(body, template.end) if template.id_length else like.tail,
            like.report,
            owner,
            ident,
        )

    def follow_all(
        self,
        template: Template,
        kind: type[AnInference],
        owner: Any,
        bodies: Sequence[bytes],
        deadline: float,
        tenant: str,
        now: float,
        level: Level,
    ) -> list[AnInference]:
        """Makes requests of as many of the first of some serialized messages as follow a template; as `follow`."""
        count = template.leading(bodies)
        if count < len(bodies):
            bodies = bodies[:count]
        offset, end = template.offset, template.end
        requests = kind.many(
            template.example,
            repeat(0, count),
            [(body[offset:end],) for body in bodies],
            owner=owner,
            deadline=deadline,
            tenant=tenant,
            arrival=now,
            level=level,
        )
        if template.id_length:
            for request, body in zip(requests, bodies, strict=True):
                request.tail = echoed_id_part(body, end)
        return requests

    def learn(self, body: bytes, message: inference_pb2.PredictRequest, request: Inference) -> None:
        """Has later messages like this one follow a template, if they can.

        Args:
            body: A serialized message.
            message: The same, parsed.
            request: What `build` made of it.
        """
        if not request.rows or len(request.inputs) != 1 or not self._templates.worthwhile(body):
            return
        plan = self._plan(message.model, message.version)
        (data,) = request.inputs
        rule = plan.rules.inputs[0]
        if not rule.item or rule.inspect:
            return
        example = Inference(
            request.lane,
            request.rows,
            request.nbytes,
            0.0,
            (),
            0.0,
            "",
            request.priority,
            request.shapes,  # type: ignore[arg-type]  # as it was given
            request.parameters,
            request.encoder,
            request.tail,
            request.report,
            None,
            0,
        )
        plain = request.rows == 1 and request.shapes is None and not request.tail and not request.report
        self._templates.learn(body, data, message, plan.served, example, plain=plain)

    def build(
        self,
        kind: type[AnInference],
        owner: Any,
        ident: int,
        message: inference_pb2.PredictRequest,
        deadline: float,
        tenant: str,
        now: float,
    ) -> AnInference:
        """Makes a request of a message. One without rows has `rows` 0 and must not be admitted.

        Args:
            kind: The class to make.
            owner: Given to the request.
            ident: Given to the request.
            message: What the caller sent.
            deadline: The one that counts, absolute.
            tenant: Who is calling.
            now: When the message was taken.

        Raises:
            ForebayError: The request can't be run.
        """
        plan: Plan | None = None
        try:
            plan = self._plan(message.model, message.version)
            rows, shapes, inputs, nbytes, wanted = validate(message, plan.rules)
            encoder = plan.encoder
            readable = message.readable
            if readable or wanted is not None:
                encoder = plan.encoder_for(wanted, readable=readable)
            if rows > encoder.most_rows:
                raise self._too_large(rows)
            request_id = message.request_id
            parameters = parameters_of(message)
            found = plan.lanes.get(shapes) if parameters is None else None
            if found is None:
                found = self._find_lane(plan, shapes, parameters) if rows else (None, None)
            lane, padded = found
        except ForebayError as error:
            self.refused(kind.method, error, tenant, plan)
            raise
        if not rows:
            self._events.append((DONE, plan.key, kind.method, OK, 0.0, 0.0))
        return kind(
            lane,
            rows,
            nbytes,
            deadline,
            inputs,
            now,
            tenant,
            _PRIORITIES.get(message.priority, Priority.NORMAL),  # type: ignore[call-overload]  # the contract's number
            padded,
            parameters,
            encoder,
            request_id_part(request_id) if request_id else b"",
            message.report_timings,
            owner,
            ident,
        )

    def check(self, message: inference_pb2.PredictRequest, tenant: str = "") -> tuple[str, int]:
        """Checks a message as `build` does, for a job that is made of it later.

        Args:
            message: What the caller sent.
            tenant: Who is calling.

        Returns:
            The model version that would run it now.

        Raises:
            ForebayError: It could not be run.
        """
        plan: Plan | None = None
        try:
            plan = self._plan(message.model, message.version)
            rows, shapes, _, _, wanted = validate(message, plan.rules)
            if rows > plan.encoder_for(wanted, readable=message.readable).most_rows:
                raise self._too_large(rows)
            if rows:
                plan.served.bucket_of(shapes)
        except ForebayError as error:
            self.refused(JOB, error, tenant, plan)
            raise
        return plan.key

    def refused(self, method: int, error: ForebayError, tenant: str, plan: Plan | None = None) -> None:
        """Leaves a trace of a request that did not come as far as admission.

        Args:
            method: `Request.method` of what it would have become.
            error: Why.
            tenant: Who is calling.
            plan: Of the model version that it is for, if that is known.
        """
        self._events.append((REFUSED, NOBODY if plan is None else plan.key, method, error.reason, tenant))

    def _too_large(self, rows: int) -> MessageTooLarge:
        return MessageTooLarge(f"the response to {rows} rows is larger than {self._max_response} bytes")

    def _find_lane(self, plan: Plan, shapes: Shapes, parameters: Any) -> tuple[Any, Shapes | None]:
        """The queue for some shapes and parameters, and the shapes again if they have to be padded.

        Raises:
            ForebayError: There is none for them.
        """
        bucket = plan.served.bucket_of(shapes)
        lane = self._lane(plan.key, bucket, parameters)
        if isinstance(lane, ForebayError):
            raise lane
        found = (lane, None if bucket == shapes else shapes)
        if parameters is None:
            # One that the core forgets when it is idle may stay here: `admit` finds or makes its successor.
            if len(plan.lanes) >= MAX_SHAPES:
                plan.lanes.clear()
            plan.lanes[shapes] = found
        return found

    def _plan(self, name: str, version: str) -> Plan:
        try:
            served = self.resolve(name, version)
        except errors.NotFound:
            check_name(name, version)
            raise
        plan = self._plans.get(served.key)
        if plan is None or plan.served is not served:
            plan = self._plans[served.key] = Plan(served, self._max_response)
        return plan

    def forget(self, key: tuple[str, int]) -> None:
        """Drops what is remembered of a model version that is gone."""
        self._plans.pop(key, None)
        self._templates.clear()
