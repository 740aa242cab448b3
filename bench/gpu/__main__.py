"""`python -m bench.gpu`: checks the GPU engines on this machine and writes a report. `make gpu-check` calls it.

It installs nothing and needs no network. This process uses the standard library only; each part runs in one of its own,
for a bounded time, with what is installed there or lies in a folder of wheels. A part that lacks something is *not
executed*, and the report says what it lacked. The report is written anew after each part, so that it stands even if the
command itself is ended; and what was run with several commands on one machine can be joined into one report.
"""

import argparse
import contextlib
import datetime as dt
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from bench.gpu import here, outcome, report, site
from bench.gpu.outcome import FAILED, NOT_EXECUTED, Outcome
from bench.gpu.parts import PARTS
from bench.gpu.report import Report

MINUTES: Final = 8.0
_LAST_WORDS: Final = 2000  # characters of what a part wrote to stderr


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="gpu-check", description="Check the GPU engines on this machine.")
    parser.add_argument(
        "--part", default="", metavar="NAMES", help=f"parts, comma-separated: {', '.join(PARTS)} (default: all)"
    )
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"the most time of a part (default: {MINUTES:g})"
    )
    parser.add_argument(
        "--total",
        type=float,
        default=math.inf,
        metavar="MINUTES",
        help="the most time of all (default: no limit)",
    )
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels to use beside what is installed")
    parser.add_argument(
        "--report", type=Path, default=site.ROOT / "build" / "gpu-check", metavar="FOLDER", help="where the report goes"
    )
    parser.add_argument(
        "--join",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="run nothing: join gpu-check.json of several runs on one machine, of a part the last that was executed",
    )
    parser.add_argument("--publish", action="store_true", help="write the report to docs/ and its sum to README.md")
    chosen = parser.parse_args(arguments)
    chosen.part = [name.strip() for name in chosen.part.split(",") if name.strip()] or list(PARTS)
    if unknown := [name for name in chosen.part if name not in PARTS]:
        parser.error(f"no part is called {unknown[0]!r}; there are {', '.join(PARTS)}")
    if chosen.wheels is not None and not chosen.wheels.is_dir():
        parser.error(f"{chosen.wheels}: not a folder")
    return chosen


def run_part(name: str, environment: dict[str, str], folder: Path, seconds: float) -> Outcome:
    """Runs a part in a process of its own, which is ended with all that it has started when its time is over."""
    if seconds <= 0:
        return Outcome(part=name, title=PARTS[name].title, state=NOT_EXECUTED, reason="no time was left for it")
    file = folder / f"{name}.json"
    command = [site.python(), "-m", "bench.gpu.child", name, str(file)]
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=site.ROOT,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
        log.seek(0)
        said = log.read()[-_LAST_WORDS:]
    found = outcome.read(file) or Outcome(part=name, title=PARTS[name].title)
    if status is None:
        found.state, found.reason = FAILED, f"it was ended after {seconds:.3g} s"
    elif status != 0:
        found.state, found.reason = FAILED, f"its process ended with {_status(status)}"
    found.seconds = round(time.monotonic() - began, 1)
    if found.state == FAILED and said:
        print(said, file=sys.stderr)
    return found


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kills what is left of a part's process group, which is its own session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _status(status: int) -> str:
    return f"status {status}" if status > 0 else f"signal {signal.Signals(-status).name}"


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 if a part has failed."""
    chosen = options(arguments)
    folder = site.ROOT / "docs" if chosen.publish else chosen.report
    found = report.joined(chosen.join) if chosen.join else checked(chosen, folder)
    file = report.write(folder, found)
    if chosen.publish:
        page = site.ROOT / "README.md"
        page.write_text(report.readme(page.read_text(), found))
    print(f"wrote {os.path.relpath(file)} and {file.with_suffix('.json').name}")
    executed = sum(outcome.state != NOT_EXECUTED for outcome in found.outcomes)
    failed = sum(outcome.state == FAILED for outcome in found.outcomes)
    print(f"{executed} of {len(found.outcomes)} parts executed, {failed} failed")
    return 1 if failed else 0


def checked(chosen: argparse.Namespace, folder: Path) -> Report:
    """Runs the parts that were chosen, and writes the report into a folder after each."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="forebay-gpu-check-") as place:
        packages, results = Path(place, "packages"), Path(place, "results")
        packages.mkdir()
        results.mkdir()
        environment, wheels = site.make(packages, chosen.wheels)
        found = Report(
            date=dt.datetime.now(tz=dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            machine=here.describe([str(packages)]),
            wheels=wheels,
        )
        print(here.sentence(found.machine))
        for name in chosen.part:
            left = 60 * chosen.total - (time.monotonic() - began)
            found.outcomes.append(run_part(name, environment, results, min(60 * chosen.minutes, left)))
            outcome = found.outcomes[-1]
            because = f" ({outcome.reason})" if outcome.reason else ""
            print(f"{name:22} {outcome.seconds:7.1f} s  {outcome.state}{because}", flush=True)
            report.write(folder, found)
    return found


if __name__ == "__main__":
    sys.exit(main())
