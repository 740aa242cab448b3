"""The real OpenTelemetry Collector, built from its Go modules, takes the spans and writes what it has understood."""

import base64
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from tests.chaos.conftest import free_port
from tests.e2e.conftest import eventually, row, synthetic
from tests.tracing.conftest import PARENT, PARENT_SPAN, spans_of, traceparent

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
  file: {{path: "{tmp_path}/spans.json", flush_interval: 100ms}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    traces: {{receivers: [otlp], exporters: [file]}}
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


def written(path):
    """The spans in the collector's file. OTLP has ids in hexadecimal where JSON of protobuf has base64."""

    def rewrite(value):
        if isinstance(value, list):
            return [rewrite(item) for item in value]
        if isinstance(value, dict):
            return {
                key: base64.b64encode(bytes.fromhex(item)).decode() if key.endswith(("Id", "_id")) else rewrite(item)
                for key, item in value.items()
            }
        return value

    if not path.exists():
        return []
    requests = []
    for line in path.read_text().splitlines():
        message = trace_service_pb2.ExportTraceServiceRequest()
        requests.append(json_format.ParseDict(rewrite(json.loads(line)), message))
    return spans_of(requests)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_the_real_collector_understands_every_span(serve, call, ports, tmp_path, protocol):
    """Parents, links both ways and attributes are what was sent, over both protocols."""
    endpoint = f"http://127.0.0.1:{ports[protocol]}"
    server = serve(synthetic("model"), tracing={"endpoint": endpoint, "protocol": protocol})
    call(server).predict("model", row(1.0, 3), metadata=[("traceparent", traceparent())])
    eventually(lambda: server.spans().exported >= 5, "request, batch, and three of the model")
    server.close()
    time.sleep(0.5)
    spans = written(tmp_path / "spans.json")
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
