"""From a `SubmitRequest` to a job that a store can take in; what is wrong with it is found here, before it is stored.

The request inside is checked as `Predict` checks it, by the same code, but no queue is chosen for it: it may run much
later, or elsewhere. What is stored are its bytes as they came. They are cut out of the message: a serialized protobuf
message may be put together from serialized parts of it, so if a message begins with its request, what follows is a
`SubmitRequest` of its own without one; should it have one after all, both are merged as the parser does it.

Runs in the dispatcher thread, in a few microseconds for a small request (`bench/micro_codec.py`).
"""

import os
import struct
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import duration_pb2

from forebay.v1 import inference_pb2, job_service_pb2
from forebay_server.errors import InvalidRequest
from forebay_server.jobs.store import Submit, Webhook
from forebay_server.services.framing import MAX_SECONDS, length_at, seconds_of
from forebay_server.services.intake import Intake, priority_of
from forebay_server.services.templates import Template
from forebay_server.services.validation import MAX_REQUEST_ID

if TYPE_CHECKING:
    from _hashlib import HASH

MAX_EXPIRE_AFTER: Final = 10 * 365.25 * 86_400.0
"""Seconds, 10 years: a job that nobody needs before is a mistake."""

Violations = list[tuple[str, str]]
Allowed = Callable[[str, str], tuple[str, str] | None]
"""Why a webhook's target and secret may not be used: the path of the field, and a sentence. None: they may."""

_Submit = job_service_pb2.SubmitRequest
_NO_OPTIONS = _Submit()
_REQUEST_TAG: Final = _Submit(request=inference_pb2.PredictRequest()).SerializeToString()[0]


class Submissions:
    """Reads `SubmitRequest`s.

    Args:
        intake: Who knows the models and their rules.
        default_ttl: Seconds for which an outcome is kept if the caller does not say.
        max_ttl: The longest that a caller can ask for, in seconds; more is cut to it.
        allowed: What webhooks may be.
    """

    def __init__(self, intake: Intake, *, default_ttl: float, max_ttl: float, allowed: Allowed) -> None:
        self._intake = intake
        self._default_ttl = min(default_ttl, max_ttl)
        self._max_ttl = max_ttl
        self._allowed = allowed

    def read(self, body: bytes, tenant: str, traceparent: str = "") -> Submit:
        """The job that a serialized `SubmitRequest` asks for, under a new id.

        Args:
            body: The message.
            tenant: Whose job it will be.
            traceparent: The trace context that its run is to have.

        Raises:
            DecodeError: This is no `SubmitRequest`.
            ForebayError: It can't be taken in.
        """
        payload, options = split_submit(body)
        violations: Violations = []
        request_id = options.request_id
        expire_after = None
        ttl = self._default_ttl
        webhook = None
        if request_id:
            _check_request_id(request_id, violations)
        if options.HasField("expire_after"):
            expire_after = self._expire_after(options.expire_after, violations)
        if options.HasField("ttl"):
            ttl = min(checked_seconds(options.ttl, "ttl", violations, positive=True), self._max_ttl)
        if options.HasField("webhook"):
            webhook = self._webhook(options.webhook.url, options.webhook.secret, violations)

        intake = self._intake
        message: Any = None
        try:
            template = intake.match(payload)
            if template is None:
                message = _parse(payload)
                key = intake.check(message, tenant)
                model, version, priority = message.model, message.version, priority_of(message.priority)
            else:
                key = template.served.key
                model, version, priority = template.model, template.version, template.example.priority
        except InvalidRequest as error:
            inside = [(f"request.{field}" if field else "request", sentence) for field, sentence in error.violations]
            raise InvalidRequest([*inside, *violations]) from None
        if violations:
            raise InvalidRequest(violations)
        outage = intake.outage(key)
        if outage is not None:
            raise outage
        return Submit(
            os.urandom(16).hex(),
            tenant,
            request_id,
            b"" if not request_id else fingerprint(message) if template is None else _like(template, payload),
            model,
            version,
            priority,
            payload,
            expire_after,
            ttl,
            webhook,
            traceparent,
        )

    def _expire_after(self, duration: duration_pb2.Duration, violations: Violations) -> float:
        seconds = checked_seconds(duration, "expire_after", violations, positive=True)
        if seconds > MAX_EXPIRE_AFTER:
            violations.append(("expire_after", "at most 10 years"))
        return seconds

    def _webhook(self, url: str, secret: str, violations: Violations) -> Webhook:
        refusal = self._allowed(url, secret)
        if refusal is not None:
            violations.append(refusal)
        return Webhook(url, secret)


def split_submit(body: bytes) -> tuple[bytes, job_service_pb2.SubmitRequest]:
    """The serialized request of a serialized `SubmitRequest`, and the rest of it.

    The request is not looked at and may be anything, unless it is not one piece at the beginning, as everybody writes
    it; then it is parsed and written anew.

    Raises:
        DecodeError: The message is none.
    """
    if body and body[0] == _REQUEST_TAG:
        try:
            length, start = length_at(body, 1)
        except IndexError:
            length, start = len(body), 1  # it is cut off, and parsing will say so
        end = start + length
        if end == len(body):
            return body[start:], _NO_OPTIONS
        if end < len(body):
            rest = _Submit.FromString(body[end:])
            if not rest.HasField("request"):
                return body[start:end], rest
    whole = _Submit.FromString(body)
    return whole.request.SerializeToString(), whole


def checked_seconds(
    duration: duration_pb2.Duration, field: str, violations: Violations, *, positive: bool = False
) -> float:
    """A duration as seconds, not negative; otherwise what is wrong with it is added to the violations.

    Args:
        duration: The duration.
        field: The path of its field.
        violations: Where to say what is wrong.
        positive: Whether 0 is wrong, too.
    """
    seconds, nanos = duration.seconds, duration.nanos
    if abs(seconds) > MAX_SECONDS or abs(nanos) > 999_999_999 or (seconds > 0 > nanos) or (seconds < 0 < nanos):
        violations.append((field, "is no valid duration"))
        return 0.0
    value = seconds_of(duration)
    if value < 0 or (positive and not value):
        violations.append((field, "must be positive" if positive else "must not be negative"))
    return value


def fingerprint(message: inference_pb2.PredictRequest) -> bytes:
    """32 bytes, equal for requests with equal model, version, inputs, outputs and parameters.

    SHA-256 over a writing of our own: protobuf does not promise the same bytes for the same message from one release to
    the next, and fields that this server does not know must not count. Its head is a Python literal, which can be read
    in one way only and has the length of everything that follows.
    """
    digest = heading(message)
    for tensor in message.inputs:
        if tensor.data:
            digest.update(tensor.data)
        if tensor.numbers:
            digest.update(struct.pack(f"<{len(tensor.numbers)}d", *tensor.numbers))
    return digest.digest()


def heading(message: inference_pb2.PredictRequest) -> "HASH":
    """A SHA-256 that has seen the head of a fingerprint, and not yet data and numbers."""
    head = (
        message.model,
        message.version,
        [
            (
                tensor.name,
                tensor.data_type,
                list(tensor.shape),
                len(tensor.data),
                len(tensor.numbers),
                list(tensor.strings),
            )
            for tensor in message.inputs
        ],
        list(message.outputs),
        sorted(
            (name, kind := str(parameter.WhichOneof("value")), getattr(parameter, kind))
            for name, parameter in message.parameters.items()
        )
        if message.parameters
        else [],
    )
    return sha256(ascii(head).encode())


def _like(template: Template, payload: bytes) -> bytes:
    """The fingerprint of a message that follows a template: only the data of its one input is its own."""
    if template.heading is None:
        template.heading = heading(_parse(payload))
    digest: HASH = template.heading.copy()
    digest.update(payload[template.offset : template.end])
    return digest.digest()


def _check_request_id(request_id: str, violations: Violations) -> None:
    if len(request_id) > MAX_REQUEST_ID:
        violations.append(("request_id", f"at most {MAX_REQUEST_ID} characters, not {len(request_id)}"))
    elif "\0" in request_id:  # no database takes it in a text
        violations.append(("request_id", "must not contain U+0000"))


_parse: Any = inference_pb2.PredictRequest.FromString
