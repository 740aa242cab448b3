"""`forebay profile`: where a running server spends its time, sampled from outside by py-spy."""

import shutil
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Final

import click

from forebay_server.cli.guard import Failed
from forebay_server.errors import ConfigError

FORMATS: Final = {".svg": "flamegraph", ".json": "speedscope", ".txt": "raw"}
"""By the end of the file's name, what py-spy calls the format."""
GRACE: Final = 60.0  # seconds that it may take beyond the recording


@click.command()
@click.option("--pid", required=True, type=click.IntRange(1), metavar="PID", help="The server's process id.")
@click.option(
    "-o",
    "--output",
    default="profile.svg",
    show_default=True,
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Where to: .svg is a flame graph for the browser, .json for speedscope.app, .txt plain stacks.",
)
@click.option(
    "--seconds", default=5, show_default=True, type=click.IntRange(1, 3600), metavar="N", help="For how long."
)
@click.option(
    "--rate", default=100, show_default=True, type=click.IntRange(1, 1000), metavar="N", help="Samples a second."
)
@click.option("--gil", is_flag=True, help="Only threads that hold the GIL: what keeps the dispatcher waiting.")
@click.option("--native", is_flag=True, help="Also frames of C, C++ and Rust: engines and the front end. Slower.")
@click.option("--open", "show", is_flag=True, help="Open the file in the browser.")
def profile(pid: int, output: Path, seconds: int, rate: int, gil: bool, native: bool, show: bool) -> None:  # noqa: FBT001  # click's way
    """Write a profile of a running server, thread by thread.

    It is sampled from outside, by py-spy (forebay[profile]): the server need not be started in any special way. It
    takes the same user, and a kernel that lets one process look into another; docs/operations.md says how in
    containers.

    \b
      forebay profile --pid "$(pgrep -of 'forebay serve')" --open
    """
    kind = FORMATS.get(output.suffix)
    if kind is None:
        raise ConfigError(f"{output}: the name must end with one of {', '.join(FORMATS)}")
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        raise ConfigError("py-spy is not installed; run: pip install 'forebay[profile]'")
    command = [
        *(program, "record", "--pid", str(pid), "--output", str(output), "--format", kind),
        *("--duration", str(seconds), "--rate", str(rate), "--threads"),
        *(["--gil"] if gil else []),
        *(["--native"] if native else []),
    ]
    before = _written(output)
    try:
        ended = subprocess.run(  # noqa: S603  # a program of ours, and no shell
            command, capture_output=True, text=True, timeout=seconds + GRACE, check=False
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"py-spy did not end within {GRACE:.0f} s after the recording") from None
    if ended.returncode or _written(output) == before:
        raise Failed(_why(pid, ended.stderr))
    click.echo(f"{output}: {seconds} s of process {pid}")
    if show:
        webbrowser.open(output.resolve().as_uri())


def _written(path: Path) -> int | None:
    """When a file was last written; None if it is not there."""
    return path.stat().st_mtime_ns if path.exists() else None


def _why(pid: int, said: str) -> str:
    """One sentence for what py-spy says in several."""
    lowered = said.lower()
    if "permission" in lowered or "operation not permitted" in lowered:
        return f"process {pid} may not be looked into; run as root, or see `ptrace` in docs/operations.md"
    if "no such process" in lowered or "no such file" in lowered:
        return f"there is no process {pid}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = next((line for line in lines if line.lower().startswith(("error", "reason"))), lines[-1] if lines else "")
    return f"py-spy could not profile process {pid}: {reason}"
