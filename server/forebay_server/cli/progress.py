"""The progress of commands that take long: a bar of rows, or the step that is being done."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import click


class Advance(Protocol):
    """Told of rows that have an outcome."""

    def __call__(self, rows: int, *, failed: int = 0) -> None:
        """So many more rows, of which so many failed."""


@contextmanager
def progress(total: int, done: int = 0) -> Iterator[Advance]:
    """A bar on stderr with the rows done, their rate and those that failed; nothing where that is not a terminal.

    Args:
        total: Rows in all.
        done: Rows that have their outcome from an earlier run; the rate is without them.
    """
    if not sys.stderr.isatty():
        yield lambda _rows, *, failed=0: None  # noqa: ARG005  # nobody looks
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    start = time.monotonic()
    advanced = failures = 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rows", total=total, completed=done, note="")

        def advance(rows: int, *, failed: int = 0) -> None:
            nonlocal advanced, failures
            advanced += rows
            failures += failed
            rate = advanced / max(time.monotonic() - start, 1e-3)
            bar.update(task, advance=rows, note=f"{rate:,.0f} rows/s, {failures:,} failed")

        yield advance


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """The step that is being done, and the time, on stderr; a line for each step where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda words: click.echo(f"{words} ...", err=True)
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda words: bar.update(task, description=words)
