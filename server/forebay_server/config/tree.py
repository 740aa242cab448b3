"""The tree of settings. The docstring under a field is its documentation: `forebay config` prints it.

Names carry their unit (`_ms`, `_s`, `_mib`); inside the server everything is seconds and bytes. Structs are frozen, and
unknown names are errors. `config.load` puts a tree together from flags, environment, and TOML files.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
NonNegative = Annotated[int, Meta(ge=0, le=2**31 - 1)]
VersionNumber = Annotated[int, Meta(ge=1, le=2**63 - 1)]
PositiveSeconds = Annotated[float, Meta(gt=0)]
NonNegativeNumber = Annotated[float, Meta(ge=0)]
OptionValue = bool | int | float | str


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration."""


class TlsConfig(Section, frozen=True):
    """TLS of an exposure."""

    certificate: str
    """Path of the certificate chain, PEM."""
    key: str
    """Path of the private key, PEM, unencrypted."""
    client_ca: str | None = None
    """Path of the CAs of client certificates, PEM. Set, every client must present one (mTLS)."""


class ExposureConfig(Section, frozen=True):
    """A place where the server listens."""

    address: str
    """`host:port` (port 0: any free one) or `unix:/path`."""
    tls: TlsConfig | None = None
    """TLS; without it the exposure is plain text."""
    trusted: bool = False
    """Believe the tenant that `server.tenant_key` names in metadata. Only behind a proxy that sets it."""
    reuse_port: bool = False
    """Share the port with other processes (SO_REUSEPORT). Without it a taken port is an error."""


class ServerConfig(Section, frozen=True):
    """The server as a whole."""

    wire: Literal["auto", "native", "grpc.aio"] = "auto"
    """The gRPC front end. `auto`: native if it is installed, else grpc.aio."""
    public: ExposureConfig = ExposureConfig(address="127.0.0.1:8500")
    """Where callers connect: inference, models, health, reflection."""
    operator: ExposureConfig | None = None
    """Where operators connect: everything that `public` has, at an address and with TLS of their own."""
    probe: ExposureConfig | None = None
    """Where probes connect: health, nothing else. It goes on listening while the server drains."""
    reflection: bool = True
    """Offer gRPC reflection on `public` and `operator`."""
    tenant_key: str = "x-forebay-tenant"
    """The metadata key that names the tenant, on trusted exposures."""
    default_deadline_s: PositiveSeconds = 30.0
    """Time for a request that has no deadline of its own."""
    max_deadline_s: PositiveSeconds = 3600.0
    """Deadlines beyond this are cut to it."""
    drain_delay_s: NonNegativeNumber = 0.0
    """At shutdown, time between NOT_SERVING and refusing work; longer than the balancer's probe interval."""
    drain_grace_s: NonNegativeNumber = 30.0
    """Time for accepted requests to finish at shutdown."""
    watchdog_s: NonNegativeNumber = 10.0
    """The process ends if its dispatcher stands still for this long beyond what the batch may take; 0: never."""
    busy_poll_s: Annotated[float, Meta(ge=0.0, le=0.01)] = 0.0002
    """Under load, the scheduler looks out for the next request for this long before its core may sleep: a lower latency
    for time of a core that would have been idle. 0: it sleeps at once. Of the native front end."""
    certificates_s: NonNegativeNumber = 60.0
    """Time between looks at the files of TLS, which are read again if they have changed; 0: only after SIGHUP."""
    cache_dir: str = ""
    """Where measured costs are kept, and what engines build. Empty: `$XDG_CACHE_HOME/forebay`, else
    `~/.cache/forebay`."""


class LimitsConfig(Section, frozen=True):
    """What a caller can make the server hold or do."""

    max_receive_mib: PositiveSeconds = 16.0
    """The largest message that is accepted."""
    max_send_mib: PositiveSeconds = 16.0
    """The largest message that is sent."""
    max_held_mib: PositiveSeconds = 1024.0
    """Bytes held for requests that are arriving, waiting or running."""
    max_connections: Positive = 10_000
    """Connections per exposure."""
    max_streams: Positive = 1024
    """Calls at a time on one connection."""
    max_metadata_kib: Positive = 16
    """Metadata of one call."""
    stream_window: Positive = 256
    """Items in flight on one `StreamPredict`."""
    watchers: Positive = 1000
    """Health watches at a time."""
    write_stall_s: PositiveSeconds = 30.0
    """A reader that takes nothing for this long is cut off."""
    read_stall_s: PositiveSeconds = 30.0
    """A message must be complete this long after its first byte."""
    keepalive_time_s: PositiveSeconds = 30.0
    """A silent connection is pinged after this."""
    keepalive_timeout_s: PositiveSeconds = 20.0
    """A ping must be answered within this."""
    max_connection_age_s: NonNegativeNumber = 0.0
    """A connection is told to go away at this age (+-10 %); 0: never."""
    max_connection_age_grace_s: PositiveSeconds = 30.0
    """Time for the calls of such a connection to end."""
    accept_gzip: bool = False
    """Accept gzip-compressed messages."""


class TenantConfig(Section, frozen=True):
    """One tenant's part."""

    weight: Annotated[float, Meta(gt=0)] = 1.0
    """Its share compared with other tenants."""
    max_queued_rows: NonNegative = 0
    """Rows it may have waiting, all models together; 0: the model's limit alone."""


class BatchingConfig(Section, frozen=True):
    """How a model's requests are put together."""

    max_batch_size: NonNegative = 0
    """The most rows in a batch. 0: 128 or what the file says; 1: no batching."""
    max_delay_ms: NonNegativeNumber = 0.0
    """How long an idle engine waits for a fuller batch. 0: it never waits."""
    max_queued_rows: Positive = 100_000
    """Rows that may wait."""
    batch_dimension: Literal["auto", "first", "none"] = "auto"
    """Whether dimension 0 is the batch. `auto`: if it is free and of the same name in all inputs and outputs."""
    check_rows: bool = True
    """Compare, at warm-up, a row alone with the same row in a batch; if they differ, run with batches of one row."""
    best_batch_size: NonNegative = 0
    """The size to aim at. 0: as measured."""


class BucketsConfig(Section, frozen=True):
    """Padding of requests of different shapes to common ones."""

    shapes: dict[str, list[list[int]]] = {}
    """Per input name, the shapes (without the batch dimension) that its requests are padded up to, smallest first."""
    pad_value: float = 0.0
    """What padding holds."""
    outputs: dict[str, list[int]] = {}
    """Per output name, the input dimension (counted without the batch) that each of its dimensions follows and is
    cut back to, -1 for none."""
    max_lanes: Positive = 256
    """Distinct shapes (or buckets) that may wait at a time."""


class EngineConfig(Section, frozen=True):
    """Which engine runs a model, and how."""

    name: str = "auto"
    """The engine's name, such as `onnxruntime`; `auto`: by the file's suffix."""
    devices: list[str] = []
    """Where it runs: `cpu`, `cuda:0`, ...; `cuda` is the GPU with the most free memory (twice: the two), `cuda:*` every
    GPU. Empty: what the engine is made for."""
    instances: Positive = 1
    """Copies that run batches at the same time, on each device."""
    device_memory_mib: NonNegativeNumber = 0.0
    """The most memory that its buffers and its engine's arena take on each GPU. 0: what there is."""
    threads: NonNegative = 0
    """Threads of one instance. 0: the CPU quota shared among the instances."""
    run: Literal["auto", "inline", "worker"] = "auto"
    """On which thread batches run. `auto`: inline if the slowest takes less than about a millisecond."""
    max_execution_s: NonNegativeNumber = 0.0
    """A batch that runs longer counts as stuck. 0: 30 s at first, then by what was measured."""
    options: dict[str, OptionValue] = {}
    """The engine's own options."""


class InputConfig(Section, frozen=True):
    """What callers send for one input, where that is not what the model takes: smaller messages, or another layout."""

    data_type: Literal["model", "UINT8", "UINT16", "UINT32", "INT8", "INT16", "INT32"] = "model"
    """The type that callers send. `model`: the model's own. Integers for wider integers (token ids), and UINT8 for
    floating-point numbers (pixels)."""
    layout: Literal["same", "channels_last"] = "same"
    """The order of dimensions that callers send. `channels_last`: H, W, C, where the model takes C, H, W."""
    scale: float = 1.0
    """Of UINT8 for floating-point numbers: the model gets (x * scale - mean) / std."""
    mean: list[float] = []
    """See `scale`: one number, or one for each channel. Empty: 0."""
    std: list[float] = []
    """See `scale`: one number, or one for each channel. Empty: 1."""


class ModelConfig(Section, frozen=True):
    """One model. `MODEL.toml` beside the file has the same tables; the server's TOML is stronger."""

    path: str = ""
    """The file, or `module:object` for the python engine. Relative to the TOML file that says it."""
    name: str = ""
    """The name that callers use. Empty: the file's name without suffix."""
    version: VersionNumber = 1
    """The version number."""
    labels: list[str] = []
    """Labels of this version, such as `stable`."""
    nan: Literal["allow", "reject"] = "allow"
    """Whether inputs may hold NaN or infinity."""
    engine: EngineConfig = EngineConfig()
    """Which engine runs it, and how."""
    batching: BatchingConfig = BatchingConfig()
    """How its requests are put together."""
    inputs: dict[str, InputConfig] = {}
    """By input name, what callers send where that is not what the model takes."""
    buckets: BucketsConfig = BucketsConfig()
    """Padding of requests of different shapes to common ones."""


class WebhooksConfig(Section, frozen=True):
    """Telling others that a job has finished."""

    allow: list[str] = []
    """Where to: `https://host[:port][/path]`, or `http://` for what may be read on the way; a target must have one of
    these as its beginning, at a path boundary. A host that begins with `*.` stands for all below it. Empty: nowhere."""
    allow_private: bool = False
    """Also to addresses that are not public (private networks, loopback). Without it such targets are refused."""
    secrets: dict[str, str] = {}
    """Secrets that sign messages, by the name that jobs use: `env:NAME` or `file:PATH`. The value is `whsec_` and
    base64, or plain text, of at least 24 bytes; several, separated by white space, sign each message."""
    timeout_s: PositiveSeconds = 10.0
    """For one try, all in all: looking up the host, connecting, TLS, sending, and the answer."""
    max_tries: Positive = 12
    """A message that has not arrived after so many tries is given up; with the growing pauses between them that is
    after about a day."""


class JobsConfig(Section, frozen=True):
    """Durable jobs."""

    store: str = ""
    """Where they are kept: a path (SQLite), `postgresql://...`, or `memory:` (not durable; for tests). Empty: there are
    no jobs."""
    run: bool = True
    """Run jobs here. `false`: this server takes jobs in and answers for them, and leaves running them to others that
    share the store, or to its next start."""
    max_pending: Positive = 1_000_000
    """Jobs that may wait; more are refused."""
    max_attempts: Positive = 5
    """Times that a job may be given to an engine before it fails."""
    ttl_s: PositiveSeconds = 86_400.0
    """How long outcomes are kept if the caller does not say."""
    max_ttl_s: PositiveSeconds = 2_592_000.0
    """The longest that a caller can ask for."""
    claim_s: PositiveSeconds = 15.0
    """A server that has not renewed its claims for this long is taken for gone, and others take over its jobs."""
    max_waiting: Positive = 1000
    """Calls of one tenant (`WatchJob`, `Result` with `wait`) that may wait at a time. One connection may have a quarter
    of `limits.max_streams` of them."""
    store_timeout_s: PositiveSeconds = 5.0
    """A call that the store has not served by then is answered with UNAVAILABLE."""
    webhooks: WebhooksConfig = WebhooksConfig()
    """Telling others that a job has finished."""


class TracingConfig(Section, frozen=True):
    """Spans for OpenTelemetry, over OTLP. The standard variables `OTEL_*` fill in what is not set here."""

    endpoint: str = ""
    """Where to send spans, such as `http://collector:4317`. Empty: as `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or
    `OTEL_EXPORTER_OTLP_ENDPOINT` say; if they are not set either, and `OTEL_TRACES_EXPORTER` is not `otlp`, there is no
    tracing."""
    protocol: Literal["auto", "grpc", "http/protobuf"] = "auto"
    """`auto`: as `OTEL_EXPORTER_OTLP_PROTOCOL` says, else grpc."""
    sampler: Literal[
        "auto",
        "always_on",
        "always_off",
        "traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
    ] = "auto"
    """Who gets a span. `auto`: as `OTEL_TRACES_SAMPLER` says, else parentbased_traceidratio: callers that are sampled
    themselves, and a part of those that have no trace."""
    ratio: Annotated[float, Meta(ge=0, le=1)] | None = None
    """That part. Unset: as `OTEL_TRACES_SAMPLER_ARG` says, else 0.01."""
    slow_ms: NonNegativeNumber = 1000.0
    """Requests that take at least this long get a span though they were not sampled; 0: they don't."""
    tail_per_second: NonNegativeNumber = 20.0
    """The most spans a second for slow requests and errors that were not sampled; 0: none."""
    max_queued_spans: Positive = 16_384
    """Spans that may wait to be sent; more are dropped and counted. `OTEL_BSP_MAX_QUEUE_SIZE` is stronger."""


class PrometheusConfig(Section, frozen=True):
    """The endpoint that Prometheus scrapes."""

    address: str = ""
    """`host:port` of `/metrics`, such as `0.0.0.0:9464`, plain HTTP and for everybody who can reach it: it shows the
    names of models and tenants. Empty: none."""


class MetricsConfig(Section, frozen=True):
    """Metrics for OpenTelemetry, over OTLP. The standard variables `OTEL_*` fill in what is not set here."""

    endpoint: str = ""
    """Where to send them, such as `http://collector:4317`. Empty: as `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` or
    `OTEL_EXPORTER_OTLP_ENDPOINT` say; if they are not set either, and `OTEL_METRICS_EXPORTER` is not `otlp`, none are
    sent."""
    protocol: Literal["auto", "grpc", "http/protobuf"] = "auto"
    """`auto`: as `OTEL_EXPORTER_OTLP_METRICS_PROTOCOL` or `OTEL_EXPORTER_OTLP_PROTOCOL` say, else grpc."""
    interval_s: NonNegativeNumber = 0.0
    """Time between exports. 0: as `OTEL_METRIC_EXPORT_INTERVAL` says, else 60."""


class TelemetryConfig(Section, frozen=True):
    """What the server tells of itself."""

    tracing: TracingConfig = TracingConfig()
    """Spans for OpenTelemetry, over OTLP. The standard variables `OTEL_*` fill in what is not set here."""
    prometheus: PrometheusConfig = PrometheusConfig()
    """The endpoint that Prometheus scrapes."""
    metrics: MetricsConfig = MetricsConfig()
    """Metrics for OpenTelemetry, over OTLP. The standard variables `OTEL_*` fill in what is not set here."""


class LogConfig(Section, frozen=True):
    """What is logged."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe level that is written."""
    format: Literal["auto", "text", "json"] = "auto"
    """`auto`: text on a terminal, JSON otherwise."""


class Config(Section, frozen=True):
    """Everything."""

    server: ServerConfig = ServerConfig()
    """The server as a whole."""
    limits: LimitsConfig = LimitsConfig()
    """What a caller can make the server hold or do."""
    tenants: dict[str, TenantConfig] = {}
    """Tenants with a part of their own; others share the weight 1."""
    models: list[ModelConfig] = []
    """The models that are served, a table for each. `MODEL.toml` beside a file has the same tables, but is weaker."""
    jobs: JobsConfig = JobsConfig()
    """Durable jobs."""
    telemetry: TelemetryConfig = TelemetryConfig()
    """What the server tells of itself."""
    log: LogConfig = LogConfig()
    """What is logged."""
