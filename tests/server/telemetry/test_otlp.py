"""Settings and standard variables, put together; and what becomes of samples on their way to a collector."""

import threading

import pytest
from opentelemetry.sdk.metrics import export

from forebay_server.config.tree import MetricsConfig
from forebay_server.errors import ConfigError
from forebay_server.telemetry import names, otlp, otlp_sender
from forebay_server.telemetry.histogram import Histogram
from forebay_server.telemetry.otlp import Options, OtlpMetrics, options
from forebay_server.telemetry.samples import durations, sizes

ENDPOINT = "http://collector:4317"
SET = {"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT}


@pytest.mark.parametrize(
    ("environment", "exported"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "pool"}, False),
        (SET, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": ENDPOINT}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ENDPOINT}, False),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, True),
        ({"OTEL_METRICS_EXPORTER": "prometheus, otlp"}, True),
        ({**SET, "OTEL_METRICS_EXPORTER": "none"}, False),
        ({**SET, "OTEL_METRICS_EXPORTER": "prometheus"}, False),
        ({**SET, "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({**SET, "OTEL_SDK_DISABLED": "false"}, True),
    ],
)
def test_whether_metrics_are_exported(environment, exported):
    """If there is an endpoint or the exporter is asked for by name, and nothing forbids it."""
    assert (options(MetricsConfig(), environment) is not None) == exported


def test_the_settings_alone():
    """An endpoint switches it on; what is not set has the defaults of the specification."""
    found = options(MetricsConfig(endpoint=ENDPOINT), {})

    assert found == Options(endpoint=ENDPOINT, protocol="grpc", interval=60.0, exponential=False)


def test_settings_are_stronger_than_variables():
    """But for what they leave open; and OTEL_SDK_DISABLED is stronger than all."""
    config = MetricsConfig(endpoint="http://mine:1", protocol="grpc", interval_s=5.0)
    environment = {**SET, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_METRIC_EXPORT_INTERVAL": "100"}

    assert options(config, environment) == Options(
        endpoint="http://mine:1", protocol="grpc", interval=5.0, exponential=False
    )
    assert options(config, {**environment, "OTEL_METRICS_EXPORTER": "none"}) is not None
    assert options(config, {"OTEL_SDK_DISABLED": "true"}) is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "carrier pigeon"),
        ("OTEL_METRICS_EXPORTER", "console"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "soon"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "-5"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "nan"),
    ],
)
def test_values_that_make_no_sense(variable, value):
    """Are said at the start, in a sentence."""
    with pytest.raises(ConfigError, match=value):
        options(MetricsConfig(), {**SET, variable: value})


def test_the_interval_is_in_milliseconds():
    """As the specification says."""
    found = options(MetricsConfig(), {**SET, "OTEL_METRIC_EXPORT_INTERVAL": "1500"})

    assert found is not None
    assert found.interval == 1.5


@pytest.mark.parametrize(
    ("aggregation", "exponential"),
    [("", False), ("explicit_bucket_histogram", False), ("BASE2_exponential_bucket_HISTOGRAM", True)],
)
def test_the_kind_of_histograms(aggregation, exponential):
    """By the standard variable."""
    found = options(MetricsConfig(), {**SET, "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": aggregation})

    assert found is not None
    assert found.exponential == exponential


# --- Exports -----------------------------------------------------------------------------------------------------


class Collector:
    """Stands in for the SDK's exporter: takes what it is told to take. The real ones: tests/e2e/test_metrics.py."""

    def __init__(self):
        self.taken = []
        self.ok = True
        self.called = threading.Semaphore(0)

    def export(self, data):
        self.taken.append(data)
        self.called.release()
        return export.MetricExportResult.SUCCESS if self.ok else export.MetricExportResult.FAILURE

    def shutdown(self):
        pass


@pytest.fixture
def collector(monkeypatch):
    made = Collector()
    monkeypatch.setattr(otlp_sender, "exporter", lambda _endpoint, _protocol: made)
    return made


def exporter(samples, *, interval=3600.0, exponential=False):
    """One that exports when it is closed, unless its interval is short."""
    chosen = Options(endpoint=ENDPOINT, protocol="grpc", interval=interval, exponential=exponential)
    return OtlpMetrics(chosen, samples if callable(samples) else lambda: samples)


def finish(metrics):
    """Closes it, and waits until the last export is over, however slow this machine is."""
    metrics.close()
    metrics._thread.join(30)


def points(collector):
    """All data points by metric and labels."""
    return {
        (metric.name, *point.attributes.values()): point
        for data in collector.taken
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


def test_samples_become_data_points(collector):
    """A sum, a gauge, and histograms whose buckets are no longer cumulative."""
    times = Histogram()
    for seconds in (0.75, 0.75, 3.0, 1000.0):
        times.record(seconds)
    metrics = exporter(
        [
            (names.BATCHES, ("m", "1", "idle"), 4),
            (names.QUEUED_ROWS, ("m", "1"), 7),
            (names.COMPUTE_DURATION, ("m", "1"), durations(names.COMPUTE_DURATION, times)),
            (names.BATCH_ROWS, ("m", "1"), sizes(names.BATCH_ROWS, {1: 2, 3: 1, 9999: 1})),
        ]
    )
    metrics.start()
    finish(metrics)
    found = points(collector)

    assert (metrics.sent, metrics.failed) == (1, 0)
    assert found["forebay.batches", "m", "1", "idle"].value == 4
    assert found["forebay.queue.rows", "m", "1"].value == 7
    compute = found["forebay.compute.duration", "m", "1"]
    assert (compute.count, compute.sum) == (4, 1004.5)
    filled = dict(zip((*compute.explicit_bounds, float("inf")), compute.bucket_counts, strict=True))
    assert {bound: count for bound, count in filled.items() if count} == {1.0: 2, 4.0: 1, float("inf"): 1}
    rows = found["forebay.batch.rows", "m", "1"]
    filled = dict(zip((*rows.explicit_bounds, float("inf")), rows.bucket_counts, strict=True))
    assert {bound: count for bound, count in filled.items() if count} == {1: 2, 4: 1, float("inf"): 1}
    assert (rows.count, rows.sum) == (4, 2 + 3 + 9999)


def test_exponential_histograms_are_exact(collector):
    """Each duration lies in the bucket that scale and offset say; sizes keep their own bounds."""
    times = Histogram()
    for seconds in (0.75, 3.0):
        times.record(seconds)
    metrics = exporter(
        [
            (names.COMPUTE_DURATION, ("m", "1"), durations(names.COMPUTE_DURATION, times)),
            (names.QUEUE_DURATION, ("m", "1"), durations(names.QUEUE_DURATION, Histogram())),
            (names.BATCH_ROWS, ("m", "1"), sizes(names.BATCH_ROWS, {1: 1})),
        ],
        exponential=True,
    )
    metrics.start()
    finish(metrics)
    found = points(collector)

    compute = found["forebay.compute.duration", "m", "1"]
    growth = 2.0 ** (2.0**-compute.scale)
    filled = [compute.positive.offset + place for place, count in enumerate(compute.positive.bucket_counts) if count]
    assert len(filled) == 2
    for index, seconds in zip(filled, (0.75, 3.0), strict=True):
        assert growth**index < seconds <= growth ** (index + 1)
    empty = found["forebay.queue.duration", "m", "1"]
    assert (empty.count, sum(empty.positive.bucket_counts)) == (0, 0)
    assert found["forebay.batch.rows", "m", "1"].explicit_bounds


def test_many_samples_go_in_portions(collector):
    """No export has more than its portion, and nothing is lost or sent twice."""
    samples = [(names.QUEUED_ROWS, (f"m{number}", "1"), number) for number in range(3 * otlp.PORTION + 5)]
    metrics = exporter(samples)
    metrics.start()
    finish(metrics)

    sent = [
        sum(len(metric.data.data_points) for metric in data.resource_metrics[0].scope_metrics[0].metrics)
        for data in collector.taken
    ]
    assert sent == [otlp.PORTION] * 3 + [5]
    assert len(points(collector)) == len(samples)
    assert metrics.sent == 1


def test_an_export_that_fails_is_left(collector):
    """The other portions would fail as slowly; the next export begins anew, and both are counted."""
    collector.ok = False
    samples = [(names.QUEUED_ROWS, (f"m{number}", "1"), number) for number in range(2 * otlp.PORTION)]
    metrics = exporter(samples, interval=0.01)
    metrics.start()
    for _ in range(3):
        assert collector.called.acquire(timeout=30)
    assert metrics.failed >= 2
    assert metrics.sent == 0
    collector.ok = True
    while not metrics.sent:
        assert collector.called.acquire(timeout=30)
    finish(metrics)


def test_figures_that_can_not_be_read_are_no_export(collector):
    """A dispatcher that is busy costs this export, not the thread."""
    answers = iter([TimeoutError("busy")])

    def read():
        for error in answers:
            raise error
        return [(names.QUEUED_ROWS, ("m", "1"), 1)]

    metrics = exporter(read, interval=0.01)
    metrics.start()
    assert collector.called.acquire(timeout=30)
    finish(metrics)

    assert metrics.sent >= 1
    assert metrics.failed == 0
