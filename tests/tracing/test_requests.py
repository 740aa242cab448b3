"""Spans of requests and batches, as real receivers get them over both protocols and from both front ends."""

import urllib.request

import grpc
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from forebay.v1 import inference_pb2
from forebay_server.config.tree import BatchingConfig, PrometheusConfig
from tests.serving import FRONT_ENDS, request_of, row, synthetic
from tests.tracing.conftest import PARENT, PARENT_SPAN, traceparent

PREDICT = "forebay.v1.InferenceService/Predict"
STREAM = "forebay.v1.InferenceService/StreamPredict"


@pytest.mark.parametrize("wire", FRONT_ENDS)
def test_a_request_and_its_batch(receiver, serve, call, wire):
    """The SERVER span has the caller's parent and the conventions' names, and is linked with its batch both ways."""
    server = serve(
        synthetic("model"), tracing={"endpoint": receiver.endpoint, "protocol": receiver.protocol}, wire=wire
    )
    call(server).predict("model", row(1.0, 3), metadata=[("traceparent", traceparent())])
    (span,) = receiver.received.await_spans(PREDICT)
    (batch,) = receiver.received.await_spans("forebay.batch")

    assert (span.trace, span.parent, span.kind, span.failed) == (PARENT, PARENT_SPAN, "SERVER", False)
    durations = {key: span.attributes.pop(key) for key in list(span.attributes) if key.endswith(".duration")}
    assert span.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": PREDICT,
        "rpc.response.status_code": "OK",
        "forebay.model.name": "model",
        "forebay.model.version": 1,
        "forebay.request.rows": 3,
    }
    assert sorted(durations) == [
        f"forebay.{step}.duration" for step in ("collate", "compute", "decode", "encode", "queue")
    ]
    assert all(value >= 0 for value in durations.values())
    steps = [durations[f"forebay.{step}.duration"] for step in ("queue", "collate", "compute", "encode")]
    assert sum(steps) == pytest.approx((span.end - span.start) / 1e9, abs=1e-6)
    assert span.links == [batch.identity]
    assert (batch.trace, batch.parent, batch.kind, batch.links) == (PARENT, span.id, "INTERNAL", [span.identity])
    assert span.start <= batch.start <= batch.end <= span.end
    assert batch.attributes["forebay.batch.rows"] == 3
    assert batch.attributes["forebay.batch.requests"] == 1
    assert batch.attributes["forebay.batch.dispatch_reason"] in ("idle", "full")
    assert span.resource["service.name"] == "forebay"
    assert span.scope == "forebay_server"


def test_an_exemplar_leads_to_its_span(collector, serve, call):
    """The bucket of the request's duration names the trace and the span that the collector has."""
    scraped = {"prometheus": PrometheusConfig(address="127.0.0.1:0")}
    server = serve(synthetic("model"), tracing={"endpoint": collector.endpoint}, telemetry=scraped)
    call(server).predict("model", row(1.0), metadata=[("traceparent", traceparent())])
    (span,) = collector.received.await_spans(PREDICT)
    request = urllib.request.Request(f"http://{server.addresses['prometheus']}/metrics")
    request.add_header("Accept", "application/openmetrics-text; version=1.0.0")
    with urllib.request.urlopen(request, timeout=10) as response:
        families = list(text_string_to_metric_families(response.read().decode()))

    (exemplar,) = [
        sample.exemplar
        for family in families
        if family.name == "forebay_request_duration_seconds"
        for sample in family.samples
        if sample.exemplar is not None
    ]
    assert exemplar.labels == {"trace_id": span.trace, "span_id": span.id}
    assert exemplar.value == pytest.approx((span.end - span.start) / 1e9, abs=1e-3)


@pytest.mark.parametrize("wire", FRONT_ENDS)
def test_every_request_of_a_batch_is_linked_both_ways(collector, serve, call, wire):
    """Four requests of four traces share a batch: it links all, and each links it; its rows are theirs."""
    model = synthetic("model", batching=BatchingConfig(max_batch_size=4, max_delay_ms=5000.0))
    server = serve(model, tracing={"endpoint": collector.endpoint}, wire=wire)
    caller = call(server)
    traces = [f"{number:032x}" for number in range(1, 5)]
    futures = [caller.later("model", row(1.0), metadata=[("traceparent", traceparent(trace))]) for trace in traces]
    for future in futures:
        future.result(20)
    spans = collector.received.await_spans(PREDICT, 4)
    (batch,) = collector.received.await_spans("forebay.batch")

    assert sorted(span.trace for span in spans) == traces
    assert all(span.links == [batch.identity] for span in spans)
    assert sorted(batch.links) == sorted(span.identity for span in spans)
    assert (batch.attributes["forebay.batch.rows"], batch.attributes["forebay.batch.requests"]) == (4, 4)
    assert batch.attributes["forebay.batch.dispatch_reason"] == "full"
    assert batch.parent in {span.id for span in spans if span.trace == batch.trace}


def test_a_request_in_parts_links_all_its_batches(collector, serve, call):
    """A request larger than the largest batch has a link to each of its batches."""
    server = serve(
        synthetic("model", batching=BatchingConfig(max_batch_size=4)), tracing={"endpoint": collector.endpoint}
    )
    call(server).predict("model", row(1.0, 10))
    (span,) = collector.received.await_spans(PREDICT)
    batches = collector.received.await_spans("forebay.batch", 3)

    assert sorted(span.links) == sorted(batch.identity for batch in batches)
    assert sum(batch.attributes["forebay.batch.rows"] for batch in batches) == 10
    assert all(batch.links == [span.identity] for batch in batches)


def test_links_have_a_limit(collector, serve, call, monkeypatch):
    """A batch with more sampled requests than links are allowed links the first, and says how many it left out."""
    monkeypatch.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", "2")
    model = synthetic("model", batching=BatchingConfig(max_batch_size=5, max_delay_ms=5000.0))
    server = serve(model, tracing={"endpoint": collector.endpoint})
    caller = call(server)
    for future in [caller.later("model", row(1.0)) for _ in range(5)]:
        future.result(20)
    spans = collector.received.await_spans(PREDICT, 5)
    (batch,) = collector.received.await_spans("forebay.batch")

    assert len(batch.links) == 2
    assert batch.proto.dropped_links_count == 3
    assert all(span.links == [batch.identity] for span in spans)


@pytest.mark.parametrize("wire", FRONT_ENDS)
def test_a_stream_and_its_items(collector, serve, call, wire):
    """The stream has a SERVER span; an item with a context of its own is under that, the others under the stream."""
    server = serve(synthetic("model"), tracing={"endpoint": collector.endpoint}, wire=wire)
    own = "11111111111111111111111111111111"
    items = [
        inference_pb2.StreamItem(id=1, request=request_of("model", row(1.0)), traceparent=traceparent(own)),
        inference_pb2.StreamItem(id=2, request=request_of("model", row(2.0))),
        inference_pb2.StreamItem(id=3, request=request_of("nothing", row(2.0))),
    ]
    message = inference_pb2.StreamPredictRequest(items=items)
    answers = call(server).inference.StreamPredict(
        iter([message]), timeout=20, metadata=[("traceparent", traceparent())]
    )
    assert sum(len(answer.results) for answer in answers) == 3
    (stream,) = collector.received.await_spans(STREAM)
    found = collector.received.await_spans("forebay.stream.item", 3)
    spans = {span.attributes["forebay.stream.item.id"]: span for span in found}

    assert (stream.trace, stream.parent, stream.kind) == (PARENT, PARENT_SPAN, "SERVER")
    assert (spans[1].trace, spans[1].parent, spans[1].kind) == (own, PARENT_SPAN, "SERVER")
    assert (spans[2].trace, spans[2].parent, spans[2].kind) == (PARENT, stream.id, "INTERNAL")
    assert (spans[3].trace, spans[3].parent) == (PARENT, stream.id)
    assert spans[3].attributes["error.type"] == "MODEL_NOT_FOUND"
    assert spans[3].attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert not spans[3].failed, "the caller's fault, by the conventions"
    batches = {batch.identity for batch in collector.received.await_spans("forebay.batch")}
    assert {*spans[1].links, *spans[2].links} == batches


def test_failures_say_their_status(collector, serve, call):
    """What is the server's fault has the status ERROR, with the reason; what is the caller's has only the code."""
    server = serve(synthetic("model", poison=13.0), tracing={"endpoint": collector.endpoint})
    caller = call(server)
    assert caller.fails(request_of("model", row(13.0))).code() == grpc.StatusCode.INTERNAL
    assert caller.fails(request_of("model", row(1.0, width=5))).code() == grpc.StatusCode.INVALID_ARGUMENT
    internal, invalid = collector.received.await_spans(PREDICT, 2)
    (batch,) = collector.received.await_spans("forebay.batch")

    assert internal.failed
    assert internal.attributes["error.type"] == "INTERNAL"
    assert internal.attributes["rpc.response.status_code"] == "INTERNAL"
    assert internal.links == [batch.identity]
    assert batch.failed
    assert batch.attributes["error.type"] == "faulted"
    assert not invalid.failed
    assert invalid.attributes["error.type"] == "INVALID_TENSOR"


def test_models_load_and_warm_up(collector, serve):
    """A model's way into service is a span with two steps inside."""
    serve(synthetic("model"), tracing={"endpoint": collector.endpoint})
    (load,) = collector.received.await_spans("forebay.model.load")
    (warm,) = collector.received.await_spans("forebay.model.warm_up")
    (read,) = collector.received.await_spans("forebay.model.read")

    assert load.parent == ""
    assert (read.parent, warm.parent) == (load.id, load.id)
    assert load.start <= read.start <= read.end <= warm.start <= warm.end <= load.end
    assert load.attributes == {"forebay.model.name": "model", "forebay.model.version": 1}
