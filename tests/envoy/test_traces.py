"""Envoy's spans between the caller's and the server's: one trace, whichever file, sent to one receiver of OTLP."""

import re

import grpc
import pytest

from forebay_server.config.tree import TelemetryConfig, TracingConfig
from tests.envoy.conftest import clusters, endpoint, listener
from tests.serving import request_of, row, synthetic
from tests.tracing.conftest import PARENT, PARENT_SPAN, GrpcReceiver, traceparent
from tests.waiting import eventually

PREDICT = "forebay.v1.InferenceService/Predict"
REST = "/v1/models/model:predict"
BODY = {"inputs": [{"name": "x", "dataType": "DATA_TYPE_FP32", "shape": [1, 4], "numbers": [1, 2, 3, 4]}]}
UNSAMPLED = "22222222222222222222222222222222"


@pytest.fixture
def receiver(monkeypatch):
    """A receiver of spans; ours are sent soon."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    made = GrpcReceiver()
    yield made
    made.close()


@pytest.fixture
def traced(replica):
    """Starts a server whose spans go to the receiver."""

    def start(receiver, **arguments):
        tracing = TracingConfig(endpoint=receiver.endpoint, slow_ms=0.0, ratio=0.0)
        return replica(synthetic(), telemetry=TelemetryConfig(tracing=tracing), **arguments)

    return start


def sending_to(receiver, percent=None):
    """Changes a configuration: its collector is the receiver, and spans are sent at once, not five at a time."""

    def edit(config, _routes=None):
        where = endpoint(receiver.endpoint.removeprefix("http://"))
        clusters(config)["collector"]["load_assignment"]["endpoints"] = [{"lb_endpoints": [where]}]
        static = {"name": "test", "static_layer": {"tracing.opentelemetry.min_flush_spans": 1}}
        config["layered_runtime"] = {"layers": [static]}
        if percent is not None:
            sampler = listener(config)["tracing"]["provider"]["typed_config"]["sampler"]["typed_config"]
            sampler["wrapped_sampler"]["typed_config"]["sampling_percentage"]["numerator"] = percent

    return edit


def chain(receiver):
    """The spans of one call, from the caller's side: Envoy's two, the server's, and its batch."""
    (batch,) = receiver.received.await_spans("forebay.batch")
    (server,) = receiver.received.await_spans(PREDICT)

    def envoys():
        return [span for span in receiver.received.spans if span.resource["service.name"] == "forebay-envoy"]

    eventually(lambda: len(envoys()) >= 2, f"Envoy's spans in {receiver.received.spans}", 20)
    (inbound,) = [span for span in envoys() if span.kind == "SERVER"]
    (outbound,) = [span for span in envoys() if span.kind == "CLIENT"]
    return inbound, outbound, server, batch


@pytest.mark.parametrize("how", ["grpc", "rest"])
def test_one_trace_from_the_caller_to_the_batch(receiver, traced, sidecar, call, tmp_path, how):
    """Each span is the child of the one before it, in the caller's trace, and lies within it."""
    server = traced(receiver, address=f"unix:{tmp_path / 's'}")
    envoy = sidecar(server.addresses["public"], sending_to(receiver))
    if how == "grpc":
        call(envoy).predict("model", row(1.0), metadata=[("traceparent", traceparent())])
    else:
        assert envoy.http("POST", REST, BODY, {"traceparent": traceparent()}).status == 200
    inbound, outbound, span, batch = chain(receiver)

    assert {each.trace for each in (inbound, outbound, span, batch)} == {PARENT}
    assert [each.parent for each in (inbound, outbound, span, batch)] == [
        PARENT_SPAN,
        inbound.id,
        outbound.id,
        span.id,
    ]
    assert (span.kind, span.links, batch.links) == ("SERVER", [batch.identity], [span.identity])
    assert inbound.start <= outbound.start <= span.start <= batch.start
    assert batch.end <= span.end
    assert span.start <= outbound.end <= inbound.end
    assert inbound.attributes["http.status_code"] == "200"


def test_a_caller_who_says_no_is_heard_by_all(receiver, traced, sidecar, call, tmp_path):
    """Neither Envoy nor the server has a span for it; the next caller, who says yes, has all (the control)."""
    server = traced(receiver, address=f"unix:{tmp_path / 's'}")
    caller = call(sidecar(server.addresses["public"], sending_to(receiver, percent=100)))
    caller.predict("model", row(1.0), metadata=[("traceparent", traceparent(UNSAMPLED, sampled=False))])
    caller.predict("model", row(1.0), metadata=[("traceparent", traceparent())])
    chain(receiver)

    calls = [span for span in receiver.received.spans if not span.name.startswith("forebay.model")]
    assert {span.trace for span in calls} == {PARENT}


def test_of_those_who_do_not_say_envoy_samples_a_part(receiver, traced, sidecar, call, tmp_path):
    """Its decision is the server's, too, whose own ratio is zero here."""
    server = traced(receiver, address=f"unix:{tmp_path / 's'}")
    call(sidecar(server.addresses["public"], sending_to(receiver, percent=100))).predict("model", row(1.0))
    inbound, outbound, span, batch = chain(receiver)

    assert inbound.parent == ""
    assert (outbound.parent, span.parent, batch.parent) == (inbound.id, outbound.id, span.id)
    assert len({each.trace for each in (inbound, outbound, span, batch)}) == 1


def test_each_try_has_a_span(receiver, recorder, balancer, call):
    """A call that is sent again has a span for each replica it was sent to, and each replica a parent of its own."""

    def refuse(context):
        context.abort(grpc.StatusCode.UNAVAILABLE, "told to")

    bad, good = recorder(refuse), recorder()
    caller = call(balancer([bad.address, good.address], edit=sending_to(receiver)))
    number = 0
    while not bad.seen:
        number += 1
        caller.predict("model", row(1.0), metadata=[("traceparent", traceparent(f"{number:032x}"))])

    def spans(kind):
        return [span for span in receiver.received.spans if (span.kind, span.trace) == (kind, f"{number:032x}")]

    eventually(lambda: len(spans("CLIENT")) == 2 and spans("SERVER"), "three spans", 20)
    (inbound,) = spans("SERVER")
    first, second = sorted(spans("CLIENT"), key=lambda span: span.start)
    assert (first.parent, second.parent) == (inbound.id, inbound.id)
    assert [each.seen[-1].metadata["traceparent"] for each in (bad, good)] == [
        traceparent(span.trace, span.id) for span in (first, second)
    ]
    assert [span.attributes["grpc.status_code"] for span in (first, second, inbound)] == ["14", "0", "0"]


def test_without_a_collector_the_context_passes(recorder, balancer, call):
    """The trace and `tracestate` are the caller's, from gRPC and REST; the parent is Envoy's span."""
    server = recorder()
    envoy = balancer([server.address])
    trace = {"traceparent": traceparent(), "tracestate": "a=b,c=d"}
    call(envoy).predict("model", row(1), metadata=tuple(trace.items()))
    envoy.http("POST", REST, {}, trace)

    assert len(server.seen) == 2
    for seen in server.seen:
        found = re.fullmatch(rf"00-{PARENT}-([0-9a-f]{{16}})-01", seen.metadata["traceparent"])
        assert found
        assert found[1] != PARENT_SPAN
        assert seen.metadata["tracestate"] == trace["tracestate"]


def test_nothing_secret_is_in_envoys_spans(receiver, traced, sidecar, call, tmp_path):
    """Neither from metadata nor from payloads, whether a call goes well or fails; the method is there (the control)."""
    canary = "canary-5up3r-53cr37"
    server = traced(receiver, address=f"unix:{tmp_path / 's'}")
    envoy = sidecar(server.addresses["public"], sending_to(receiver))
    metadata = [("traceparent", traceparent()), ("authorization", f"Bearer {canary}"), ("x-forebay-tenant", canary)]
    caller = call(envoy)
    caller.predict("model", row(1.0), metadata=metadata, request_id=canary)
    caller.fails(request_of("model", row(1.0, width=3), request_id=canary), metadata=metadata)
    eventually(lambda: len(receiver.received.named(PREDICT)) == 2, "both calls", 20)
    eventually(lambda: receiver.received.raw.count(b"/forebay.v1.InferenceService/Predict") >= 2, "Envoy's, too", 20)

    assert canary.encode() not in receiver.received.raw
