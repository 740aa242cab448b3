"""What cases are made of: what each is given, one load on a running server, and programs beside it.

`cases` and `job_cases` use it.
"""

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from bench import generator, models
from bench.errors import BenchError
from bench.report import Sample
from bench.server import COLUMNS, ROOT, Server
from bench.windows import Window, quiet, together

SMALL, MEDIUM, LARGE = "small", "medium", "large-message"
PEER_MAX_BATCH = {SMALL: 128, MEDIUM: 8, LARGE: 32}
"""The peers are told what Forebay finds out by measuring: larger batches of the medium model only take longer."""
WINDOW_WARM_UP = 0.25
"""Seconds before each window."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every case needs.

    `say` takes a line of progress, `step` counts one measurement done. Times are seconds.
    """

    directory: Path
    server_core: int
    load_core: int
    seconds: float
    warm_up: float
    columns: Sequence[str]
    memory_requests: int
    jobs: int
    """In a backlog."""
    finished_jobs: int
    """With which a store is compared that has few."""
    kept: Path
    """A folder for what other tools report; made by who needs it."""
    say: Callable[[str], None]
    step: Callable[[], None]

    def files(self, model: str) -> models.Files:
        """The files of a model."""
        return models.files(model, self.directory)

    def server(self, column: str, model: str, *options: str, both_cores: bool = False) -> Server:
        """A server of a column for a model, not yet started; with further options if it is ours."""
        files, chosen = self.files(model), COLUMNS[column]
        if not chosen.own:
            options = ("--max-batch", str(PEER_MAX_BATCH[model]))
        return Server(chosen, files.model, files.calls, self.cores(both=both_cores), options=options)

    def cores(self, *, both: bool) -> str:
        """The server's core, or also the generator's, as `taskset` takes them."""
        return f"{self.server_core},{self.load_core}" if both else str(self.server_core)

    def load(self, target: str, calls: Path, **options: Any) -> generator.Report:
        """Runs one load. `seconds` and `warm_up` among the options are stronger than the bench's own."""
        seconds, warm_up = options.pop("seconds", self.seconds), options.pop("warm_up", self.warm_up)
        return generator.run(generator.arguments(target, calls, seconds, warm_up, options), self.load_core)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A case.

    `columns` are those it can measure; each takes `steps` measurements a repeat, for the progress bar. No more than
    `most` repeats are made: more would tell little.
    """

    key: str
    title: str
    measure: Callable[[Bench, str, int], Iterator[Sample]]
    columns: tuple[str, ...] = ("forebay",)
    steps: int = 1
    most: int = sys.maxsize


def figures_of(report: generator.Report) -> dict[str, float]:
    latency = report["latency_ms"]
    return {
        "rps": report["rps"],
        "goodput_rps": report["goodput_rps"],
        "p50_ms": latency["p50"],
        "p99_ms": latency["p99"],
        "p99_9_ms": latency["p99_9"],
        "failures": report["requests"] - report["ok"],
        "generator_share": report["cpu_share"],
    }


def loaded(bench: Bench, server: Server, case: str, load: str, repeat: int, calls: Path, **options: Any) -> Sample:
    """One load on a running server, or with a `target` among the options on what stands before it, and what it cost
    the server.
    """
    target = options.pop("target", server.target)
    bench.say(f"{case}: {server.column.title}, {load}")
    batches, cpu, busy = server.batch_sizes(), server.cpu_seconds(), _busy_seconds(bench)
    report = bench.load(target, calls, **options)
    cpu = server.cpu_seconds() - cpu
    server_busy, load_busy = (after - before for after, before in zip(_busy_seconds(bench), busy, strict=True))
    sizes = server.batch_sizes() - batches
    bench.step()
    seconds = options.get("seconds", bench.seconds) + options.get("warm_up", bench.warm_up)
    # The server's CPU time is of the whole run, so it is put against all of the run's seconds.
    figures = figures_of(report) | {
        "server_us_per_request": cpu / seconds / report["rps"] * 1e6 if report["rps"] else 0.0,
        # Work of others on the two cores, as a share of them: the figures are too low by at least that.
        "foreign_share": max(0.0, server_busy - cpu) / seconds,
        "load_foreign_share": max(0.0, load_busy / seconds - report["cpu_share"]),
        "batch_mean": sum(rows * count for rows, count in sizes.items()) / max(1, sizes.total()),
    }
    detail = {key: report[key] for key in ("latency_ms", "send_lag_ms", "by_status", "by_reason", "series")}
    detail["batch_sizes"] = dict(sorted(sizes.items()))
    return Sample(case=case, column=server.column.key, load=load, repeat=repeat, metrics=figures, detail=detail)


def windowed(
    bench: Bench, server: Server, case: str, load: str, repeat: int, calls: Path, *, count: int, **options: Any
) -> Sample:
    """A load in so many short windows, each with other arrivals, which are the same in each load of a repeat.

    `p99_ms` is that of a quiet window (see `windows`), all other figures are medians.
    """
    bench.say(f"{case}: {server.column.title}, {load}")
    found: list[Window] = []
    reasons: Counter[str] = Counter()
    for number in range(count):
        seed = repeat * count + number + 1
        report = bench.load(server.target, calls, **options, warm_up=WINDOW_WARM_UP, seed=seed, buckets=True)
        found.append(Window(figures_of(report), report["latency_buckets"]))
        reasons.update(report["by_reason"])
    bench.step()
    figures = together(found) | {"p99_ms": quiet([window["p99_ms"] for window in found], more_is_better=False)}
    detail = {"windows": [dict(window.figures) for window in found], "by_reason": dict(reasons)}
    return Sample(case=case, column=server.column.key, load=load, repeat=repeat, metrics=figures, detail=detail)


def _busy_seconds(bench: Bench) -> tuple[float, float]:
    """Time that the server's and the generator's core have worked, for whomever; what the hypervisor took included."""
    cores = psutil.cpu_times(percpu=True)
    used = (cores[bench.server_core], cores[bench.load_core])
    server, load = (float(sum(core) - core.idle - core.iowait - core.guest - core.guest_nice) for core in used)
    return server, load


def python(bench: Bench, *arguments: str, both_cores: bool = False) -> dict[str, Any]:
    """Runs Python on the server's core, or on both, and reads the JSON that it writes. Says what it says meanwhile."""
    command = ["taskset", "-c", bench.cores(both=both_cores), sys.executable, *arguments]
    said = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stderr:  # The JSON is small: it waits in its pipe.
            said.append(line)
            bench.say(line.strip())
        told = process.stdout.read()
    if process.returncode != 0:
        raise BenchError(f"{arguments[1].strip()} failed: {''.join(said).strip()[-2000:]}")
    found: dict[str, Any] = json.loads(told)
    return found
