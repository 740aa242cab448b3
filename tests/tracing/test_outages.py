"""A collector that is down, slow or silent is felt by nobody, and what is lost is counted."""

import threading
import time

import psutil
import pytest

from tests.serving import row, synthetic
from tests.tracing.conftest import GrpcReceiver
from tests.waiting import eventually

PREDICT = "forebay.v1.InferenceService/Predict"


def flood(caller, requests):
    """Sends so many requests, a hundred at a time; the seconds that it took."""
    began = time.monotonic()
    for _ in range(requests // 100):
        for future in [caller.later("model", row(1.0)) for _ in range(100)]:
            future.result(20)
        caller._kept.clear()
    return time.monotonic() - began


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("state", ["down", "silent"])
def test_a_collector_that_takes_nothing(serve, call, nobody, silent, protocol, state):
    """Every request is answered, the queue stays within its bound, everything else is counted as dropped."""
    endpoint = {"down": nobody, "silent": silent}[state]
    server = serve(synthetic("model"), tracing={"endpoint": endpoint, "protocol": protocol, "max_queued_spans": 200})
    caller = call(server)
    flood(caller, 1000)
    figures = server.spans()

    assert figures.exported == 0
    assert figures.queued <= 200
    began = time.monotonic()
    server.close()
    assert time.monotonic() - began < 8, "nor does the end of the server wait for it"
    figures = server.spans()
    # A request and its batch; requests share batches.
    assert 1000 < figures.dropped + figures.queued <= 2003


def test_a_slow_collector(collector, serve, call):
    """What it takes arrives, what it can't is dropped, and the sum is right."""
    collector.received.delay = 0.3
    server = serve(synthetic("model"), tracing={"endpoint": collector.endpoint, "max_queued_spans": 100})
    caller = call(server)
    flood(caller, 1000)
    collector.received.delay = 0.0
    eventually(lambda: server.spans().queued == 0, "the queue empties")
    server.close()
    figures = server.spans()
    made = len(collector.received.spans)

    assert figures.dropped > 0
    assert figures.exported == made
    assert len(collector.received.named(PREDICT)) < 1000


def test_a_collector_that_comes_back(serve, call, nobody, capfd):
    """Spans flow once it is there, what waited included; until then the log has nothing of the exporter's own."""
    server = serve(synthetic("model"), tracing={"endpoint": nobody})
    flood(call(server), 100)
    time.sleep(1.0)
    assert server.spans().exported == 0
    receiver = GrpcReceiver(int(nobody.rpartition(":")[2]))
    try:
        receiver.received.await_spans(PREDICT, 100, 30.0)
        eventually(lambda: server.spans().queued == 0, "all are sent")
    finally:
        server.close()
        receiver.close()

    assert server.spans().dropped == 0
    assert "Transient error" not in capfd.readouterr().err


def test_memory_stays_flat(serve, call, silent):
    """20,000 sampled requests with nobody to take their spans do not make the server grow beyond its queue."""
    server = serve(synthetic("model"), tracing={"endpoint": silent, "max_queued_spans": 500})
    caller = call(server)
    flood(caller, 4000)
    before = psutil.Process().memory_info().rss
    flood(caller, 16_000)

    assert psutil.Process().memory_info().rss - before < 16 << 20
    assert any(thread.name == "forebay-spans" for thread in threading.enumerate())
