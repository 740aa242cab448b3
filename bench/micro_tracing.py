"""What tracing costs a request that has no span: nanoseconds, by what its caller has sent.

    python bench/micro_tracing.py

One process, one thread. A request is decided about at its beginning, its mark is put into it, its batch of 32 is looked
at, and its end asks whether it has a span: everything that tracing adds to one. The loop itself is taken off.
"""

from collections.abc import Callable, Sequence
from statistics import median
from time import monotonic, perf_counter
from types import SimpleNamespace
from typing import Any

from forebay_server.scheduling.request import Batch, Part, Reason
from forebay_server.telemetry.tracing.sampling import DEFAULT, Tail, sampler
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


def measure(metadata: Any, tracer: Tracer | None) -> float:
    """Nanoseconds per request."""
    lane: Any = SimpleNamespace(key=("m", 1))
    times = []
    watch: Callable[[Any, str], None] | None = None if tracer is None else tracer.batch
    for _ in range(ROUNDS):
        now = monotonic()
        requests = [
            SimpleNamespace(trace=None, arrival=now, deadline=now + 30, rows=1, lane=lane, level=0) for _ in range(ROWS)
        ]
        batch: Any = Batch(0, lane, [Part(each, 0, 1) for each in requests], ROWS, ROWS, Reason.IDLE, None, now)  # type: ignore[arg-type]  # as much as is looked at
        batch.collated = batch.finished = batch.completed = now
        began = perf_counter()
        for request in requests:
            mark = None if tracer is None else tracer.begin(metadata)
            if mark is not None:
                request.trace = mark
        if watch is not None:
            watch(batch, "")
        for request in requests:
            if request.trace is not None and tracer is not None:
                tracer.answered(request, "Predict")
        times.append((perf_counter() - began) / ROWS * 1e9)
        if tracer is not None:
            tracer.queue.clear()
    return median(times)


def main() -> None:
    off = measure(None, None)
    print(f"ns per request, batches of {ROWS}; tracing off: {off:.0f} (two comparisons and the loop)")
    for name, metadata in CASES.items():
        tracer = Tracer(sampler(DEFAULT, 0.0), Tail(1.0, 20.0), codes={}, clock=monotonic, most=1_000_000)
        print(f"{name:>20} {measure(metadata, tracer) - off:>7.0f}")


if __name__ == "__main__":
    main()
