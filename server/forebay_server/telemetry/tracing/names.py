"""All names of spans and their attributes, in one place.

`rpc.*`, `error.type`, `service.*` and the rules for a span's name and status are those of the OpenTelemetry semantic
conventions 1.44 (remote procedure calls). There is none for inference: what begins with `forebay.` is ours.
"""

from typing import Final

SCOPE: Final = "forebay_server"
SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"

# --- Spans --------------------------------------------------------------------------------------------------------

PREDICT: Final = "forebay.v1.InferenceService/Predict"
STREAM: Final = "forebay.v1.InferenceService/StreamPredict"
"""A span of a call has the name of its method."""
ITEM: Final = "forebay.stream.item"
BATCH: Final = "forebay.batch"
JOB: Final = "forebay.job"
WEBHOOK: Final = "forebay.webhook"
LOAD: Final = "forebay.model.load"
READ: Final = "forebay.model.read"
WARM_UP: Final = "forebay.model.warm_up"

# --- Attributes of the conventions --------------------------------------------------------------------------------

RPC_SYSTEM: Final = "rpc.system.name"
GRPC: Final = "grpc"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS: Final = "rpc.response.status_code"
"""The canonical name of the gRPC status code."""
ERROR_TYPE: Final = "error.type"
"""The contract's `ErrorReason`, or the status code if there is none."""
HTTP_METHOD: Final = "http.request.method"
HTTP_STATUS: Final = "http.response.status_code"

# --- Attributes of our own; durations are seconds -----------------------------------------------------------------

MODEL: Final = "forebay.model.name"
VERSION: Final = "forebay.model.version"
ROWS: Final = "forebay.request.rows"
ITEM_ID: Final = "forebay.stream.item.id"
SAMPLED_BY: Final = "forebay.sampled_by"
"""Only on spans that the tail rule has kept: `slow` or `error`."""
DECODE: Final = "forebay.decode.duration"
"""From the arrival of the whole message until the request was built."""
QUEUE: Final = "forebay.queue.duration"
"""From the arrival of the whole message to the start of the (last) batch."""
COLLATE: Final = "forebay.collate.duration"
COMPUTE: Final = "forebay.compute.duration"
ENCODE: Final = "forebay.encode.duration"
"""From the end of the engine's work to the response."""

BATCH_ROWS: Final = "forebay.batch.rows"
BATCH_PADDED_ROWS: Final = "forebay.batch.padded_rows"
BATCH_REQUESTS: Final = "forebay.batch.requests"
"""All of them; those that are not sampled are not linked."""
BATCH_REASON: Final = "forebay.batch.dispatch_reason"
BATCH_PREDICTED: Final = "forebay.batch.predicted.duration"
"""What the cost model expected of the engine."""
INSTANCE: Final = "forebay.instance"

JOB_ID: Final = "forebay.job.id"
JOB_ATTEMPT: Final = "forebay.job.attempt"
JOB_WAIT: Final = "forebay.job.wait.duration"
"""From the submission to the claim, by the store's clock."""
WEBHOOK_TRIES: Final = "forebay.webhook.tries"

# --- Values -------------------------------------------------------------------------------------------------------

OK: Final = "OK"
CANCELLED: Final = "CANCELLED"
DEADLINE_EXCEEDED: Final = "DEADLINE_EXCEEDED"
UNKNOWN: Final = "UNKNOWN"

SERVER_ERRORS: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""Codes with which a SERVER span has the status ERROR, by the conventions for gRPC: the others are the caller's."""
KEPT_ERRORS: Final = (SERVER_ERRORS - {"UNIMPLEMENTED"}) | {"RESOURCE_EXHAUSTED"}
"""Codes that the tail rule keeps: an operator asks what was shed, too."""
