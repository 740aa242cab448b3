"""The client's spans: through the OpenTelemetry API of the application, and only if it has one."""

import asyncio
import subprocess
import sys

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from forebay_client import AsyncClient, Client, ModelNotFound
from forebay_server.app.server import Server
from forebay_server.config.tree import Config, ExposureConfig, ServerConfig, TelemetryConfig, TracingConfig
from tests.serving import row, synthetic
from tests.tracing.conftest import GrpcReceiver

PREDICT = "forebay.v1.InferenceService/Predict"
STREAM = "forebay.v1.InferenceService/StreamPredict"


@pytest.fixture(scope="module")
def recorded():
    """The application's spans. A process has one provider, for good."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(recorded):
    """The application's spans of one test."""
    recorded.clear()
    return recorded.get_finished_spans


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server that follows its callers' decisions, and who receives its spans."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    receiver = GrpcReceiver()
    config = Config(
        server=ServerConfig(
            public=ExposureConfig(address="127.0.0.1:0"), cache_dir=str(tmp_path_factory.mktemp("cache"))
        ),
        models=[synthetic("model")],
        telemetry=TelemetryConfig(tracing=TracingConfig(endpoint=receiver.endpoint, sampler="parentbased_always_off")),
    )
    server = Server(config)
    server.start()
    assert server.wait_ready(30)
    yield server.addresses["public"], receiver.received
    server.close()
    receiver.close()
    patch.undo()


def identity(span):
    """Trace and span as they go over the wire."""
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def test_a_call(served, spans):
    """The CLIENT span is under the application's, the server's under it; a failure has its code and reason."""
    address, received = served
    with Client(address) as client, trace.get_tracer("app").start_as_current_span("work") as work:
        client.predict("model", {"x": row(1.0)})
        with pytest.raises(ModelNotFound):
            client.predict("nothing", {"x": row(1.0)})
    good, bad = (span for span in spans() if span.name == PREDICT)
    trace_id, span_id = identity(good)

    assert good.kind is trace.SpanKind.CLIENT
    assert good.parent == work.get_span_context()
    host, port = address.split(":")
    assert good.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": PREDICT,
        "rpc.response.status_code": "OK",
        "server.address": host,
        "server.port": int(port),
    }
    assert bad.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert bad.attributes["error.type"] == "MODEL_NOT_FOUND"
    assert not bad.status.is_ok
    both = received.await_spans(PREDICT, 2)
    server_span = next(span for span in both if span.parent == span_id)
    assert server_span.trace == trace_id


def test_a_call_of_the_async_client(served, spans):
    """The same in a task."""
    address, received = served

    async def work():
        async with AsyncClient(address) as client:
            with trace.get_tracer("app").start_as_current_span("work"):
                await client.predict("model", {"x": row(1.0)})

    asyncio.run(work())
    (span,) = (span for span in spans() if span.name == PREDICT)

    found = received.await_spans(PREDICT)
    while not any(each.parent == identity(span)[1] for each in found):
        found = received.await_spans(PREDICT, len(found) + 1)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream(served, spans, asynchronous):
    """Each item has a span under the stream's, or the source's own if there is one, and its context goes along."""
    address, received = served
    tracer = trace.get_tracer("app")

    def source():
        yield {"x": row(1.0)}
        with tracer.start_as_current_span("message"):
            yield {"x": row(2.0)}

    async def work():
        async with AsyncClient(address) as client:
            return [item async for item in client.stream("model", source())]

    with tracer.start_as_current_span("work"):
        if asynchronous:
            results = asyncio.run(work())
        else:
            with Client(address) as client:
                results = list(client.stream("model", source()))
    assert len(results) == 2
    (stream,) = (span for span in spans() if span.name == STREAM)
    message = next(span for span in spans() if span.name == "message")
    items = {span.attributes["forebay.stream.item.id"]: span for span in spans() if span.name == "forebay.stream.item"}

    assert items[0].parent == stream.context
    assert items[1].parent == message.context
    wanted = {identity(span)[1] for span in items.values()}
    for count in range(2, 9, 2):
        found = received.await_spans("forebay.stream.item", count)
        if wanted <= {span.parent for span in found}:
            break
    assert wanted <= {span.parent for span in found}


def test_an_application_that_does_not_sample(served, spans):
    """Its decision goes along: the server has no span either."""
    address, received = served
    unsampled = trace.SpanContext(7, 9, is_remote=False, trace_flags=trace.TraceFlags(0))
    token = otel_context.attach(trace.set_span_in_context(trace.NonRecordingSpan(unsampled)))
    try:
        with Client(address) as client:
            client.predict("model", {"x": row(1.0)})
    finally:
        otel_context.detach(token)

    assert not [span for span in spans() if span.name == PREDICT]
    assert not [span for span in received.spans if span.trace == f"{7:032x}"]


def test_nothing_is_imported_for_it(served):
    """An application without OpenTelemetry has no trace of it after a call."""
    address, _ = served
    program = f"""
import sys
import numpy as np
from forebay_client import Client
with Client({address!r}) as client:
    client.predict("model", {{"x": np.zeros((1, 4), np.float32)}})
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert (ended.stdout.strip(), ended.returncode) == ("[]", 0), ended.stderr
