"""The standard variables, as spans and metrics read them alike."""

import pytest

from forebay_server.errors import ConfigError
from forebay_server.telemetry.otel import Signal, number, protocol, url, wanted

ENDPOINT = "http://collector:4317"
SIGNALS = pytest.mark.parametrize("signal", Signal)


@SIGNALS
@pytest.mark.parametrize(
    ("endpoint", "environment", "expected"),
    [
        ("", {}, False),
        (ENDPOINT, {}, True),
        ("", {"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT}, True),
        ("", {"OTEL_EXPORTER_OTLP_THIS_ENDPOINT": ENDPOINT}, True),
        ("", {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": ENDPOINT}, False),
        ("", {"OTEL_THIS_EXPORTER": "otlp"}, True),
        ("", {"OTEL_THIS_EXPORTER": " none , otlp"}, True),
        ("", {"OTEL_THIS_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT}, False),
        (ENDPOINT, {"OTEL_THIS_EXPORTER": "none"}, True),
        (ENDPOINT, {"OTEL_SDK_DISABLED": " True"}, False),
        (ENDPOINT, {"OTEL_SDK_DISABLED": "1"}, True),
    ],
)
def test_whether_a_signal_is_wanted(signal, endpoint, environment, expected):
    """A setting is stronger than the exporter by name, and that than an endpoint; OTEL_SDK_DISABLED than all."""
    environment = {name.replace("THIS", signal.value): value for name, value in environment.items()}
    assert wanted(signal, endpoint, environment) is expected


@SIGNALS
def test_an_exporter_that_is_not_known(signal):
    """Nobody should wait for spans or metrics that go nowhere."""
    with pytest.raises(ConfigError, match=f"OTEL_{signal.value}_EXPORTER: 'console' is none of otlp, none"):
        wanted(signal, ENDPOINT, {f"OTEL_{signal.value}_EXPORTER": "otlp,console"})


def test_prometheus_is_an_exporter_of_metrics_alone():
    """It has settings of its own here, and is no reason to stop."""
    assert not wanted(Signal.METRICS, "", {"OTEL_METRICS_EXPORTER": "prometheus"})
    with pytest.raises(ConfigError, match="prometheus"):
        wanted(Signal.TRACES, "", {"OTEL_TRACES_EXPORTER": "prometheus"})


@SIGNALS
@pytest.mark.parametrize(
    ("chosen", "general", "own", "expected"),
    [
        ("auto", "", "", "grpc"),
        ("auto", "http/protobuf", "", "http/protobuf"),
        ("auto", "grpc", "http/protobuf", "http/protobuf"),
        ("auto", "http/json", "grpc", "grpc"),
        ("grpc", "http/protobuf", "http/protobuf", "grpc"),
    ],
)
def test_the_protocol(signal, chosen, general, own, expected):
    """The setting, then the signal's own variable, then the one for all; an empty one is as none."""
    environment = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": general,
        f"OTEL_EXPORTER_OTLP_{signal.value}_PROTOCOL": own,
    }
    assert protocol(signal, chosen, environment) == expected


@SIGNALS
@pytest.mark.parametrize("own", [True, False])
def test_a_protocol_that_is_not_spoken_here(signal, own):
    """JSON over HTTP, say."""
    key = f"OTEL_EXPORTER_OTLP_{signal.value}_PROTOCOL" if own else "OTEL_EXPORTER_OTLP_PROTOCOL"
    with pytest.raises(ConfigError, match="'http/json' is neither grpc nor http/protobuf"):
        protocol(signal, "auto", {key: "http/json"})


def test_numbers():
    """Within their bounds, or a sentence."""
    assert number("X", {}, 5.0) == 5.0
    assert number("X", {"X": " "}, 5.0) == 5.0
    assert number("X", {"X": "2.5"}, 5.0) == 2.5
    for text, said in (("much", "no number"), ("nan", "not between"), ("-1", "not between 0 and 10"), ("11", "and 10")):
        with pytest.raises(ConfigError, match=said):
            number("X", {"X": text}, 5.0, most=10.0)


@pytest.mark.parametrize(
    ("endpoint", "spoken", "expected"),
    [
        ("", "grpc", None),
        ("", "http/protobuf", None),
        (ENDPOINT, "grpc", ENDPOINT),
        ("http://c:4318", "http/protobuf", "http://c:4318/v1/traces"),
        ("http://c:4318/", "http/protobuf", "http://c:4318/v1/traces"),
        ("http://c:4318/v1/traces", "http/protobuf", "http://c:4318/v1/traces"),
        ("http://c:4318/v1/metrics", "http/protobuf", "http://c:4318/v1/metrics/v1/traces"),
    ],
)
def test_where_to(endpoint, spoken, expected):
    """Over HTTP each signal has a path, which an endpoint may have already."""
    assert url(Signal.TRACES, endpoint, spoken) == expected
