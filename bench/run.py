"""`python -m bench.run`: measures everything and writes `bench/results/DATE.json`, `.md` and plots.

`make bench` and `make bench-quick` call it. It needs two cores, the load generator (`make loadgen`) and, for the
columns that are ours, the native front end; without one of them it says so and does nothing.
"""

import argparse
import contextlib
import dataclasses
import datetime as dt
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import cases, generator, machine, models, plots, report
from bench.case import Bench, Case
from bench.errors import BenchError
from bench.server import COLUMNS

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how often. Times are seconds."""

    repeats: int
    seconds: float
    warm_up: float
    memory_requests: int
    jobs: int
    finished_jobs: int


FULL = Plan(repeats=4, seconds=4.0, warm_up=1.0, memory_requests=1_000_000, jobs=100_000, finished_jobs=1_000_000)
QUICK = Plan(repeats=1, seconds=1.0, warm_up=0.3, memory_requests=200_000, jobs=30_000, finished_jobs=100_000)


def check(columns: Sequence[str]) -> None:
    """Whether this machine can run the bench.

    Raises:
        BenchError: It lacks something.
    """
    if any(COLUMNS[column].own for column in columns) and importlib.util.find_spec("forebay_native") is None:
        raise BenchError(
            "the native front end is not installed, and figures without it would not be Forebay's: install cargo and "
            "run `make env`, or choose `--columns grpc_aio,grpc_threads` to measure the others alone"
        )
    if not generator.LOADGEN.exists() or not generator.FIXED_SERVER.exists():
        raise BenchError("the load generator is not built: install cargo and run `make loadgen`")
    if len(os.sched_getaffinity(0)) < 2:
        raise BenchError("two cores are needed, one for the server and one for the load generator")


def measure(chosen: Sequence[Case], bench: Bench, repeats: int) -> list[report.Sample]:
    """All samples. Cases one after the other; repeats of a case take turns through its columns."""
    samples: list[report.Sample] = []
    for case in chosen:
        for repeat in range(min(repeats, case.most)):
            # Another column begins each time, so that none is always the first on a cool machine.
            turn = repeat % len(case.columns)
            for column in case.columns[turn:] + case.columns[:turn]:
                samples += case.measure(bench, column, repeat)
    return samples


def steps(chosen: Sequence[Case], repeats: int) -> int:
    """Measurements that the progress bar counts."""
    return sum(
        (1 if column == "inprocess" else case.steps) * min(repeats, case.most)
        for case in chosen
        for column in case.columns
    )


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure Forebay beside other gRPC servers.")
    parser.add_argument("--quick", action="store_true", help="seven minutes: one short repeat of everything")
    parser.add_argument("--only", default="", help=f"cases, comma-separated: {', '.join(cases.CASES)}")
    parser.add_argument("--columns", default=",".join(COLUMNS), help="servers, comma-separated (default: all)")
    parser.add_argument("--repeats", type=int, help="how often each case is measured")
    parser.add_argument("--seconds", type=float, help="length of one measurement")
    parser.add_argument("--server-core", type=int, help="core of the server (default: the first)")
    parser.add_argument("--load-core", type=int, help="core of the load generator (default: the last)")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results", help="where the report goes")
    return parser.parse_args()


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Measures and writes the report.

    Raises:
        BenchError: It cannot.
    """
    plan = QUICK if arguments.quick else FULL
    plan = dataclasses.replace(
        plan, repeats=arguments.repeats or plan.repeats, seconds=arguments.seconds or plan.seconds
    )
    columns = _names(arguments.columns)
    chosen = cases.select(_names(arguments.only), columns)
    check([column for case in chosen for column in case.columns if column in COLUMNS])
    usable = sorted(os.sched_getaffinity(0))
    server_core = usable[0] if arguments.server_core is None else arguments.server_core
    load_core = usable[-1] if arguments.load_core is None else arguments.load_core
    if server_core == load_core:
        raise BenchError("server and load generator must not share a core")
    described = machine.describe()
    # This process, too, stays away from the server.
    os.sched_setaffinity(0, {load_core})
    directory = ROOT / "build" / "bench"
    for name in models.MODELS:
        models.make(name, directory)
    date = dt.datetime.now(tz=dt.UTC).strftime("%Y-%m-%dT%H%M%S")

    with _progress(console, steps(chosen, plan.repeats)) as (say, step):
        bench = Bench(
            directory=directory,
            server_core=server_core,
            load_core=load_core,
            seconds=plan.seconds,
            warm_up=plan.warm_up,
            columns=columns,
            memory_requests=plan.memory_requests,
            jobs=plan.jobs,
            finished_jobs=plan.finished_jobs,
            kept=arguments.results / date,
            say=say,
            step=step,
        )
        samples = measure(chosen, bench, plan.repeats)
    _write(arguments.results, date, described, plan, bench, samples, console)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@contextlib.contextmanager
def _progress(console: Console, total: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """A progress bar on the terminal; gives what says a line and what counts a step."""
    bar = Progress(
        BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"), console=console
    )
    with bar:
        task = bar.add_task("", total=total)

        def say(line: str) -> None:
            if console.is_terminal:
                bar.update(task, description=line)
            else:
                console.print(line)

        yield say, lambda: bar.advance(task)


def _write(
    directory: Path,
    date: str,
    described: dict[str, Any],
    plan: Plan,
    bench: Bench,
    samples: list[report.Sample],
    console: Console,
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    run = {
        "date": date,
        "machine": described,
        "repeats": plan.repeats,
        "seconds": plan.seconds,
        "server_core": bench.server_core,
        "load_core": bench.load_core,
    }
    names = plots.draw(directory, date, samples)
    json_path, page = report.write(directory, run, samples, names)
    table = Table("what", "measured", "target", "reached")
    for row in report.rows(samples):
        table.add_row(row.title, f"{row.measured:.2f}{row.unit}", row.target, "yes" if row.reached else "no")
    shown = Console()
    if table.row_count:
        shown.print(table)
    for note in report.notes(samples):
        shown.print(f"note: {note}")
    console.print(f"wrote {json_path.name}, {page.name} and {len(names)} plots to {os.path.relpath(directory)}")


def main() -> None:
    """The command."""
    console = Console(stderr=True)
    try:
        run(options(), console)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
