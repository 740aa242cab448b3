"""The cases: what is started, loaded and measured. `run` chooses and orders them, `targets` compares what they give.

A case is measured once per repeat; within a repeat its columns take turns, so that a slow moment of the machine does
not fall on one server alone. The server has one core, the generator and this process the other.
"""

import dataclasses
import importlib.util
from collections import Counter
from collections.abc import Iterator, Sequence

from bench import breakdown, edge_cases, generator, ghz_cases, job_cases, telemetry_cases, tracing_cases
from bench.case import LARGE, MEDIUM, SMALL, Bench, Case, figures_of, loaded, python
from bench.errors import BenchError
from bench.report import Sample
from bench.server import COLUMNS

UNARY_LOADS = (1, 8, 32, 128)
LOAD_FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of a server's closed-loop rate, offered in an open loop."""
OVERLOADS = (0.5, 0.8, 1, 2, 5, 10)
"""Of capacity, offered in an open loop."""
GOODPUT_DEADLINE_MS = 250
MEDIUM_IN_FLIGHT = 16
STREAMS = 4
STREAM_WINDOWS = {1: 32, 32: 64}
"""Items in flight on each of the streams, by items per message: with 32, one message travels while one is run."""


def unary(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """`Predict` on the small model in closed loops."""
    calls = bench.files(SMALL).calls
    with bench.server(column, SMALL) as server:
        for in_flight in UNARY_LOADS:
            shape = {"in_flight": in_flight, "connections": min(in_flight, 2)}
            yield loaded(bench, server, "unary", f"{in_flight} in flight", repeat, calls, **shape)


def latency(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """`Predict` on the small model in open loops below capacity: latency as callers see it."""
    calls = bench.files(SMALL).calls
    with bench.server(column, SMALL) as server:
        most = bench.load(server.target, calls, in_flight=32)["rps"]
        for fraction in LOAD_FRACTIONS:
            rate = most * fraction
            sample = loaded(
                bench, server, "latency", f"{fraction:g} of its rate", repeat, calls, rate=rate, deadline_ms=2000
            )
            yield dataclasses.replace(sample, metrics=sample.metrics | {"offered_rps": rate})


def streams(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """`StreamPredict` on the small model, and `Predict` with as many in flight beside it."""
    calls = bench.files(SMALL).calls
    with bench.server(column, SMALL) as server:
        yield loaded(bench, server, "streams", "unary", repeat, calls, in_flight=STREAMS * STREAM_WINDOWS[1])
        for items, window in STREAM_WINDOWS.items():
            load = f"{items} item{'s' if items > 1 else ''}"
            shape = {"mode": "stream", "streams": STREAMS, "items": items, "window": window}
            yield loaded(bench, server, "streams", load, repeat, calls, **shape)


def large(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """600 KB requests to a model that only averages them."""
    with bench.server(column, LARGE) as server:
        yield loaded(bench, server, "large", "8 in flight", repeat, bench.files(LARGE).calls, in_flight=8)


def medium(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """A model that costs more than a millisecond a row: what the server adds to it."""
    if column == "inprocess":
        bench.say("medium: in process")
        told = python(
            bench, "-m", "bench.peers.inprocess", str(bench.files(MEDIUM).model), "--seconds", f"{bench.seconds / 2}"
        )
        for size, rate in told["rows_per_second"].items():
            figures = {"rps": rate, "row_ms": 1000 / rate}
            yield Sample(case="medium", column=column, load=f"batches of {size}", repeat=repeat, metrics=figures)
        bench.step()
        return
    with bench.server(column, MEDIUM) as server:
        yield loaded(bench, server, "medium", "closed", repeat, bench.files(MEDIUM).calls, in_flight=MEDIUM_IN_FLIGHT)


def goodput(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """The medium model offered more than it can do: what is still answered in time."""
    calls = bench.files(MEDIUM).calls
    with bench.server(column, MEDIUM) as server:
        capacity = bench.load(server.target, calls, in_flight=MEDIUM_IN_FLIGHT)["rps"]
        for times in OVERLOADS:
            shape = {"rate": capacity * times, "deadline_ms": GOODPUT_DEADLINE_MS}
            sample = loaded(bench, server, "goodput", f"{times:g}x", repeat, calls, **shape)
            yield dataclasses.replace(sample, metrics=sample.metrics | {"offered_rps": capacity * times})


QUEUE_PROGRAM = """
import json
from bench.micro_scheduling import measure
nanoseconds = {waiting: sum(measure(waiting, 1, 64_000)[:2]) for waiting in (100, 100_000)}
print(json.dumps({"few_ns": nanoseconds[100], "many_ns": nanoseconds[100_000]}))
"""
"""Admission and dispatch of a request, in nanoseconds, with few and with many waiting."""


def queue(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """The core's cost of a request with many waiting, over that with few; measured without a server."""
    if importlib.util.find_spec("bench.micro_scheduling") is None:
        bench.say("queue: bench.micro_scheduling is not there, left out")
        return
    bench.say("queue: the core alone")
    told = python(bench, "-c", QUEUE_PROGRAM)
    figures = {"ratio": told["many_ns"] / told["few_ns"], **told}
    bench.step()
    yield Sample(case="queue", column=column, load="100000 over 100", repeat=repeat, metrics=figures)


def startup(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """Process start to first answer. The first start, which fills caches, is thrown away."""
    bench.say(f"startup: {COLUMNS[column].title}")
    if repeat == 0:
        with bench.server(column, SMALL):
            pass
    with bench.server(column, SMALL) as server:
        figures = {"seconds": server.ready_s, "rss_mib": server.rss() / 2**20}
    bench.step()
    yield Sample(case="startup", column=column, load="first answer", repeat=repeat, metrics=figures)


def memory(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """Memory after a tenth of the requests, and after all."""
    calls = bench.files(SMALL).calls
    with bench.server(column, SMALL) as server:
        bench.say(f"memory: {server.column.title}, {bench.memory_requests:,} requests")
        rate = bench.load(server.target, calls, in_flight=64, seconds=1.0, warm_up=0.5)["rps"]
        for load, part in (("before", 0.1), ("after", 0.9)):
            answered = 0
            while answered < bench.memory_requests * part:
                left = max(0.2, (bench.memory_requests * part - answered) / rate)
                answered += bench.load(server.target, calls, in_flight=64, seconds=left, warm_up=0.0)["requests"]
            figures = {"rss_mib": server.rss() / 2**20, "requests": float(answered)}
            yield Sample(case="memory", column=column, load=load, repeat=repeat, metrics=figures)
        bench.step()


def parts(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """Where the time of one request goes: the server's own timings, CPU time by thread, and a profile."""
    files = bench.files(SMALL)
    with bench.server(column, SMALL) as server:
        for in_flight in (0, 32, 128):
            load = f"beside {in_flight} in flight" if in_flight else "alone"
            bench.say(f"parts: {server.column.title}, {load}")
            command = []
            if in_flight:
                command = generator.arguments(server.target, files.calls, bench.seconds, 0.3, {"in_flight": in_flight})
            figures, detail = breakdown.measure(server, files.timed_calls, command, bench.load_core, bench.seconds)
            bench.step()
            yield Sample(case="parts", column=column, load=load, repeat=repeat, metrics=figures, detail=detail)


def ceiling(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """The generator against a server that does nothing: what it could measure at most."""
    calls = bench.files(SMALL).calls
    with generator.fixed_server(calls, bench.server_core) as target:
        for in_flight in (32, 128):
            bench.say(f"ceiling: {in_flight} in flight")
            figures = figures_of(bench.load(target, calls, in_flight=in_flight))
            # The rate at which its core would be full: the server of fixed answers may be the slower one.
            figures["limit_rps"] = figures["rps"] / figures["generator_share"]
            bench.step()
            yield Sample(case="ceiling", column=column, load=f"{in_flight} in flight", repeat=repeat, metrics=figures)


PEERS = ("grpc_aio", "grpc_threads")
ALL = ("forebay", "forebay_aio", *PEERS)
BOTH = ("forebay", "grpc_aio")
FIXED = ("fixed-server",)
CASES = {
    case.key: case
    for case in (
        Case(key="ceiling", title="the generator's own limit", columns=FIXED, measure=ceiling, steps=2, most=1),
        Case(key="unary", title="Predict, small model", columns=ALL, measure=unary, steps=4),
        Case(key="streams", title="StreamPredict, small model", columns=BOTH, measure=streams, steps=3),
        Case(key="large", title="600 KB requests", columns=ALL, measure=large),
        Case(key="medium", title="a model of over 1 ms a row", columns=("inprocess", *ALL), measure=medium),
        Case(key="goodput", title="overload", columns=BOTH, measure=goodput, steps=6),
        Case(key="latency", title="latency against load", columns=("forebay", *PEERS), measure=latency, steps=5),
        Case(key="queue", title="100,000 waiting", measure=queue, most=1),
        Case(key="startup", title="process start to first answer", columns=ALL, measure=startup),
        Case(key="memory", title="memory after many requests", measure=memory, most=1),
        Case(key="submit", title="jobs taken in", measure=job_cases.submit, steps=8),
        Case(key="drain", title="jobs worked off", measure=job_cases.drain, steps=5, most=3),
        Case(key="beside", title="online calls beside jobs", measure=job_cases.beside, steps=4),
        Case(key="kept", title="a million finished jobs", measure=job_cases.kept, most=1),
        Case(key="tracing", title="what tracing costs", measure=tracing_cases.tracing, steps=tracing_cases.STEPS),
        Case(key="scrape", title="a scrape", measure=telemetry_cases.scrape, most=1),
        Case(key="exported", title="metrics on over off", measure=telemetry_cases.exported),
        Case(key="sidecar", title="through Envoy", measure=edge_cases.sidecar, steps=4),
        Case(key="faults", title="beside bad connections", measure=edge_cases.faults, steps=2),
        Case(key="ghz", title="ghz and our own generator", measure=ghz_cases.ghz, steps=ghz_cases.STEPS, most=1),
        Case(key="parts", title="where one request's time goes", measure=parts, steps=3, most=1),
    )
}  # fmt: skip
NOT_SERVERS = {"fixed-server", "inprocess"}


def select(only: Sequence[str], columns: Sequence[str]) -> list[Case]:
    """The cases named in `only` (all if empty), in their order, with no more than the columns wanted.

    Raises:
        BenchError: A name is unknown.
    """
    for names, known in ((only, list(CASES)), (columns, list(COLUMNS))):
        for name in names:
            if name not in known:
                raise BenchError(f"there is no `{name}`; there are {', '.join(known)}")
    chosen = []
    for case in CASES.values():
        kept = tuple(column for column in case.columns if column in NOT_SERVERS or column in columns)
        if kept and (not only or case.key in only):
            chosen.append(dataclasses.replace(case, columns=kept))
    return chosen


def batch_sizes(samples: Sequence[Sample], column: str, load: str) -> Counter[int]:
    """The batches of one load of the unary case, all repeats together."""
    sizes: Counter[int] = Counter()
    for sample in samples:
        if (sample.case, sample.column, sample.load) == ("unary", column, load):
            sizes.update(sample.detail["batch_sizes"])
    return sizes
