"""The progress bar of commands that send many rows."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


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
    from rich.console import Console  # noqa: PLC0415  # heavy
    from rich.progress import (  # noqa: PLC0415  # heavy
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
