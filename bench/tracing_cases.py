"""What tracing costs: the same load with tracing off, a part sampled, everything sampled, and with bad collectors.

Each load has a server of its own, with other settings. Loads that are compared run in turns, in short windows, while
all their servers are up, so that whatever else the machine does meanwhile meets all of them; their figures are medians
of the windows. The collector, if there is one, shares the generator's core.
"""

import contextlib
import dataclasses
import re
import statistics
import subprocess
import sys
import urllib.request
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
WINDOW: Final = 1.0
"""Seconds in a window: as long as spans are gathered, so that they are sent once in each. After a warm-up, in which the
server before it sends its last ones."""
WINDOWS_PER_SECOND: Final = 1.5
"""Of each load in one repeat, by the length of the bench's other measurements."""
UP_WITHIN: Final = 20.0  # seconds
SPANS: Final = re.compile(r'^forebay_telemetry_spans_total{outcome="(\w+)"} (\S+)$', re.MULTILINE)
"""The server's own count of its spans, by what became of them."""

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


GROUPS: Final = (
    (Load(OFF, SMALL, None), Load(PART, SMALL, 0.01), Load(ALL, SMALL, 1.0)),
    (Load(f"{MEDIUM}, {OFF}", MEDIUM, None), Load(f"{MEDIUM}, {ALL}", MEDIUM, 1.0)),
    (
        Load(f"latency, {OFF}", SMALL, None, open_loop=True),
        *(Load(f"latency, collector {state}", SMALL, 0.01, state, open_loop=True) for state in COLLECTORS),
    ),
)
"""Loads that are compared with each other, and so run in turns."""
STEPS: Final = sum(map(len, GROUPS))


def tracing(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """`Predict` with and without tracing; the latency of all loads at the same rate."""
    rate = 0.0
    for group in GROUPS:
        windows: dict[Load, list[dict[str, float]]] = {load: [] for load in group}
        with contextlib.ExitStack() as up:
            running = [(load, up.enter_context(_running(bench, load))) for load in group]
            for turn in range(max(2, round(bench.seconds * WINDOWS_PER_SECOND))):
                first = (repeat + turn) % len(running)
                for load, server in running[first:] + running[:first]:
                    bench.say(f"{CASE}: {load.name}")
                    windows[load].append(server.window(rate))
            lost = {load: server.lost_share() for load, server in running}
        for load, found in windows.items():
            figures = {name: statistics.median(window[name] for window in found) for name in found[0]}
            figures["failures"] = sum(window["failures"] for window in found)
            figures["spans_lost_share"] = lost[load]
            if load.name == OFF:
                rate = figures["rps"] * RATE_SHARE
            detail = {"windows": found}
            bench.step()
            yield Sample(case=CASE, column=column, load=load.name, repeat=repeat, metrics=figures, detail=detail)


@dataclasses.dataclass(frozen=True, slots=True)
class Running:
    """The server of a load, while it is up."""

    bench: Bench
    load: Load
    server: Server
    scraped: str
    """Where its metrics are."""

    def window(self, rate: float) -> dict[str, float]:
        """The figures of a short time under the load; if that is an open one, at this rate."""
        bench, load, server = self.bench, self.load, self.server
        shape: dict[str, float] = {"in_flight": IN_FLIGHT[load.model]}
        if load.open_loop:
            shape = {"rate": rate, "deadline_ms": 2000}
        cpu = server.cpu_seconds()
        report = bench.load(server.target, bench.files(load.model).calls, seconds=WINDOW, **shape)
        latency = report["latency_ms"]
        return {
            "rps": report["rps"],
            "p50_ms": latency["p50"],
            "p99_ms": latency["p99"],
            "failures": report["requests"] - report["ok"],
            "server_cpu_s": server.cpu_seconds() - cpu,
        }

    def lost_share(self) -> float:
        """Of all spans whose fate is known, those that were dropped."""
        with urllib.request.urlopen(f"http://{self.scraped}/metrics", timeout=5) as response:
            spans = dict(SPANS.findall(response.read().decode()))
        dropped, exported = (float(spans.get(outcome, 0)) for outcome in ("dropped", "exported"))
        return dropped / max(1.0, dropped + exported)


@contextlib.contextmanager
def _running(bench: Bench, load: Load) -> Iterator[Running]:
    (port,) = free_ports(1)
    scraped = f"127.0.0.1:{port}"
    settings = [f"telemetry.prometheus.address={scraped}"]
    with _collector(bench, load) as endpoint:
        if load.ratio is not None:
            settings += [f"telemetry.tracing.endpoint={endpoint}", f"telemetry.tracing.ratio={load.ratio}"]
        files = bench.files(load.model)
        command = forebay_command("native", settings=tuple(settings))
        column = Column(key="forebay", title="Forebay", command=command, own=True)
        with Server(column, files.model, files.calls, bench.cores(both=False)) as server:
            yield Running(bench, load, server, scraped)


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
