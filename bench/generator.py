"""Runs `forebay-loadgen`, pinned to its core, and reads its report. `cases` and the tests call it."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.starting import free_ports, listens, until

RELEASE = Path(__file__).parent / "loadgen" / "target" / "release"
LOADGEN = RELEASE / "forebay-loadgen"
FIXED_SERVER = RELEASE / "fixed-server"

WRONG_VALUES = 3
"""Its exit status if an answer was wrong; the report is written all the same."""

Report = dict[str, Any]


def arguments(target: str, calls: Path, seconds: float, warm_up: float, options: dict[str, Any]) -> list[str]:
    """The command line; `options` are its long options, without dashes. `True`: one that takes no value."""
    command = [str(LOADGEN), "--target", target, "--calls", str(calls)]
    command += ["--duration", f"{seconds:g}", "--warm-up", f"{warm_up:g}"]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return command


def run(command: list[str], core: int) -> Report:
    """Runs a load and gives its report.

    Raises:
        BenchError: It could not run, an answer was wrong, or requests were dropped: the figures would say nothing.
    """
    finished = subprocess.run(["taskset", "-c", str(core), *command], capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise BenchError(f"the load generator failed: {finished.stderr.strip()}")
    report: Report = json.loads(finished.stdout)
    if report["dropped"]:
        raise BenchError(f"the load generator had to drop {report['dropped']} requests; lower the rate")
    return report


@contextlib.contextmanager
def fixed_server(calls: Path, core: int) -> Iterator[str]:
    """The server of fixed answers, running on a core; gives its address."""
    (port,) = free_ports(1)
    target = f"127.0.0.1:{port}"
    command = ["taskset", "-c", str(core), str(FIXED_SERVER), "--listen", target, "--calls", str(calls)]
    process = subprocess.Popen(command)
    try:
        until(lambda: listens(port), "fixed-server does not listen", within=5.0, process=process)
        yield target
    finally:
        process.terminate()
        process.wait()
