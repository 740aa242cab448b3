"""What tracing costs a request: nanoseconds in the dispatcher, by what its caller has sent, and in the sending thread.

    python bench/micro_tracing.py

One process, one thread. A request is decided about at its beginning, its mark is put into it, its batch of 32 is looked
at, and its end asks whether it has a span: everything that tracing adds to one. The loop itself is taken off. Then the
spans of a batch of 32 and of its requests are made, and put into a message.
"""

from collections.abc import Callable, Sequence
from statistics import median
from time import monotonic, perf_counter
from types import SimpleNamespace
from typing import Any

from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from forebay_server.scheduling.request import Batch, Part, Reason
from forebay_server.telemetry.resource import resource
from forebay_server.telemetry.tracing.message import Frame
from forebay_server.telemetry.tracing.names import PREDICT
from forebay_server.telemetry.tracing.sampling import DEFAULT, Tail, sampler
from forebay_server.telemetry.tracing.spans import Spans
from forebay_server.telemetry.tracing.tracer import Tracer

ROWS = 32
ROUNDS = 400
CONTEXT = f"00-{'ab' * 16}-{'cd' * 8}-0"
CASES: dict[str, Sequence[tuple[str, str | bytes]] | None] = {
    "no metadata": None,
    "metadata, no trace": (("x-request-id", "1234"), ("authorization", "Bearer x")),
    "unsampled trace": (("x-request-id", "1234"), ("traceparent", f"{CONTEXT}0")),
    "sampled trace": (("x-request-id", "1234"), ("traceparent", f"{CONTEXT}1")),
}


def tracer_of() -> Tracer:
    """A tracer that samples what its callers do."""
    return Tracer(sampler(DEFAULT, 0.0), Tail(1.0, 20.0), codes={}, clock=monotonic, most=1_000_000)


def measure(metadata: Any, tracer: Tracer | None) -> float:
    """Nanoseconds per request; the records of the last batch stay in the tracer's queue."""
    lane: Any = SimpleNamespace(key=("m", 1))
    times = []
    watch: Callable[[Any, str], None] | None = None if tracer is None else tracer.batch
    for _ in range(ROUNDS):
        now = monotonic()
        requests = [
            SimpleNamespace(trace=None, arrival=now, deadline=now + 30, rows=1, lane=lane, level=0, method=0)
            for _ in range(ROWS)
        ]
        batch: Any = Batch(0, lane, [Part(each, 0, 1) for each in requests], ROWS, ROWS, Reason.IDLE, None, now)  # type: ignore[arg-type]  # as much as is looked at
        batch.collated = batch.finished = batch.completed = now
        if tracer is not None:
            tracer.queue.clear()
        began = perf_counter()
        for request in requests:
            mark = None if tracer is None else tracer.begin(metadata)
            if mark is not None:
                request.trace = mark
        if watch is not None:
            watch(batch, "")
        for request in requests:
            if request.trace is not None and tracer is not None:
                tracer.answered(request, PREDICT)
        times.append((perf_counter() - began) / ROWS * 1e9)
    return median(times)


def making(tracer: Tracer) -> float:
    """Nanoseconds per request for the spans of what is in a tracer's queue, as a message."""
    spans, frame = Spans(128), Frame(resource(), InstrumentationScope("forebay_server", "0"))
    times = []
    for _ in range(ROUNDS):
        began = perf_counter()
        frame.message([spans.make(record, 0) for record in tracer.queue])
        times.append((perf_counter() - began) / ROWS * 1e9)
    return median(times)


def main() -> None:
    off = measure(None, None)
    print(f"ns per request, batches of {ROWS}; tracing off: {off:.0f} (two comparisons and the loop)")
    for name, metadata in CASES.items():
        tracer = tracer_of()
        print(f"{name:>20} {measure(metadata, tracer) - off:>7.0f}")
    print(f"in the thread that sends, a sampled one and its part of its batch: {making(tracer):.0f}")


if __name__ == "__main__":
    main()
