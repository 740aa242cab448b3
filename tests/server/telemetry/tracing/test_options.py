"""What holds: the settings, else the standard variables, else our defaults."""

from math import inf

import pytest

from forebay_server.config.tree import TracingConfig
from forebay_server.errors import ConfigError
from forebay_server.telemetry.tracing.options import options
from forebay_server.telemetry.tracing.sampling import Sampler

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}


@pytest.mark.parametrize(
    ("config", "environment", "on"),
    [
        ({}, {}, False),
        ({"endpoint": "http://x"}, {}, True),
        ({}, ENDPOINT, True),
        ({}, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({}, {"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({}, {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"endpoint": "http://x"}, {"OTEL_TRACES_EXPORTER": "none"}, True),
        ({"endpoint": "http://x"}, {"OTEL_SDK_DISABLED": "TRUE"}, False),
        ({"endpoint": "http://x"}, {"OTEL_SDK_DISABLED": "1"}, True),
    ],
)
def test_whether_there_is_tracing(config, environment, on):
    """Somebody has to say where spans go, and nobody that there are none."""
    assert (options(TracingConfig(**config), environment) is not None) is on


@pytest.mark.parametrize(
    ("config", "environment", "sampler"),
    [
        ({}, {}, Sampler(True, 0.01)),
        ({"ratio": 0.5}, {}, Sampler(True, 0.5)),
        ({}, {"OTEL_TRACES_SAMPLER_ARG": "0.25"}, Sampler(True, 0.25)),
        ({}, {"OTEL_TRACES_SAMPLER": "traceidratio"}, Sampler(False, 1.0)),
        ({}, {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, Sampler(False, 0.25)),
        ({"ratio": 0.5}, {"OTEL_TRACES_SAMPLER": "always_on", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, Sampler(False, 1.0)),
        ({"sampler": "always_off"}, {"OTEL_TRACES_SAMPLER": "always_on"}, Sampler(False, 0.0)),
    ],
)
def test_who_is_sampled(config, environment, sampler):
    """A setting is stronger than a variable; a sampler by variable without its argument takes all, as specified."""
    found = options(TracingConfig(**config), {**ENDPOINT, **environment})

    assert found is not None
    assert found.sampler == sampler


def test_the_other_values():
    """Defaults, and what the variables make of them."""
    default = options(TracingConfig(), ENDPOINT)
    variables = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_BSP_MAX_QUEUE_SIZE": "10",
        "OTEL_BSP_SCHEDULE_DELAY": "250",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "5",
        "OTEL_SPAN_LINK_COUNT_LIMIT": "3",
    }
    changed = options(TracingConfig(slow_ms=0.0), {**ENDPOINT, **variables})

    assert default is not None
    assert changed is not None
    assert (default.protocol, default.most, default.delay, default.batch, default.links, default.slow) == (
        "grpc", 16_384, 1.0, 512, 128, 1.0,
    )  # fmt: skip
    assert (changed.protocol, changed.most, changed.delay, changed.batch, changed.links, changed.slow) == (
        "http/protobuf", 10, 0.25, 5, 3, inf,
    )  # fmt: skip


@pytest.mark.parametrize("value", ["", "0", "-1", "many"])
def test_a_queue_holds_something(value):
    """An empty variable is none at all; the others are refused with their name."""
    environment = {**ENDPOINT, "OTEL_BSP_MAX_QUEUE_SIZE": value}
    if value:
        with pytest.raises(ConfigError, match="OTEL_BSP_MAX_QUEUE_SIZE"):
            options(TracingConfig(), environment)
    else:
        assert options(TracingConfig(), environment) is not None
