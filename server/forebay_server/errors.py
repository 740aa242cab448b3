"""Everything that can go wrong with a request, as the server's own exceptions.

* ForebayError
    * Overloaded                (has `retry_after`)
        * QueueFull
        * BytesLimit
        * TenantQuota
        * StoreFull
    * DeadlineError
        * DeadlineUnreachable
        * DeadlineExpired
    * Unavailable
        * Draining
        * EngineUnavailable
        * EngineRestarted
        * ModelLoading
        * StoreUnavailable
    * NotFound
        * ModelNotFound
        * VersionNotFound
        * JobNotFound
    * JobKeyReused
    * PayloadQuarantined
    * ModelFailed
    * InvalidRequest            (has `violations`)
    * InputRejected
    * Unsupported
    * MessageTooLarge
    * Internal                  (has `error_id`)

A leaf: no gRPC here. `services.status` maps each class to a status code and details; a test keeps that table total.
The text of these exceptions reaches callers. Any other exception becomes `Internal`, whose text is fixed.

`ConfigError` is not a `ForebayError`: it never meets a caller, it ends a command with one sentence.
"""

import secrets
from collections.abc import Sequence
from typing import ClassVar


class ForebayError(Exception):
    """Why a request has no result.

    Attributes:
        reason: The name of an `ErrorReason` of the contract, without its prefix.
        message: A sentence for the caller.
    """

    reason: ClassVar[str]

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Overloaded(ForebayError):
    """Shed. `retry_after` is the time in seconds for the excess to drain."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(Overloaded):
    """The model's queue holds as many rows as it may."""

    reason = "QUEUE_FULL"


class BytesLimit(Overloaded):
    """The bytes held for waiting requests are over the server's budget."""

    reason = "BYTES_LIMIT"


class TenantQuota(Overloaded):
    """The tenant's own part of the queue is full."""

    reason = "TENANT_QUOTA"


class StoreFull(Overloaded):
    """The disk of the job store is full."""

    reason = "STORE_FULL"


class DeadlineError(ForebayError):
    """The deadline can't be met, or was not."""


class DeadlineUnreachable(DeadlineError):
    """Refused at admission: by the cost model, the deadline would pass before the result."""

    reason = "DEADLINE_UNREACHABLE"


class DeadlineExpired(DeadlineError):
    """The deadline passed before the result was there; mostly while the request waited."""

    reason = "DEADLINE_EXPIRED"


class Unavailable(ForebayError):
    """Not here, not now: another replica may answer."""


class Draining(Unavailable):
    """The server is shutting down."""

    reason = "DRAINING"


class EngineUnavailable(Unavailable):
    """The engine has failed or is stuck. `ran`: while it ran the request, which may be the cause."""

    reason = "ENGINE_UNAVAILABLE"

    def __init__(self, message: str, *, ran: bool = False) -> None:
        super().__init__(message)
        self.ran = ran


class EngineRestarted(Unavailable):
    """The engine went away while it ran the request."""

    reason = "ENGINE_RESTARTED"


class ModelLoading(Unavailable):
    """The model is being loaded or warmed up."""

    reason = "MODEL_LOADING"


class StoreUnavailable(Unavailable):
    """The job store does not answer. It is not known whether what was asked of it happened."""

    reason = "STORE_UNAVAILABLE"


class NotFound(ForebayError):
    """There is no such thing."""


class ModelNotFound(NotFound):
    """No model of this name."""

    reason = "MODEL_NOT_FOUND"


class VersionNotFound(NotFound):
    """No such version or label of the model."""

    reason = "VERSION_NOT_FOUND"


class JobNotFound(NotFound):
    """No such job, or somebody else's, or one that was deleted."""

    reason = "JOB_NOT_FOUND"


class JobKeyReused(ForebayError):
    """The idempotency key stands for a job with another payload."""

    reason = "JOB_KEY_REUSED"


class PayloadQuarantined(ForebayError):
    """Each server that ran this job went away before it had finished."""

    reason = "PAYLOAD_QUARANTINED"


class ModelFailed(ForebayError):
    """The model failed to load, or is unloaded."""

    reason = "MODEL_FAILED"


class InvalidRequest(ForebayError):
    """A field is not as the contract or the model's specification wants it.

    Attributes:
        violations: Pairs of a field path, such as `inputs[0].shape` (empty: the message), and a sentence.
    """

    reason = "INVALID_TENSOR"

    def __init__(self, violations: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {sentence}" if field else sentence for field, sentence in violations))
        self.violations = violations


class InputRejected(ForebayError):
    """The model refused this input, with a text of its own for the caller."""

    reason = "INPUT_REJECTED"


class Unsupported(ForebayError):
    """Something that this server or model does not do."""

    reason = "UNSUPPORTED"


class MessageTooLarge(ForebayError):
    """A message over the size limit, or results that nobody reads. Not to be retried."""

    reason = "BYTES_LIMIT"


class Internal(ForebayError):
    """A fault of the server or of a model.

    The text is fixed: what really happened is in the server's log, under `error_id`.
    """

    reason = "INTERNAL"

    def __init__(self, error_id: str | None = None) -> None:
        self.error_id = error_id or secrets.token_hex(8)
        super().__init__(f"internal error {self.error_id}")


class ConfigError(Exception):
    """A command can't go on as it was told to. The text is one clear sentence for the operator."""
