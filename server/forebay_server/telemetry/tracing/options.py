"""Settings of tracing: what the configuration says, else the standard OTEL_* variables, else our defaults.

Only what decides here is read here; where to send, headers, certificates, compression and times of the exporters are
read by these themselves, from the standard variables. Pure but for the environment that it is given.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

from forebay_server.config.tree import TracingConfig
from forebay_server.errors import ConfigError
from forebay_server.telemetry.tracing import sampling
from forebay_server.telemetry.tracing.sampling import Sampler

AUTO: Final = "auto"
GRPC: Final = "grpc"
HTTP: Final = "http/protobuf"
DELAY: Final = 1.0
"""Seconds for which spans are gathered."""
BATCH: Final = 128
"""Spans in one message: encoding them takes some milliseconds."""
LINKS: Final = 128
"""As in the SDK."""

DEFAULT_RATIO: Final = 0.01
"""Without any word on sampling. (An SDK would take all; a server of inference is asked too often.)"""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to trace."""

    sampler: Sampler
    slow: float
    """Seconds; infinity: the tail rule keeps no slow requests."""
    tail_per_second: float
    endpoint: str
    """Empty: as the standard variables say, or the default of the protocol."""
    protocol: str
    most: int
    """Spans that may wait."""
    delay: float
    """Seconds."""
    batch: int
    links: int


def options(config: TracingConfig, environment: Mapping[str, str]) -> Options | None:
    """How to trace; None: not at all.

    Args:
        config: The settings.
        environment: Variables.

    Raises:
        ConfigError: A value makes no sense.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if not _wanted(config, environment):
        return None
    name: str = config.sampler
    ratio = config.ratio
    if name == AUTO:
        name = environment.get("OTEL_TRACES_SAMPLER", "").strip() or sampling.DEFAULT
        if ratio is None and "OTEL_TRACES_SAMPLER_ARG" in environment:
            ratio = _number("OTEL_TRACES_SAMPLER_ARG", environment, 1.0, most=1.0)
        if ratio is None and environment.get("OTEL_TRACES_SAMPLER", "").strip():
            ratio = 1.0  # as the specification says
    try:
        sampler = sampling.sampler(name, DEFAULT_RATIO if ratio is None else ratio)
    except ConfigError as error:
        raise ConfigError(f"OTEL_TRACES_SAMPLER: {error}") from None
    protocol: str = config.protocol
    if protocol == AUTO:
        protocol = next((environment[key] for key in _PROTOCOLS if environment.get(key)), GRPC)
    if protocol not in (GRPC, HTTP):
        raise ConfigError(f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} is neither {GRPC} nor {HTTP}")
    return Options(
        sampler=sampler,
        slow=config.slow_ms / 1e3 or inf,
        tail_per_second=config.tail_per_second,
        endpoint=config.endpoint,
        protocol=protocol,
        most=int(_number("OTEL_BSP_MAX_QUEUE_SIZE", environment, config.max_queued_spans, least=1.0)),
        delay=_number("OTEL_BSP_SCHEDULE_DELAY", environment, DELAY * 1e3) / 1e3,
        batch=int(_number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", environment, BATCH, least=1.0)),
        links=int(_number("OTEL_SPAN_LINK_COUNT_LIMIT", environment, LINKS)),
    )


def _wanted(config: TracingConfig, environment: Mapping[str, str]) -> bool:
    """Whether anybody has said where spans should go, or that there should be some."""
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter not in ("", "otlp", "none"):
        raise ConfigError(f"OTEL_TRACES_EXPORTER: {exporter!r} is neither otlp nor none")
    if config.endpoint:
        return True
    if exporter == "none":
        return False
    return exporter == "otlp" or any(environment.get(key) for key in _ENDPOINTS)


def _number(
    key: str, environment: Mapping[str, str], default: float, *, least: float = 0.0, most: float = inf
) -> float:
    text = environment.get(key, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        raise ConfigError(f"{key}: {text!r} is no number") from None
    if not least <= value <= most:
        raise ConfigError(f"{key}: {text} is not between {least:g} and {most:g}")
    return value
