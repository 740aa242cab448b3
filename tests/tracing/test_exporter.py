"""The thread that makes spans and sends them, without a server."""

import pytest

from forebay_server.config.tree import TracingConfig
from forebay_server.telemetry.tracing.export import Exporter
from forebay_server.telemetry.tracing.options import options
from forebay_server.telemetry.tracing.records import CALL
from forebay_server.telemetry.tracing.sampling import Tail
from forebay_server.telemetry.tracing.tracer import Tracer
from tests.e2e.conftest import eventually


@pytest.fixture
def start(receiver):
    """Starts exporters to the receiver, whose queue holds so many calls from the start; ends them."""
    running = []

    def begin(calls, **variables):
        config = TracingConfig(endpoint=receiver.endpoint, protocol=receiver.protocol, sampler="always_on")
        chosen = options(config, {"OTEL_BSP_SCHEDULE_DELAY": "20", **variables})
        tracer = Tracer(chosen.sampler, Tail(1.0, 1.0), codes={}, clock=lambda: 1.0, most=chosen.most)
        for number in range(calls):
            tracer.ended(tracer.begin(None), CALL, 0.0, f"call {number}", "OK")
        exporter = Exporter(tracer, chosen)
        running.append(exporter)
        return tracer, exporter

    yield begin
    for exporter in running:
        exporter.close(2.0)


def test_messages_have_so_many_spans_at_most(receiver, start):
    """In the order in which they ended."""
    _, exporter = start(1200, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="500")
    exporter.start()
    eventually(lambda: exporter.figures().exported == 1200, "all are sent")

    sizes = [len(message.resource_spans[0].scope_spans[0].spans) for message in receiver.received.requests]
    assert sizes == [500, 500, 200]
    assert [span.name for span in receiver.received.spans] == [f"call {number}" for number in range(1200)]


def test_spans_that_can_t_be_made_are_counted(receiver, start):
    """With those of their message; the thread goes on."""
    tracer, exporter = start(3)
    tracer.queue.append(("no record",))
    exporter.start()
    eventually(lambda: exporter.figures().dropped == 4, "they are lost")
    tracer.ended(tracer.begin(None), CALL, 0.0, "later", "OK")

    eventually(lambda: exporter.figures().exported == 1, "the next one is sent")

    assert [span.name for span in receiver.received.spans] == ["later"]
