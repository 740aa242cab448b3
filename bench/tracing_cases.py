"""What tracing costs: the same load with tracing off, a part sampled, everything sampled, and with bad collectors.

Each load has a server of its own, with other settings. Loads that are compared run in turns, in short windows, while
all their servers are up, so that whatever else the machine does meanwhile meets all of them; a quiet window of each
(`windows`) is put against one of the first load. So that a reader sees what this can tell apart, the first load is
measured twice, with two servers: the ratio of the two ought to be 1. Servers are started anew in each repeat, for
latencies several times, because two that are alike may differ for as long as they live. The collector, if there is one,
shares the generator's core.
"""

import contextlib
import dataclasses
import re
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any, Final

from bench.case import WINDOW_WARM_UP, Bench
from bench.report import Sample
from bench.server import Column, Server, forebay_command
from bench.starting import free_ports, listens, until
from bench.targets import AGAIN, ALL, PART
from bench.telemetry_cases import scraping
from bench.windows import Window, quiet, together

CASE: Final = "tracing"
SMALL, MEDIUM = "small", "medium"
IN_FLIGHT: Final = {SMALL: 32, MEDIUM: 16}
RATE_SHARE: Final = 0.1
"""Of the closed-loop rate without tracing, offered when latency is measured. (In an open loop requests come one by one
and cost several times as much as in a closed one, with its larger batches: the core is about half busy. Near saturation
p99 is the queue's, not tracing's.)"""
WINDOW: Final = 1.0
"""Seconds in a window: as long as spans are gathered, so that they are sent once in each."""
UP_WITHIN: Final = 20.0  # seconds
SPANS: Final = re.compile(r'^forebay_telemetry_spans_total{outcome="(\w+)"} (\S+)$', re.MULTILINE)
"""The server's own count of its spans, by what became of them."""

OFF: Final = "off"
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
    scraped: bool = False
    """Whether metrics are scraped meanwhile, every second."""


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Loads that are compared with the first of them, and so run in turns."""

    turns_per_second: float
    """Windows of each load in one round, by the length of the bench's other measurements."""
    loads: tuple[Load, ...]
    rounds: int = 1
    """How often in a repeat the servers are started anew: two that are alike may differ for as long as they live."""


GROUPS: Final = (
    Group(
        0.75,
        (
            Load(OFF, SMALL, None),
            Load(AGAIN, SMALL, None),
            Load(PART, SMALL, 0.01, scraped=True),
            Load(ALL, SMALL, 1.0),
        ),
    ),
    Group(0.5, (Load(f"{MEDIUM}, {OFF}", MEDIUM, None), Load(f"{MEDIUM}, {ALL}", MEDIUM, 1.0))),
    Group(
        1.5,
        (
            Load(f"latency, {OFF}", SMALL, None, open_loop=True),
            Load(f"latency, {AGAIN}", SMALL, None, open_loop=True),
            *(Load(f"latency, collector {state}", SMALL, 0.01, state, open_loop=True) for state in COLLECTORS),
        ),
        rounds=4,
    ),
)
STEPS: Final = sum(len(group.loads) for group in GROUPS)


def tracing(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """`Predict` with and without tracing; the latency of all loads at the same rate."""
    rate = 0.0
    for group in GROUPS:
        rounds = [_round(bench, group, repeat * group.rounds + number, rate) for number in range(group.rounds)]
        found = {load: [window for made in rounds for window in made[load].windows] for load in group.loads}
        for load, mine in found.items():
            figures = _figures(load, mine, found[group.loads[0]])
            figures["spans_lost_share"] = statistics.median(made[load].spans_lost for made in rounds)
            if load.name == OFF:
                rate = figures["rps"] * RATE_SHARE
            detail = {"windows": [dict(window.figures) for window in mine]}
            bench.step()
            yield Sample(case=CASE, column=column, load=load.name, repeat=repeat, metrics=figures, detail=detail)


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
    """What one server's life gave."""

    windows: list[Window]
    spans_lost: float
    """See `Running.lost_share`."""


def _round(bench: Bench, group: Group, number: int, rate: float) -> dict[Load, Taken]:
    """Starts the servers of a group, and takes windows of all in turns."""
    turns = max(2, round(bench.seconds * group.turns_per_second))
    windows: dict[Load, list[Window]] = {load: [] for load in group.loads}
    with contextlib.ExitStack() as up:
        running = [(load, up.enter_context(_running(bench, load))) for load in group.loads]
        for turn in range(turns):
            # The same arrivals for all loads of a turn, others in each, and another load begins.
            first, seed = (number + turn) % len(running), number * turns + turn + 1
            for load, server in running[first:] + running[:first]:
                bench.say(f"{CASE}: {load.name}, window {turn + 1} of {turns}")
                windows[load].append(server.window(rate, seed))
        return {load: Taken(windows[load], server.lost_share()) for load, server in running}


def _figures(load: Load, found: list[Window], base: list[Window]) -> dict[str, float]:
    """All windows of a load together, and what a quiet one is of those that it is compared with."""
    name = "p99_ms" if load.open_loop else "rps"
    mine, theirs = (
        quiet([window[name] for window in each], more_is_better=not load.open_loop) for each in (found, base)
    )
    return together(found) | {"over_off": mine / theirs}


@dataclasses.dataclass(frozen=True, slots=True)
class Running:
    """The server of a load, while it is up."""

    bench: Bench
    load: Load
    server: Server
    metrics: str
    """Where its metrics are."""

    def window(self, rate: float, seed: int) -> Window:
        """The figures of a short time under the load; if that is an open one, at this rate."""
        bench, load, server = self.bench, self.load, self.server
        shape: dict[str, Any] = {"in_flight": IN_FLIGHT[load.model]}
        if load.open_loop:
            shape = {"rate": rate, "deadline_ms": 2000, "seed": seed}
        shape |= {"seconds": WINDOW, "warm_up": WINDOW_WARM_UP, "buckets": True}
        cpu = server.cpu_seconds()
        with scraping(self.metrics if load.scraped else ""):
            report = bench.load(server.target, bench.files(load.model).calls, **shape)
        latency = report["latency_ms"]
        figures = {
            "rps": report["rps"],
            "p50_ms": latency["p50"],
            "p99_ms": latency["p99"],
            "failures": report["requests"] - report["ok"],
            "server_share": (server.cpu_seconds() - cpu) / (WINDOW + WINDOW_WARM_UP),
        }
        return Window(figures, report["latency_buckets"])

    def lost_share(self) -> float:
        """Of all spans whose fate is known, those that were dropped."""
        if self.load.ratio is None:
            return 0.0
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=5) as response:
            spans = dict(SPANS.findall(response.read().decode()))
        dropped, exported = (float(spans.get(outcome, 0)) for outcome in ("dropped", "exported"))
        return dropped / max(1.0, dropped + exported)


@contextlib.contextmanager
def _running(bench: Bench, load: Load) -> Iterator[Running]:
    (port,) = free_ports(1)
    metrics = f"127.0.0.1:{port}"
    settings: tuple[str, ...] = ()
    with _collector(bench, load) as endpoint:
        if load.ratio is not None:
            settings = (
                f"telemetry.prometheus.address={metrics}",
                f"telemetry.tracing.endpoint={endpoint}",
                f"telemetry.tracing.ratio={load.ratio}",
            )
        files = bench.files(load.model)
        command = forebay_command("native", settings=settings)
        column = Column(key="forebay", title="Forebay", command=command, own=True)
        with Server(column, files.model, files.calls, bench.cores(both=False)) as server:
            yield Running(bench, load, server, metrics)


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
