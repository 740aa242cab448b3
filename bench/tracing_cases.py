"""What tracing costs: the same load with tracing off, a part sampled, everything sampled, and with bad collectors.

Each load has a server of its own, with other settings. The collector, if there is one, shares the generator's core.
"""

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Final

from bench.case import Bench
from bench.report import Sample
from bench.server import Column, Server, forebay_command
from bench.starting import free_ports, listens, until

CASE: Final = "tracing"
SMALL, MEDIUM = "small", "medium"
IN_FLIGHT: Final = {SMALL: 32, MEDIUM: 16}
RATE_SHARE: Final = 0.3
"""Of the closed-loop rate without tracing, offered when latency is measured. (In an open loop requests come one by one
and cost more than in a closed one, with its larger batches; near saturation p99 is the queue's, not tracing's.)"""
UP_WITHIN: Final = 20.0  # seconds

OFF, PART, ALL = "off", "1 % sampled", "all sampled"  # `targets` names the loads
COLLECTORS: Final[Mapping[str, tuple[str, ...] | None]] = {
    "live": (),
    "down": None,
    "slow": ("--delay", "2"),
    "silent": ("--silent",),
}
"""Arguments of `bench.collector`; None: nothing listens."""


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """One way to run the server."""

    name: str
    model: str
    ratio: float | None
    """Part that is sampled; None: tracing is off."""
    collector: str = "live"
    open_loop: bool = False


LOADS: Final = (
    Load(OFF, SMALL, None),
    Load(PART, SMALL, 0.01),
    Load(ALL, SMALL, 1.0),
    Load(f"{MEDIUM}, {OFF}", MEDIUM, None),
    Load(f"{MEDIUM}, {ALL}", MEDIUM, 1.0),
    Load(f"latency, {OFF}", SMALL, None, open_loop=True),
    *(Load(f"latency, collector {state}", SMALL, 0.01, state, open_loop=True) for state in COLLECTORS),
)
STEPS: Final = len(LOADS)


def tracing(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """`Predict` with and without tracing; the latency of all loads at the same rate."""
    rate = 0.0
    for load in LOADS:
        bench.say(f"{CASE}: {load.name}")
        with _collector(bench, load) as endpoint, _server(bench, load, endpoint) as server:
            calls = bench.files(load.model).calls
            shape: dict[str, float] = {"in_flight": IN_FLIGHT[load.model]}
            if load.open_loop:
                shape = {"rate": rate, "deadline_ms": 2000}
            cpu = server.cpu_seconds()
            report = bench.load(server.target, calls, **shape)
            cpu = server.cpu_seconds() - cpu
        if load.name == OFF:
            rate = report["rps"] * RATE_SHARE
        latency = report["latency_ms"]
        figures = {
            "rps": report["rps"],
            "p50_ms": latency["p50"],
            "p99_ms": latency["p99"],
            "failures": report["requests"] - report["ok"],
            "server_cpu_s": cpu,
        }
        bench.step()
        yield Sample(case=CASE, column=column, load=load.name, repeat=repeat, metrics=figures)


def _server(bench: Bench, load: Load, endpoint: str) -> Server:
    settings: tuple[str, ...] = ()
    if load.ratio is not None:
        settings = (f"telemetry.tracing.endpoint={endpoint}", f"telemetry.tracing.ratio={load.ratio}")
    files = bench.files(load.model)
    column = Column(key="forebay", title="Forebay", command=forebay_command("native", settings=settings), own=True)
    return Server(column, files.model, files.calls, bench.cores(both=False))


@contextlib.contextmanager
def _collector(bench: Bench, load: Load) -> Iterator[str]:
    """Runs the collector of a load; gives its endpoint."""
    (port,) = free_ports(1)
    options = COLLECTORS[load.collector]
    if load.ratio is None or options is None:
        yield f"http://127.0.0.1:{port}"
        return
    command = ["taskset", "-c", str(bench.load_core), sys.executable, "-m", "bench.collector", "--port", str(port)]
    process = subprocess.Popen([*command, *options])
    try:
        until(lambda: listens(port), "the collector does not listen", within=UP_WITHIN, process=process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
