"""The real OpenTelemetry Collector, built from its Go modules, takes spans and metrics and writes what it has read."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from forebay_server.config.tree import MetricsConfig
from tests.serving import row, synthetic
from tests.tracing.conftest import PARENT, PARENT_SPAN, spans_of, traceparent
from tests.waiting import eventually, free_port

pytestmark = [
    pytest.mark.long,  # building it takes minutes the first time
    pytest.mark.skipif(shutil.which("go") is None, reason="needs Go"),
]

SOURCE = Path(__file__).parent / "collector"
PREDICT = "forebay.v1.InferenceService/Predict"


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """The collector's program."""
    path = tmp_path_factory.mktemp("collector") / "collector"
    subprocess.run(["go", "build", "-o", path, "."], cwd=SOURCE, check=True, timeout=900)
    return path


@pytest.fixture
def ports(program, tmp_path):
    """A running collector: its port for each protocol."""
    ports = {"grpc": free_port(), "http/protobuf": free_port()}
    config = tmp_path / "collector.yaml"
    config.write_text(f"""
receivers:
  otlp:
    protocols:
      grpc: {{endpoint: "127.0.0.1:{ports["grpc"]}"}}
      http: {{endpoint: "127.0.0.1:{ports["http/protobuf"]}"}}
exporters:
  file/spans: {{path: "{tmp_path}/spans.json", flush_interval: 100ms}}
  file/metrics: {{path: "{tmp_path}/metrics.json", flush_interval: 100ms}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    traces: {{receivers: [otlp], exporters: [file/spans]}}
    metrics: {{receivers: [otlp], exporters: [file/metrics]}}
""")
    with (tmp_path / "collector.log").open("w") as log:
        process = subprocess.Popen([program, "--config", f"file:{config}"], stdout=log, stderr=log)
    try:
        log = tmp_path / "collector.log"
        eventually(lambda: "Everything is ready" in log.read_text() or process.poll() is not None, "it runs", 30)
        assert process.poll() is None, log.read_text()
        yield ports
    finally:
        process.terminate()
        process.wait(20)


def written(path, kind):
    """The messages in a file of the collector's. OTLP has ids in hexadecimal where JSON of protobuf has base64."""

    def rewrite(value):
        if isinstance(value, list):
            return [rewrite(item) for item in value]
        if isinstance(value, dict):
            return {
                key: base64.b64encode(bytes.fromhex(item)).decode() if key.endswith("Id") else rewrite(item)
                for key, item in value.items()
            }
        return value

    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json_format.ParseDict(rewrite(json.loads(line)), kind()) for line in lines if line.endswith("\n")]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_the_real_collector_understands_every_span(serve, call, ports, tmp_path, protocol):
    """Parents, links both ways and attributes are what was sent, over both protocols."""
    endpoint = f"http://127.0.0.1:{ports[protocol]}"
    server = serve(synthetic("model"), tracing={"endpoint": endpoint, "protocol": protocol})
    call(server).predict("model", row(1.0, 3), metadata=[("traceparent", traceparent())])

    def received():
        return spans_of(written(tmp_path / "spans.json", trace_service_pb2.ExportTraceServiceRequest))

    eventually(lambda: len(received()) >= 5, "request, batch, and three of the model", 30)
    spans = received()
    (span,) = (span for span in spans if span.name == PREDICT)
    (batch,) = (span for span in spans if span.name == "forebay.batch")

    assert (span.trace, span.parent, span.kind) == (PARENT, PARENT_SPAN, "SERVER")
    assert (batch.trace, batch.parent, batch.kind) == (PARENT, span.id, "INTERNAL")
    assert span.links == [batch.identity]
    assert batch.links == [span.identity]
    assert span.attributes["rpc.response.status_code"] == "OK"
    assert batch.attributes["forebay.batch.rows"] == 3
    assert span.resource["service.name"] == "forebay"
    assert {span.name for span in spans} >= {"forebay.model.load", "forebay.model.read", "forebay.model.warm_up"}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("aggregation", ["explicit_bucket_histogram", "base2_exponential_bucket_histogram"])
def test_the_real_collector_understands_metrics(serve, call, ports, tmp_path, monkeypatch, protocol, aggregation):
    """Sums, gauges, and histograms of either kind, with an exemplar that names the request's span."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", aggregation)
    endpoint = f"http://127.0.0.1:{ports[protocol]}"
    metrics = MetricsConfig(endpoint=endpoint, protocol=protocol, interval_s=0.2)
    tracing = {"endpoint": endpoint, "protocol": protocol}
    server = serve(synthetic("model", base_ms=2.0), tracing=tracing, telemetry={"metrics": metrics})
    call(server).predict("model", row(1.0, 3), metadata=[("traceparent", traceparent())])

    def found():
        messages = written(tmp_path / "metrics.json", metrics_service_pb2.ExportMetricsServiceRequest)
        return {
            metric.name: metric
            for message in messages
            for resource in message.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def points(name):
        metric = found().get(name)
        return [] if metric is None else getattr(metric, metric.WhichOneof("data")).data_points

    eventually(lambda: any(point.exemplars for point in points("forebay.request.duration")), "the figures", 30)
    (requests,) = points("forebay.requests")
    (rows,) = points("forebay.batch.rows")
    (duration,) = points("forebay.request.duration")
    assert requests.as_int == 1
    assert {pair.key: pair.value.string_value for pair in requests.attributes}["method"] == "Predict"
    assert found()["forebay.model.ready"].gauge.data_points[0].as_int == 1
    assert (rows.count, rows.sum) == (1, 3)
    assert (duration.count, duration.sum > 2e-3) == (1, True)
    if aggregation.startswith("base2"):
        low = 2.0 ** (duration.positive.offset / 2**duration.scale)
        assert low < duration.sum <= low * 2.0 ** (2.0**-duration.scale)
    else:
        bounds = [*duration.explicit_bounds, float("inf")]
        (place,) = [place for place, count in enumerate(duration.bucket_counts) if count]
        assert bounds[place - 1] < duration.sum <= bounds[place]
    (exemplar,) = duration.exemplars
    assert exemplar.trace_id.hex() == PARENT
