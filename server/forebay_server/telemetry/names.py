"""All names under which things are counted and measured: units, labels and what they mean, in one place.

Each label has a bounded set of values, which `LABELS` describes: no caller can make a new one. docs/metrics.md is made
from here. What spans are called is in `tracing.names`.
"""

from typing import Final

from forebay_server.telemetry.metric import Metric, counter, durations, gauge, ratios, sizes

OTHER: Final = "other"
"""The label value of whatever has no name of its own."""
UNKNOWN: Final = "UNKNOWN"
"""The reason, and the status code, of an outcome that nobody has named."""

_MODEL: Final = ("model", "version")

# --- Requests -----------------------------------------------------------------------------------------------------

REQUESTS: Final = counter(
    "forebay.requests",
    "{request}",
    "Inference requests that have ended: calls of Predict, items of StreamPredict, runs of jobs.",
    labels=(*_MODEL, "method", "code", "reason"),
)
REQUEST_DURATION: Final = durations(
    "forebay.request.duration", "From the arrival of an accepted request to its outcome.", labels=(*_MODEL, "method")
)
QUEUE_DURATION: Final = durations(
    "forebay.queue.duration",
    "From the arrival of an accepted request until its batch starts, or until it ends without one.",
    labels=_MODEL,
)
REFUSALS: Final = counter(
    "forebay.refusals",
    "{request}",
    "Requests that were not accepted. They are among forebay_requests_total, too.",
    labels=(*_MODEL, "reason"),
)
TENANT_REFUSALS: Final = counter(
    "forebay.tenant.refusals", "{request}", "Requests that were not accepted, by tenant.", labels=("tenant",)
)
TENANT_QUEUED: Final = gauge(
    "forebay.tenant.queue.rows", "{row}", "Rows of online requests that wait, by tenant.", labels=("tenant",)
)

# --- Batches and engines ------------------------------------------------------------------------------------------

COMPUTE_DURATION: Final = durations("forebay.compute.duration", "Time of a batch in the engine.", labels=_MODEL)
BATCHES: Final = counter(
    "forebay.batches", "{batch}", "Batches that have run, by the reason of their start.", labels=(*_MODEL, "reason")
)
BATCH_ROWS: Final = sizes("forebay.batch.rows", "{row}", "Rows of a batch, without padding.", labels=_MODEL)
BATCH_REQUESTS: Final = sizes("forebay.batch.requests", "{request}", "Requests in a batch.", labels=_MODEL)
PADDED_ROWS: Final = counter(
    "forebay.padding.rows",
    "{row}",
    "Rows that were added to batches as padding: engine time that nobody asked for.",
    labels=_MODEL,
)
PREDICTION: Final = ratios(
    "forebay.compute.prediction",
    "Time of a batch in the engine over the time that the cost model predicted.",
    labels=_MODEL,
)
ENGINE_BUSY: Final = counter(
    "forebay.engine.busy",
    "s",
    "Time in which instances ran batches, all instances of the version together.",
    labels=_MODEL,
)
INSTANCES: Final = gauge("forebay.instances", "{instance}", "Instances of the engine.", labels=_MODEL)
USABLE_INSTANCES: Final = gauge(
    "forebay.instances.usable", "{instance}", "Instances that are neither stuck nor lost.", labels=_MODEL
)
RUNNING_BATCHES: Final = gauge("forebay.batches.running", "{batch}", "Batches in an engine now.", labels=_MODEL)
QUEUED_ROWS: Final = gauge("forebay.queue.rows", "{row}", "Rows that wait.", labels=_MODEL)
QUEUE_LANES: Final = gauge(
    "forebay.queue.lanes", "{lane}", "Distinct shapes and parameters with a queue of their own.", labels=_MODEL
)
HELD_BYTES: Final = gauge("forebay.queue.held", "By", "Bytes of requests that wait or run.", labels=_MODEL)
WAIT_MARGIN: Final = gauge(
    "forebay.queue.wait.margin",
    "1",
    "How much longer requests wait than was predicted, as a factor. Admission reckons with it.",
    labels=_MODEL,
)
READY: Final = gauge("forebay.model.ready", "{model}", "1 if the version is loaded and serves, else 0.", labels=_MODEL)

# --- The server ---------------------------------------------------------------------------------------------------

BUILD: Final = gauge(
    "forebay.build.info",
    "{server}",
    "1, with the version of the server and the name of its front end.",
    labels=("version", "front_end"),
)
SERVING: Final = gauge("forebay.serving", "{server}", "1 if health says SERVING for the server as a whole, else 0.")
SERVER_HELD: Final = gauge(
    "forebay.server.held",
    "By",
    "Bytes of requests that wait or run, all models together, and of messages in the front end.",
)
SERVER_HELD_LIMIT: Final = gauge("forebay.server.held.limit", "By", "What limits.max_held_mib allows.")
TURN_DURATION: Final = durations(
    "forebay.dispatcher.turn.duration",
    "Turns of the dispatcher, waiting for events left out: how long an event waits at most until it is seen.",
)
LAG: Final = gauge(
    "forebay.dispatcher.lag", "s", "How long the dispatcher took to come to the question for these figures."
)
SNAPSHOT: Final = gauge(
    "forebay.telemetry.snapshot", "s", "The longest that gathering these figures has kept the dispatcher at a time."
)
EXPORTS: Final = counter(
    "forebay.telemetry.exports",
    "{export}",
    "Exports of metrics to an OpenTelemetry collector: sent or failed.",
    labels=("outcome",),
)
SPANS: Final = counter(
    "forebay.telemetry.spans",
    "{span}",
    "Spans: exported, dropped (the queue was full or the collector late), or suppressed (the tail rule's limit).",
    labels=("outcome",),
)
SPANS_QUEUED: Final = gauge("forebay.telemetry.spans.queued", "{span}", "Spans that wait to be sent.")
CALLS: Final = counter(
    "forebay.calls",
    "{call}",
    "Calls that have ended of all RPCs but Predict and StreamPredict.",
    labels=("rpc", "code"),
)
CALL_DURATION: Final = durations(
    "forebay.call.duration", "From the arrival to the end of such calls, streams and waiting included.", labels=("rpc",)
)

# --- The front end ------------------------------------------------------------------------------------------------

CONNECTIONS: Final = gauge("forebay.wire.connections", "{connection}", "Open connections.")
CONNECTIONS_ACCEPTED: Final = counter(
    "forebay.wire.connections.accepted", "{connection}", "Connections that were accepted."
)
WIRE_CALLS: Final = gauge("forebay.wire.calls", "{call}", "Open calls of all RPCs.")
WIRE_CALLS_BEGUN: Final = counter("forebay.wire.calls.begun", "{call}", "Calls of all RPCs that have begun.")
WIRE_REFUSED: Final = counter(
    "forebay.wire.calls.refused",
    "{call}",
    "Calls that the front end refused by itself: unknown methods, too large messages, deadlines, slow readers.",
)
STREAMS: Final = gauge("forebay.wire.streams", "{stream}", "Open StreamPredict streams.")
RECEIVED: Final = counter("forebay.wire.received", "By", "Bytes of request messages.")
SENT: Final = counter("forebay.wire.sent", "By", "Bytes of response messages.")
WIRE_HELD: Final = gauge(
    "forebay.wire.held", "By", "Bytes of messages that have arrived in part, or that the dispatcher has not taken."
)

# --- Jobs ---------------------------------------------------------------------------------------------------------

JOBS: Final = gauge(
    "forebay.jobs",
    "{job}",
    "Jobs that are not final: pending in the store, as it said last; running here.",
    labels=("state",),
)
JOBS_OLDEST: Final = gauge(
    "forebay.jobs.oldest", "s", "How long, at least, the job that was submitted first of those that wait has waited."
)
JOBS_LIMIT: Final = gauge("forebay.jobs.pending.limit", "{job}", "What jobs.max_pending allows.")
JOBS_SUBMITTED: Final = counter("forebay.jobs.submitted", "{job}", "Jobs that were taken in here.")
JOBS_ENDED: Final = counter(
    "forebay.jobs.ended", "{job}", "Jobs that were given their end by this server.", labels=("state",)
)
JOB_WAIT: Final = durations(
    "forebay.job.wait.duration", "From the submission of a job to its claim, each time that it is claimed here."
)
JOB_AGE: Final = durations(
    "forebay.job.duration",
    "From the submission of a job to its end, for those that were given it by this server.",
    labels=("state",),
)
CLAIMS: Final = counter(
    "forebay.job.claims",
    "{claim}",
    "Claims of this server on jobs: taken; and of those, given back, or lost to somebody else.",
    labels=("outcome",),
)
TAKEOVERS: Final = counter(
    "forebay.job.takeovers",
    "{job}",
    "Jobs that were taken from servers that had gone away, and wait again or have failed for good.",
)
STORE_DURATION: Final = durations(
    "forebay.store.duration", "Transactions of the job store, each of a group of operations."
)
STORE_OPERATIONS: Final = counter(
    "forebay.store.operations", "{operation}", "Operations of the job store.", labels=("operation", "outcome")
)
STORE_WAITING: Final = gauge("forebay.store.waiting", "{operation}", "Operations whose outcome is still due.")
STORE_HEALTHY: Final = gauge("forebay.store.healthy", "{store}", "1 if the job store answers, else 0.")
WEBHOOKS: Final = counter(
    "forebay.webhooks",
    "{message}",
    "Tries to send a webhook message: delivered, to be tried again, or given up.",
    labels=("outcome",),
)
WEBHOOK_DURATION: Final = durations("forebay.webhook.duration", "Tries to send a webhook message.")

# --- The process and its devices ----------------------------------------------------------------------------------

CPU: Final = counter("process.cpu", "s", "User and system CPU time.")
RSS: Final = gauge("process.resident.memory", "By", "Resident memory.")
VIRTUAL: Final = gauge("process.virtual.memory", "By", "Virtual memory.")
STARTED: Final = gauge("process.start.time", "s", "When the process started, seconds since 1970.")
FDS: Final = gauge("process.open.fds", "{descriptor}", "Open file descriptors.")
FDS_LIMIT: Final = gauge("process.max.fds", "{descriptor}", "File descriptors that may be open.")
THREADS: Final = gauge("process.threads", "{thread}", "Threads, native ones included.")
GPU_USED: Final = gauge("forebay.gpu.memory.used", "By", "Memory of the GPU in use.", labels=("gpu",))
GPU_TOTAL: Final = gauge("forebay.gpu.memory.total", "By", "Memory of the GPU.", labels=("gpu",))
GPU_BUSY: Final = gauge(
    "forebay.gpu.utilization",
    "1",
    "The part of the last moments in which a kernel ran, whoever's; as the driver says.",
    labels=("gpu",),
)

METRICS: Final[tuple[Metric, ...]] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All of them, in the order of this file."""

LABELS: Final = {
    "code": "A canonical gRPC status code, such as OK or DEADLINE_EXCEEDED.",
    "front_end": "native or grpc.aio.",
    "gpu": "The number of the GPU.",
    "method": "Predict, StreamPredict (its items), or Submit (runs of jobs).",
    "model": f"A model of the settings. `{OTHER}`, with an empty version, for requests that name none that is served.",
    "operation": "What was asked of the job store: submit, claim, finish, release, ...",
    "outcome": "See the metric; of forebay_store_operations_total ok, or the reason of the error.",
    "reason": "Of an error, a reason of the contract (docs/errors.md), empty for OK and CANCELLED; of a batch, "
    "full, idle, delay, deadline or drain.",
    "rpc": "Service and method, such as forebay.v1.ModelService/ListModels; of those that are served.",
    "state": "A state of a job: pending, running, succeeded, failed, cancelled, expired.",
    "tenant": f"A tenant of the settings; `{OTHER}` for all others.",
    "version": "The number of a model's version; of forebay_build_info, the server's.",
}
"""What the values of each label are."""
