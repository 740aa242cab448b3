"""Settings of tracing: what the configuration says, else the standard OTEL_* variables, else our defaults.

Pure but for the environment that it is given.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

from forebay_server.config.tree import TracingConfig
from forebay_server.errors import ConfigError
from forebay_server.telemetry.otel import AUTO, Signal, number, protocol, wanted
from forebay_server.telemetry.tracing import sampling
from forebay_server.telemetry.tracing.sampling import Sampler

DELAY: Final = 1.0
"""Seconds for which spans are gathered."""
BATCH: Final = 512
"""Spans in one message, as in the SDK: some 300 kB."""
LINKS: Final = 128
"""As in the SDK."""

DEFAULT_RATIO: Final = 0.01
"""Without any word on sampling. (An SDK would take all; a server of inference is asked too often.)"""


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
    if not wanted(Signal.TRACES, config.endpoint, environment):
        return None
    name: str = config.sampler
    ratio = config.ratio
    if name == AUTO:
        name = environment.get("OTEL_TRACES_SAMPLER", "").strip() or sampling.DEFAULT
        if ratio is None and "OTEL_TRACES_SAMPLER_ARG" in environment:
            ratio = number("OTEL_TRACES_SAMPLER_ARG", environment, 1.0, most=1.0)
        if ratio is None and environment.get("OTEL_TRACES_SAMPLER", "").strip():
            ratio = 1.0  # as the specification says
    try:
        sampler = sampling.sampler(name, DEFAULT_RATIO if ratio is None else ratio)
    except ConfigError as error:
        raise ConfigError(f"OTEL_TRACES_SAMPLER: {error}") from None
    return Options(
        sampler=sampler,
        slow=config.slow_ms / 1e3 or inf,
        tail_per_second=config.tail_per_second,
        endpoint=config.endpoint,
        protocol=protocol(Signal.TRACES, config.protocol, environment),
        most=int(number("OTEL_BSP_MAX_QUEUE_SIZE", environment, config.max_queued_spans, least=1.0)),
        delay=number("OTEL_BSP_SCHEDULE_DELAY", environment, DELAY * 1e3) / 1e3,
        batch=int(number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", environment, BATCH, least=1.0)),
        links=int(number("OTEL_SPAN_LINK_COUNT_LIMIT", environment, LINKS)),
    )
