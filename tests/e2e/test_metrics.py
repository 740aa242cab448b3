"""What is scraped and exported after known traffic, over both front ends."""

import threading
import time
import urllib.request
from concurrent import futures
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from forebay.v1 import inference_pb2, job_service_pb2, model_service_pb2
from forebay_server.config.tree import (
    ExposureConfig,
    JobsConfig,
    MetricsConfig,
    PrometheusConfig,
    TelemetryConfig,
    TenantConfig,
    WebhooksConfig,
)
from forebay_server.telemetry.names import METRICS
from tests.serving import request_of, row, synthetic
from tests.waiting import eventually

SCRAPED = TelemetryConfig(prometheus=PrometheusConfig(address="127.0.0.1:0"))
KNOWN = {name for metric in METRICS for name in (metric.prometheus, metric.family)}


def scrape(server):
    """All samples by name and labels."""
    with urllib.request.urlopen(f"http://{server.addresses['prometheus']}/metrics", timeout=10) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    assert {family.name for family in families} <= KNOWN
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(found, name, **labels):
    """Of one series."""
    return found[name, frozenset(labels.items())]


def test_values_after_known_traffic(serve, call):
    """Requests by method and outcome, rows, padding and durations, exactly."""
    server = serve(
        synthetic(base_ms=1.0),
        telemetry=SCRAPED,
        jobs=JobsConfig(store="memory:"),
        tenants={"alice": TenantConfig()},
        server={"public": ExposureConfig(address="127.0.0.1:0", trusted=True)},
    )
    caller = call(server)
    for rows in (1, 2, 3):
        caller.predict("model", row(1.0, rows))
    items = [inference_pb2.StreamItem(id=number, request=request_of("model", row(2.0))) for number in range(4)]
    list(caller.inference.StreamPredict(iter([inference_pb2.StreamPredictRequest(items=items)]), timeout=10))
    job = caller.jobs.Submit(job_request("model"), timeout=10).job.id
    assert job
    bad = request_of("model", row(1.0))
    bad.inputs[0].name = "y"
    caller.fails(bad, metadata=[("x-forebay-tenant", "alice")])
    caller.fails(request_of("nothing", row(1.0)), metadata=[("x-forebay-tenant", "mallory")])
    caller.models.ListModels(model_service_pb2.ListModelsRequest(), timeout=5)

    ended = ("forebay_jobs_ended_total", frozenset({("state", "succeeded")}))
    eventually(lambda: scrape(server)[ended] == 1, "the job has ended")
    found = scrape(server)

    def requests(method, code, reason="", model="model", version="1"):
        return value(
            found, "forebay_requests_total", model=model, version=version, method=method, code=code, reason=reason
        )

    assert requests("Predict", "OK") == 3
    assert requests("StreamPredict", "OK") == 4
    assert requests("Submit", "OK") == 1
    assert requests("Predict", "INVALID_ARGUMENT", "INVALID_TENSOR") == 1
    assert requests("Predict", "NOT_FOUND", "MODEL_NOT_FOUND", "other", "") == 1
    model = {"model": "model", "version": "1"}
    assert value(found, "forebay_request_duration_seconds_count", **model, method="Predict") == 3
    assert value(found, "forebay_request_duration_seconds_bucket", **model, method="Predict", le="0.0009765625") == 0
    assert value(found, "forebay_queue_duration_seconds_count", **model) == 8
    assert value(found, "forebay_batch_rows_sum", **model) == 1 + 2 + 3 + 4 + 1
    assert value(found, "forebay_batch_requests_sum", **model) == 8
    batches = value(found, "forebay_compute_duration_seconds_count", **model)
    assert 5 <= batches <= 8
    assert sum(count for (name, _), count in found.items() if name == "forebay_batches_total") == batches
    assert value(found, "forebay_engine_busy_seconds_total", **model) >= batches * 1e-3
    assert value(found, "forebay_refusals_total", **model, reason="INVALID_TENSOR") == 1
    assert value(found, "forebay_tenant_refusals_total", tenant="alice") == 1
    assert value(found, "forebay_tenant_refusals_total", tenant="other") == 1
    assert value(found, "forebay_calls_total", rpc="forebay.v1.ModelService/ListModels", code="OK") == 1
    assert value(found, "forebay_calls_total", rpc="forebay.v1.JobService/Submit", code="OK") == 1
    assert value(found, "forebay_jobs_submitted_total") == 1
    assert value(found, "forebay_job_claims_total", outcome="taken") == 1
    assert value(found, "forebay_model_ready", **model) == 1
    assert value(found, "forebay_serving") == 1
    assert value(found, "forebay_dispatcher_turn_duration_seconds_count") > 0
    assert value(found, "process_threads") > 5


def job_request(model):
    """A submission."""
    return job_service_pb2.SubmitRequest(request=request_of(model, row(3.0)))


def test_missed_deadlines_and_cancellations_are_told_apart(serve, call):
    """A call that its caller gives up is CANCELLED; one whose time is over is a missed deadline."""
    server = serve(synthetic(base_ms=300.0, engine={"run": "worker"}), telemetry=SCRAPED)
    caller = call(server)
    caller.predict("model", row(1.0))
    first = caller.later("model", row(1.0))
    given_up = caller.later("model", row(1.0))
    late = caller.later("model", row(1.0), timeout=0.1)
    with pytest.raises(grpc.RpcError):
        late.result()
    given_up.cancel()
    first.result()

    def outcomes():
        return {
            (dict(labels)["code"], dict(labels)["reason"]): count
            for (name, labels), count in scrape(server).items()
            if name == "forebay_requests_total"
        }

    eventually(lambda: sum(outcomes().values()) == 4, "all have ended")
    found = outcomes()
    assert (found["OK", ""], found["CANCELLED", ""]) == (2, 1)
    (missed,) = [reason for code, reason in found if code == "DEADLINE_EXCEEDED"]
    assert missed in ("DEADLINE_EXPIRED", "DEADLINE_UNREACHABLE")


def test_invented_names_make_no_series(serve, call):
    """10,000 models, versions, methods and tenants that nobody has heard of."""
    server = serve(
        synthetic(),
        telemetry=SCRAPED,
        server={"public": ExposureConfig(address="127.0.0.1:0", trusted=True)},
        tenants={"alice": TenantConfig()},
    )
    caller = call(server)
    caller.predict("model", row(1.0))

    def attack(first, last):
        pending = []
        for number in range(first, last):
            metadata = [("x-forebay-tenant", f"tenant-{number}")]
            pending.append(
                caller.inference.Predict.future(
                    request_of(f"model-{number}", row(1.0), version=str(number + 2)), timeout=20, metadata=metadata
                )
            )
            if number % 10 == 0:
                method = caller.channel.unary_unary(f"/forebay.v1.InferenceService/Predict{number}")
                pending.append(method.future(b"", timeout=20))
                method = caller.channel.unary_unary(f"/made.up{number}.Service/Call")
                pending.append(method.future(b"", timeout=20))
            if len(pending) > 200:
                assert all(future.exception() is not None for future in pending)
                pending.clear()
        assert all(future.exception() is not None for future in pending)

    attack(0, 50)
    before = scrape(server)
    attack(50, 10_000)
    after = scrape(server)

    refused = {"model": "other", "version": "", "method": "Predict", "code": "NOT_FOUND", "reason": "MODEL_NOT_FOUND"}
    assert value(after, "forebay_requests_total", **refused) == 10_000
    assert value(after, "forebay_tenant_refusals_total", tenant="other") == 10_000
    assert set(after) == set(before)


def test_secrets_are_in_no_series(serve, call, collector, monkeypatch):
    """Not from metadata, payloads, parameters, ids, names or settings; the model's own name is (the control)."""
    canary = "canary-5up3r-53"  # with a blank 16 bytes, a row of the model
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization={canary}")
    monkeypatch.setenv("HOOK_SECRET", f"{canary}{canary}{canary}")
    webhooks = WebhooksConfig(allow=["https://hooks.example.com/"], secrets={"first": "env:HOOK_SECRET"})
    server = serve(
        synthetic("told", poison=13.0),
        jobs=JobsConfig(store="memory:", webhooks=webhooks),
        server={"public": ExposureConfig(address="127.0.0.1:0", trusted=True)},
        telemetry=TelemetryConfig(
            prometheus=SCRAPED.prometheus,
            metrics=MetricsConfig(endpoint=f"http://127.0.0.1:{collector.grpc_port}", interval_s=0.2),
        ),
    )
    caller = call(server)
    metadata = [("authorization", f"Bearer {canary}"), ("x-forebay-tenant", canary), (f"{canary}-bin", canary.encode())]
    secret = np.frombuffer(f"{canary} ".encode(), "<f4").reshape(1, 4)
    fields = {"request_id": canary, "parameters": {canary: inference_pb2.Parameter(string_value=canary)}}
    caller.predict("told", secret, metadata=metadata, **fields)
    caller.fails(request_of("told", np.vstack([secret, row(13.0)]), **fields), metadata=metadata)
    caller.fails(request_of("told", secret, name=canary, **fields), metadata=metadata)
    caller.fails(request_of(canary, secret), metadata=metadata)
    caller.fails(request_of("told", secret, version=canary), metadata=metadata)
    with pytest.raises(grpc.RpcError):
        caller.channel.unary_unary(f"/{canary}.Service/{canary}")(canary.encode(), timeout=10, metadata=metadata)
    job = job_service_pb2.SubmitRequest(request=request_of("told", secret, **fields))
    caller.jobs.Submit(job, timeout=10, metadata=metadata)

    ended = ("forebay_jobs_ended_total", frozenset({("state", "succeeded")}))
    eventually(lambda: scrape(server)[ended] == 1, "the job has ended")
    seen = len(collector.requests)
    eventually(lambda: len(collector.requests) > seen, "an export after that", 20)
    request = urllib.request.Request(f"http://{server.addresses['prometheus']}/metrics")
    request.add_header("Accept", "application/openmetrics-text")
    with urllib.request.urlopen(request, timeout=10) as response:
        text = response.read()
    sent = b"".join(each.SerializeToString() for each in collector.requests)
    for told in (text, sent):
        assert b"told" in told
        assert canary.encode() not in told


def test_scrapes_go_on_while_the_server_drains(serve, call):
    """And one after it has closed finds nobody."""
    server = serve(synthetic(), telemetry=SCRAPED)
    assert value(scrape(server), "forebay_serving") == 1
    server.close()
    with pytest.raises(OSError):
        scrape(server)


class Collector(metrics_service_pb2_grpc.MetricsServiceServicer):
    """An OTLP receiver, over gRPC and HTTP, of its own making."""

    def __init__(self):
        self.requests = []
        self.headers = []
        self.pool = futures.ThreadPoolExecutor(2)
        self.grpc = grpc.server(self.pool)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(self, self.grpc)
        self.grpc_port = self.grpc.add_insecure_port("127.0.0.1:0")
        self.grpc.start()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.headers.append((self.path, dict(self.headers)))
                collector.requests.append(metrics_service_pb2.ExportMetricsServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def Export(self, request, context):
        self.headers.append(("grpc", dict(context.invocation_metadata())))
        self.requests.append(request)
        return metrics_service_pb2.ExportMetricsServiceResponse()

    def metrics(self):
        """The latest of each, by name."""
        return {
            metric.name: metric
            for request in list(self.requests)
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def close(self):
        self.grpc.stop(None).wait()
        self.pool.shutdown()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def collector():
    found = Collector()
    yield found
    found.close()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_otlp(serve, call, collector, monkeypatch, protocol):
    """A collector gets the same figures, under the names of the conventions, by the standard variables."""
    port = collector.grpc_port if protocol == "grpc" else collector.http.server_port
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=abc")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test,service.name=pool")
    server = serve(synthetic())
    caller = call(server)
    for _ in range(3):
        caller.predict("model", row(1.0))

    def ours():
        requests = collector.metrics().get("forebay.requests")
        return [] if requests is None else [point for point in requests.sum.data_points if point.as_int == 3]

    eventually(ours, "the figures have arrived")
    (point,) = ours()
    labels = {pair.key: pair.value.string_value for pair in point.attributes}
    assert labels == {"model": "model", "version": "1", "method": "Predict", "code": "OK", "reason": ""}
    assert 0 < point.start_time_unix_nano < point.time_unix_nano
    requests = collector.metrics()["forebay.requests"]
    assert (requests.unit, requests.sum.is_monotonic, requests.sum.aggregation_temporality) == ("{request}", True, 2)
    (duration,) = collector.metrics()["forebay.request.duration"].histogram.data_points
    assert (duration.count, sum(duration.bucket_counts), len(duration.explicit_bounds)) == (3, 3, 27)
    assert not duration.HasField("min")
    resource = {
        pair.key: pair.value.string_value for pair in collector.requests[-1].resource_metrics[0].resource.attributes
    }
    assert (resource["service.name"], resource["deployment.environment"]) == ("pool", "test")
    assert resource["service.version"] == "0.1.0"
    place, headers = collector.headers[-1]
    assert place == ("grpc" if protocol == "grpc" else "/v1/metrics")
    assert {name.lower(): text for name, text in headers.items()}["x-key"] == "abc"


def test_exponential_histograms(serve, call, collector, monkeypatch):
    """As they are counted, if the standard variable asks for them."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "base2_exponential_bucket_histogram")
    server = serve(
        synthetic(base_ms=2.0),
        telemetry=TelemetryConfig(
            metrics=MetricsConfig(endpoint=f"http://127.0.0.1:{collector.grpc_port}", interval_s=0.2)
        ),
    )
    call(server).predict("model", row(1.0))

    def points():
        metric = collector.metrics().get("forebay.compute.duration")
        return [] if metric is None else [each for each in metric.exponential_histogram.data_points if each.count == 1]

    eventually(points, "the histogram has arrived")
    (point,) = points()
    assert (point.scale, point.zero_count, list(point.positive.bucket_counts)) == (2, 0, [1])
    low, high = 2 ** (point.positive.offset / 4), 2 ** ((point.positive.offset + 1) / 4)
    assert low < point.sum <= high
    assert point.sum >= 2e-3
    rows = collector.metrics()["forebay.batch.rows"].histogram.data_points
    assert [each.count for each in rows] == [1]


def test_a_collector_that_is_not_there_is_not_felt(serve, call):
    """Nothing waits for it, failures are counted, and the server closes in time."""
    server = serve(
        synthetic(),
        telemetry=TelemetryConfig(
            prometheus=SCRAPED.prometheus, metrics=MetricsConfig(endpoint="http://127.0.0.1:9", interval_s=0.05)
        ),
    )
    caller = call(server)
    for _ in range(50):
        caller.predict("model", row(1.0))
    assert value(scrape(server), "forebay_telemetry_exports_total", outcome="sent") == 0
    began = time.monotonic()
    server.close()
    assert time.monotonic() - began < 10.0


def test_fifty_models_are_scraped_quickly(serve, call):
    """In portions that keep the dispatcher for less than 5 ms each."""
    server = serve(*[synthetic(f"m{number}") for number in range(50)], telemetry=SCRAPED)
    caller = call(server)
    for number in range(50):
        caller.predict(f"m{number}", np.ones((1, 4), np.float32))
    scrape(server)
    found = scrape(server)
    assert sum(name == "forebay_model_ready" for name, _ in found) == 50
    assert value(found, "forebay_telemetry_snapshot_seconds") > 0.0  # how much: bench/telemetry_cases.py
