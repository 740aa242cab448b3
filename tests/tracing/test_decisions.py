"""Who gets a span, decided by a running server: parents, ratios, the tail rule, the standard variables."""

import grpc
import pytest

from forebay_server.config.tree import BatchingConfig
from forebay_server.errors import ConfigError
from tests.serving import request_of, row, synthetic
from tests.tracing.conftest import PARENT, traceparent
from tests.waiting import eventually

PREDICT = "forebay.v1.InferenceService/Predict"
UNSAMPLED = "22222222222222222222222222222222"


def test_the_callers_decision_counts(collector, serve, call):
    """Parent-based, without a part of its own: sampled callers have spans, unsampled and unknown ones have none."""
    server = serve(synthetic("model"), tracing={"endpoint": collector.endpoint, "sampler": "parentbased_always_off"})
    caller = call(server)
    caller.predict("model", row(1.0), metadata=[("traceparent", traceparent(UNSAMPLED, sampled=False))])
    caller.predict("model", row(1.0))
    caller.predict("model", row(1.0), metadata=[("traceparent", "00-nonsense-01")])
    caller.predict("model", row(1.0), metadata=[("traceparent", traceparent())])
    collector.received.await_spans(PREDICT)
    server.close()

    assert [span.trace for span in collector.received.named(PREDICT)] == [PARENT]


def test_a_part_of_the_rest_is_sampled(collector, serve, call):
    """Of 2,000 requests without a trace about a quarter has a span: 500 within five standard deviations."""
    server = serve(synthetic("model"), tracing={"endpoint": collector.endpoint, "sampler": "auto", "ratio": 0.25})
    caller = call(server)
    for _ in range(20):
        for future in [caller.later("model", row(1.0)) for _ in range(100)]:
            future.result(20)
    server.close()

    assert 400 < len(collector.received.named(PREDICT)) < 600


def test_errors_and_slow_requests_are_kept(collector, serve, call):
    """Nobody is sampled, but what is slow or fails has a span, in its caller's trace, linked with its batch."""
    tracing = {"endpoint": collector.endpoint, "sampler": "parentbased_always_off", "slow_ms": 150.0}
    slow = synthetic("slow", base_ms=200.0)
    server = serve(synthetic("model", poison=13.0), slow, tracing=tracing)
    caller = call(server)
    metadata = [("traceparent", traceparent(UNSAMPLED, sampled=False))]
    caller.predict("model", row(1.0), metadata=metadata)
    caller.predict("slow", row(1.0), metadata=metadata)
    assert caller.fails(request_of("model", row(13.0)), metadata=metadata).code() == grpc.StatusCode.INTERNAL
    assert caller.fails(request_of("model", row(1.0, width=5))).code() == grpc.StatusCode.INVALID_ARGUMENT
    server.close()
    spans = {span.attributes["forebay.sampled_by"]: span for span in collector.received.named(PREDICT)}
    batches = {batch.links[0]: batch for batch in collector.received.named("forebay.batch")}

    assert sorted(spans) == ["error", "slow"]
    assert len(collector.received.named(PREDICT)) == 2, "fast ones and the caller's own faults are not kept"
    assert {span.trace for span in spans.values()} == {UNSAMPLED}
    assert spans["slow"].attributes["forebay.model.name"] == "slow"
    assert spans["error"].attributes["error.type"] == "INTERNAL"
    assert all(span.links == [batches[span.identity].identity] for span in spans.values())


def test_a_storm_of_errors_has_few_spans(collector, serve, call):
    """The tail rule keeps so many spans a second and counts the others."""
    tracing = {"endpoint": collector.endpoint, "sampler": "always_off", "tail_per_second": 5.0}
    model = synthetic("model", base_ms=100.0, batching=BatchingConfig(max_batch_size=1, max_queued_rows=1))
    server = serve(model, tracing=tracing)
    caller = call(server)
    futures = [caller.later("model", row(1.0)) for _ in range(300)]
    refused = sum(future.exception(20) is not None for future in futures)
    figures = server.spans()
    server.close()

    assert refused > 200
    found = collector.received.named(PREDICT)
    assert 10 <= len(found) < 30
    assert found[0].attributes["rpc.response.status_code"] == "RESOURCE_EXHAUSTED"
    assert figures.suppressed + len(found) == refused


def test_a_deadline_that_passes_is_an_error(collector, serve, call):
    """A call whose deadline the front end has ended has a span that says so."""
    tracing = {"endpoint": collector.endpoint, "sampler": "always_off"}
    server = serve(synthetic("model", base_ms=400.0), tracing=tracing)
    caller = call(server)
    first = caller.later("model", row(1.0))
    assert caller.fails(request_of("model", row(1.0)), timeout=0.2).code() == grpc.StatusCode.DEADLINE_EXCEEDED
    first.result(20)
    (span,) = collector.received.await_spans(PREDICT)

    assert span.attributes["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
    assert span.failed


def test_the_standard_variables_work(receiver, serve, call, monkeypatch):
    """Where to, how, what is sampled, headers, and who this is: all from OTEL_* variables."""
    for name, value in {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": receiver.protocol,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=value",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "1.0",
        "OTEL_SERVICE_NAME": "digits",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test,service.version=7",
    }.items():
        monkeypatch.setenv(name, value)
    server = serve(synthetic("model"), tracing={"sampler": "auto"})
    call(server).predict("model", row(1.0))
    (span,) = receiver.received.await_spans(PREDICT)

    assert span.resource["service.name"] == "digits"
    assert span.resource["service.version"] == "7"
    assert span.resource["deployment.environment.name"] == "test"
    headers = {key.lower(): value for key, value in receiver.received.headers[0].items()}
    assert headers["x-key"] == "value"


@pytest.mark.parametrize("name", ["OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"])
def test_the_standard_variables_switch_it_off(collector, serve, monkeypatch, name):
    """OTEL_SDK_DISABLED=true is stronger than everything; OTEL_TRACES_EXPORTER=none than the other variables."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    positive = serve(synthetic("model"), tracing={})
    monkeypatch.setenv(name, "true" if name == "OTEL_SDK_DISABLED" else "none")
    server = serve(synthetic("model"), tracing={})

    assert positive.spans() is not None
    assert server.spans() is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("OTEL_TRACES_SAMPLER_ARG", "much"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
    ],
)
def test_a_variable_that_makes_no_sense_ends_the_start(collector, serve, monkeypatch, name, value):
    """The error names the variable."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError, match=name):
        serve(synthetic("model"), tracing={"sampler": "auto"})


def test_other_services_have_spans_too(collector, serve, call):
    """ModelService's calls are seen from outside, failures with their code."""
    from forebay.v1 import model_service_pb2  # noqa: PLC0415  # only here

    server = serve(synthetic("model"), tracing={"endpoint": collector.endpoint})
    caller = call(server)
    caller.models.ListModels(model_service_pb2.ListModelsRequest(), timeout=5)
    with pytest.raises(grpc.RpcError):
        caller.models.GetModel(model_service_pb2.GetModelRequest(model="nothing"), timeout=5)
    (listed,) = collector.received.await_spans("forebay.v1.ModelService/ListModels")
    (failed,) = collector.received.await_spans("forebay.v1.ModelService/GetModel")

    assert listed.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "forebay.v1.ModelService/ListModels",
        "rpc.response.status_code": "OK",
    }
    assert failed.attributes["rpc.response.status_code"] == "NOT_FOUND"


def test_cancelled_calls_have_their_span(collector, serve, call):
    """A caller that goes away leaves a span with CANCELLED."""
    server = serve(synthetic("model", base_ms=300.0), tracing={"endpoint": collector.endpoint})
    caller = call(server)
    first = caller.later("model", row(1.0))
    second = caller.later("model", row(1.0))
    eventually(lambda: server._inference.in_flight() == 2, "both have arrived")
    second.cancel()
    first.result(20)
    spans = collector.received.await_spans(PREDICT, 2)

    assert sorted(span.attributes["rpc.response.status_code"] for span in spans) == ["CANCELLED", "OK"]
