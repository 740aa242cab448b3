"""All names under which things are counted and measured: units, buckets, labels and what they mean, in one place.

Each metric has one name, in dots, as OpenTelemetry writes it; the name for Prometheus follows from it and the unit by
the rules of OpenTelemetry's specification (*Compatibility: Prometheus*). Each label has a bounded set of values, which
`LABELS` describes: no caller can make a new one. docs/metrics.md is made from here.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from forebay_server.telemetry.histogram import BOUNDS, place

OTHER: Final = "other"
"""The label value of whatever has no name of its own."""
UNKNOWN: Final = "UNKNOWN"
"""The reason, and the status code, of an outcome that nobody has named."""


class Kind(Enum):
    """What a metric is."""

    COUNTER = "counter"
    """A sum since the start of the process."""
    GAUGE = "gauge"
    """A value of now."""
    HISTOGRAM = "histogram"
    """A distribution since the start of the process."""


_UNITS: Final = {"s": "seconds", "By": "bytes"}

DURATIONS: Final = tuple(place(power) for power in range(-17, 10))
"""8 microseconds to 512 seconds in powers of two, as places in `histogram.BOUNDS`."""
RATIOS: Final = tuple(place(power) for power in (-3, -2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 2, 3, 4))
"""An eighth to sixteen, finer around one, as places in `histogram.BOUNDS`."""
SIZES: Final = tuple(1 << power for power in range(13))
"""1 to 4096."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Metric:
    """A metric.

    Attributes:
        name: In dots.
        kind: What it is.
        unit: By UCUM: `s`, `By`, `1`, or what is counted in braces.
        labels: The names of its labels, in order.
        help: One sentence.
        places: Of a histogram of durations or ratios, the places of its bounds in `histogram.BOUNDS`.
        sizes: Of a histogram of sizes, its bounds.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    places: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def family(self) -> str:
        """The name for Prometheus, without `_total`."""
        name = self.name.replace(".", "_")
        unit = _UNITS.get(self.unit, "ratio" if self.unit == "1" and self.kind is not Kind.COUNTER else "")
        return f"{name}_{unit}" if unit and not name.endswith(f"_{unit}") else name

    @property
    def prometheus(self) -> str:
        """The name for Prometheus, of a histogram without `_bucket`, `_sum`, `_count`."""
        return f"{self.family}_total" if self.kind is Kind.COUNTER else self.family

    @property
    def bounds(self) -> tuple[float, ...]:
        """Of a histogram, the inclusive upper bounds of its buckets, the last (infinity) left out."""
        return self.sizes or tuple(BOUNDS[index] for index in self.places)


_MODEL: Final = ("model", "version")

# --- Requests -----------------------------------------------------------------------------------------------------

REQUESTS: Final = Metric(
    name="forebay.requests",
    kind=Kind.COUNTER,
    unit="{request}",
    labels=(*_MODEL, "method", "code", "reason"),
    help="Inference requests that have ended: calls of Predict, items of StreamPredict, runs of jobs.",
)
REQUEST_DURATION: Final = Metric(
    name="forebay.request.duration",
    kind=Kind.HISTOGRAM,
    unit="s",
    labels=(*_MODEL, "method"),
    places=DURATIONS,
    help="From the arrival of an accepted request to its outcome.",
)
QUEUE_DURATION: Final = Metric(
    name="forebay.queue.duration",
    kind=Kind.HISTOGRAM,
    unit="s",
    labels=_MODEL,
    places=DURATIONS,
    help="From the arrival of an accepted request until its batch starts, or until it ends without one.",
)
REFUSALS: Final = Metric(
    name="forebay.refusals",
    kind=Kind.COUNTER,
    unit="{request}",
    labels=(*_MODEL, "reason"),
    help="Requests that were not accepted. They are among forebay_requests_total, too.",
)
TENANT_REFUSALS: Final = Metric(
    name="forebay.tenant.refusals",
    kind=Kind.COUNTER,
    unit="{request}",
    labels=("tenant",),
    help="Requests that were not accepted, by tenant.",
)
TENANT_QUEUED: Final = Metric(
    name="forebay.tenant.queue.rows",
    kind=Kind.GAUGE,
    unit="{row}",
    labels=("tenant",),
    help="Rows of online requests that wait, by tenant.",
)

# --- Batches and engines ------------------------------------------------------------------------------------------

COMPUTE_DURATION: Final = Metric(
    name="forebay.compute.duration",
    kind=Kind.HISTOGRAM,
    unit="s",
    labels=_MODEL,
    places=DURATIONS,
    help="Time of a batch in the engine.",
)
BATCHES: Final = Metric(
    name="forebay.batches",
    kind=Kind.COUNTER,
    unit="{batch}",
    labels=(*_MODEL, "reason"),
    help="Batches that have run, by the reason of their start.",
)
BATCH_ROWS: Final = Metric(
    name="forebay.batch.rows",
    kind=Kind.HISTOGRAM,
    unit="{row}",
    labels=_MODEL,
    sizes=SIZES,
    help="Rows of a batch, without padding.",
)
BATCH_REQUESTS: Final = Metric(
    name="forebay.batch.requests",
    kind=Kind.HISTOGRAM,
    unit="{request}",
    labels=_MODEL,
    sizes=SIZES,
    help="Requests in a batch.",
)
PADDED_ROWS: Final = Metric(
    name="forebay.padding.rows",
    kind=Kind.COUNTER,
    unit="{row}",
    labels=_MODEL,
    help="Rows that were added to batches as padding: engine time that nobody asked for.",
)
PREDICTION: Final = Metric(
    name="forebay.compute.prediction",
    kind=Kind.HISTOGRAM,
    unit="1",
    labels=_MODEL,
    places=RATIOS,
    help="Time of a batch in the engine over the time that the cost model predicted.",
)
ENGINE_BUSY: Final = Metric(
    name="forebay.engine.busy",
    kind=Kind.COUNTER,
    unit="s",
    labels=_MODEL,
    help="Time in which instances ran batches, all instances of the version together.",
)
INSTANCES: Final = Metric(
    name="forebay.instances",
    kind=Kind.GAUGE,
    unit="{instance}",
    labels=_MODEL,
    help="Instances of the engine.",
)
USABLE_INSTANCES: Final = Metric(
    name="forebay.instances.usable",
    kind=Kind.GAUGE,
    unit="{instance}",
    labels=_MODEL,
    help="Instances that are neither stuck nor lost.",
)
RUNNING_BATCHES: Final = Metric(
    name="forebay.batches.running",
    kind=Kind.GAUGE,
    unit="{batch}",
    labels=_MODEL,
    help="Batches in an engine now.",
)
QUEUED_ROWS: Final = Metric(
    name="forebay.queue.rows",
    kind=Kind.GAUGE,
    unit="{row}",
    labels=_MODEL,
    help="Rows that wait.",
)
QUEUE_LANES: Final = Metric(
    name="forebay.queue.lanes",
    kind=Kind.GAUGE,
    unit="{lane}",
    labels=_MODEL,
    help="Distinct shapes and parameters with a queue of their own.",
)
HELD_BYTES: Final = Metric(
    name="forebay.queue.held",
    kind=Kind.GAUGE,
    unit="By",
    labels=_MODEL,
    help="Bytes of requests that wait or run.",
)
WAIT_MARGIN: Final = Metric(
    name="forebay.queue.wait.margin",
    kind=Kind.GAUGE,
    unit="1",
    labels=_MODEL,
    help="How much longer requests wait than was predicted, as a factor. Admission reckons with it.",
)
READY: Final = Metric(
    name="forebay.model.ready",
    kind=Kind.GAUGE,
    unit="{model}",
    labels=_MODEL,
    help="1 if the version is loaded and serves, else 0.",
)

# --- The server ---------------------------------------------------------------------------------------------------

BUILD: Final = Metric(
    name="forebay.build.info",
    kind=Kind.GAUGE,
    unit="{server}",
    labels=("version", "front_end"),
    help="1, with the version of the server and the name of its front end.",
)
SERVING: Final = Metric(
    name="forebay.serving",
    kind=Kind.GAUGE,
    unit="{server}",
    help="1 if health says SERVING for the server as a whole, else 0.",
)
SERVER_HELD: Final = Metric(
    name="forebay.server.held",
    kind=Kind.GAUGE,
    unit="By",
    help="Bytes of requests that wait or run, all models together, and of messages in the front end.",
)
SERVER_HELD_LIMIT: Final = Metric(
    name="forebay.server.held.limit",
    kind=Kind.GAUGE,
    unit="By",
    help="What limits.max_held_mib allows.",
)
TURN_DURATION: Final = Metric(
    name="forebay.dispatcher.turn.duration",
    kind=Kind.HISTOGRAM,
    unit="s",
    places=DURATIONS,
    help="Turns of the dispatcher, waiting for events left out: how long an event waits at most until it is seen.",
)
LAG: Final = Metric(
    name="forebay.dispatcher.lag",
    kind=Kind.GAUGE,
    unit="s",
    help="How long the dispatcher took to come to the question for these figures.",
)
SNAPSHOT: Final = Metric(
    name="forebay.telemetry.snapshot",
    kind=Kind.GAUGE,
    unit="s",
    help="The longest that gathering these figures has kept the dispatcher at a time.",
)
EXPORTS: Final = Metric(
    name="forebay.telemetry.exports",
    kind=Kind.COUNTER,
    unit="{export}",
    labels=("outcome",),
    help="Exports of metrics to an OpenTelemetry collector: sent or failed.",
)
SPANS: Final = Metric(
    name="forebay.telemetry.spans",
    kind=Kind.COUNTER,
    unit="{span}",
    labels=("outcome",),
    help="Spans: exported, dropped (the queue was full or the collector late), or suppressed (the tail rule's limit).",
)
SPANS_QUEUED: Final = Metric(
    name="forebay.telemetry.spans_queued",
    kind=Kind.GAUGE,
    unit="{span}",
    labels=(),
    help="Spans that wait to be sent.",
)
CALLS: Final = Metric(
    name="forebay.calls",
    kind=Kind.COUNTER,
    unit="{call}",
    labels=("rpc", "code"),
    help="Calls that have ended of all RPCs but Predict and StreamPredict.",
)
CALL_DURATION: Final = Metric(
    name="forebay.call.duration",
    kind=Kind.HISTOGRAM,
    unit="s",
    labels=("rpc",),
    places=DURATIONS,
    help="From the arrival to the end of such calls, streams and waiting included.",
)

# --- The front end ------------------------------------------------------------------------------------------------

CONNECTIONS: Final = Metric(
    name="forebay.wire.connections", kind=Kind.GAUGE, unit="{connection}", help="Open connections."
)
CONNECTIONS_ACCEPTED: Final = Metric(
    name="forebay.wire.connections.accepted",
    kind=Kind.COUNTER,
    unit="{connection}",
    help="Connections that were accepted.",
)
WIRE_CALLS: Final = Metric(name="forebay.wire.calls", kind=Kind.GAUGE, unit="{call}", help="Open calls of all RPCs.")
WIRE_CALLS_BEGUN: Final = Metric(
    name="forebay.wire.calls.begun", kind=Kind.COUNTER, unit="{call}", help="Calls of all RPCs that have begun."
)
WIRE_REFUSED: Final = Metric(
    name="forebay.wire.calls.refused",
    kind=Kind.COUNTER,
    unit="{call}",
    help="Calls that the front end refused by itself: unknown methods, too large messages, deadlines, slow readers.",
)
STREAMS: Final = Metric(
    name="forebay.wire.streams", kind=Kind.GAUGE, unit="{stream}", help="Open StreamPredict streams."
)
RECEIVED: Final = Metric(name="forebay.wire.received", kind=Kind.COUNTER, unit="By", help="Bytes of request messages.")
SENT: Final = Metric(name="forebay.wire.sent", kind=Kind.COUNTER, unit="By", help="Bytes of response messages.")
WIRE_HELD: Final = Metric(
    name="forebay.wire.held",
    kind=Kind.GAUGE,
    unit="By",
    help="Bytes of messages that have arrived in part, or that the dispatcher has not taken.",
)

# --- Jobs ---------------------------------------------------------------------------------------------------------

JOBS: Final = Metric(
    name="forebay.jobs",
    kind=Kind.GAUGE,
    unit="{job}",
    labels=("state",),
    help="Jobs that are not final: pending in the store, as it said last; running here.",
)
JOBS_OLDEST: Final = Metric(
    name="forebay.jobs.oldest",
    kind=Kind.GAUGE,
    unit="s",
    help="How long, at least, the job that was submitted first of those that wait has waited.",
)
JOBS_LIMIT: Final = Metric(
    name="forebay.jobs.pending.limit", kind=Kind.GAUGE, unit="{job}", help="What jobs.max_pending allows."
)
JOBS_SUBMITTED: Final = Metric(
    name="forebay.jobs.submitted", kind=Kind.COUNTER, unit="{job}", help="Jobs that were taken in here."
)
JOBS_ENDED: Final = Metric(
    name="forebay.jobs.ended",
    kind=Kind.COUNTER,
    unit="{job}",
    labels=("state",),
    help="Jobs that were given their end by this server.",
)
JOB_WAIT: Final = Metric(
    name="forebay.job.wait.duration",
    kind=Kind.HISTOGRAM,
    unit="s",
    places=DURATIONS,
    help="From the submission of a job to its claim, each time that it is claimed here.",
)
JOB_AGE: Final = Metric(
    name="forebay.job.duration",
    kind=Kind.HISTOGRAM,
    unit="s",
    labels=("state",),
    places=DURATIONS,
    help="From the submission of a job to its end, for those that were given it by this server.",
)
CLAIMS: Final = Metric(
    name="forebay.job.claims",
    kind=Kind.COUNTER,
    unit="{claim}",
    labels=("outcome",),
    help="Claims of this server on jobs: taken; and of those, given back, or lost to somebody else.",
)
TAKEOVERS: Final = Metric(
    name="forebay.job.takeovers",
    kind=Kind.COUNTER,
    unit="{job}",
    help="Jobs that were taken from servers that had gone away, and wait again or have failed for good.",
)
STORE_DURATION: Final = Metric(
    name="forebay.store.duration",
    kind=Kind.HISTOGRAM,
    unit="s",
    places=DURATIONS,
    help="Transactions of the job store, each of a group of operations.",
)
STORE_OPERATIONS: Final = Metric(
    name="forebay.store.operations",
    kind=Kind.COUNTER,
    unit="{operation}",
    labels=("operation", "outcome"),
    help="Operations of the job store.",
)
STORE_WAITING: Final = Metric(
    name="forebay.store.waiting",
    kind=Kind.GAUGE,
    unit="{operation}",
    help="Operations whose outcome is still due.",
)
STORE_HEALTHY: Final = Metric(
    name="forebay.store.healthy",
    kind=Kind.GAUGE,
    unit="{store}",
    help="1 if the job store answers, else 0.",
)
WEBHOOKS: Final = Metric(
    name="forebay.webhooks",
    kind=Kind.COUNTER,
    unit="{message}",
    labels=("outcome",),
    help="Tries to send a webhook message: delivered, to be tried again, or given up.",
)
WEBHOOK_DURATION: Final = Metric(
    name="forebay.webhook.duration",
    kind=Kind.HISTOGRAM,
    unit="s",
    places=DURATIONS,
    help="Tries to send a webhook message.",
)

# --- The process and its devices ----------------------------------------------------------------------------------

CPU: Final = Metric(name="process.cpu", kind=Kind.COUNTER, unit="s", help="User and system CPU time.")
RSS: Final = Metric(name="process.resident.memory", kind=Kind.GAUGE, unit="By", help="Resident memory.")
VIRTUAL: Final = Metric(name="process.virtual.memory", kind=Kind.GAUGE, unit="By", help="Virtual memory.")
STARTED: Final = Metric(
    name="process.start.time", kind=Kind.GAUGE, unit="s", help="When the process started, seconds since 1970."
)
FDS: Final = Metric(name="process.open.fds", kind=Kind.GAUGE, unit="{descriptor}", help="Open file descriptors.")
FDS_LIMIT: Final = Metric(
    name="process.max.fds", kind=Kind.GAUGE, unit="{descriptor}", help="File descriptors that may be open."
)
THREADS: Final = Metric(name="process.threads", kind=Kind.GAUGE, unit="{thread}", help="Threads, native ones included.")
GPU_USED: Final = Metric(
    name="forebay.gpu.memory.used", kind=Kind.GAUGE, unit="By", labels=("gpu",), help="Memory of the GPU in use."
)
GPU_TOTAL: Final = Metric(
    name="forebay.gpu.memory.total", kind=Kind.GAUGE, unit="By", labels=("gpu",), help="Memory of the GPU."
)
GPU_BUSY: Final = Metric(
    name="forebay.gpu.utilization",
    kind=Kind.GAUGE,
    unit="1",
    labels=("gpu",),
    help="The part of the last moments in which a kernel ran, whoever's; as the driver says.",
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
