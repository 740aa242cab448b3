"""Shows how far a long build is: bars for its phases on a terminal, a line for each large one elsewhere."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from forebay_server.engines.tensorrt.progress import Watcher

Result = TypeVar("Result")
POLL = 0.2  # seconds between looks for Ctrl-C


class Stop:
    """Whether somebody wants the build to end. For all threads."""

    def __init__(self) -> None:
        self._wanted = threading.Event()

    def __call__(self) -> bool:
        """Whether."""
        return self._wanted.is_set()

    def set(self) -> None:
        """Somebody does."""
        self._wanted.set()


class _Lines:
    """For logs: a line for each phase that is not part of another."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def started(self, phase: str, parent: str | None, steps: int) -> None:
        """Writes the line."""
        if parent is None:
            click.echo(f"{phase}, {steps} steps", err=True)

    def advanced(self, phase: str, step: int) -> bool:  # noqa: ARG002  # the port's
        """Goes on until somebody stops it."""
        return not self._stop()

    def finished(self, phase: str) -> None:
        """Says nothing."""


class _Bars:
    """For terminals: a bar for each phase while it lasts, indented in that which it is part of."""

    def __init__(self, bars: "Progress", stop: Stop) -> None:
        self._bars = bars
        self._stop = stop
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._depths: dict[str, int] = {}

    def started(self, phase: str, parent: str | None, steps: int) -> None:
        """Adds the bar."""
        with self._lock:
            depth = self._depths.get(parent, -1) + 1 if parent is not None else 0
            self._depths[phase] = depth
            self._tasks[phase] = self._bars.add_task(f"{'  ' * depth}{phase}", total=steps)

    def advanced(self, phase: str, step: int) -> bool:
        """Moves it; goes on until somebody stops it."""
        with self._lock:
            if phase in self._tasks:
                self._bars.update(self._tasks[phase], completed=step + 1)
        return not self._stop()

    def finished(self, phase: str) -> None:
        """Takes it away."""
        with self._lock:
            task = self._tasks.pop(phase, None)
            self._depths.pop(phase, None)
            if task is not None:
                self._bars.remove_task(task)


@contextmanager
def stages(stop: Stop) -> "Iterator[Watcher]":
    """Shows what the watcher that it gives is told, on stderr."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(stop)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        yield _Bars(bars, stop)


def interruptible(work: Callable[[], Result], stop: Stop) -> Result:
    """Does something long that looks at `stop`, in a thread of its own, so that Ctrl-C is heard at once.

    Raises:
        KeyboardInterrupt: After Ctrl-C, as soon as the work has ended; at a second one at once.
    """
    results: list[Result] = []
    failures: list[BaseException] = []

    def main() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  # it goes to whoever waits
            failures.append(error)

    thread = threading.Thread(target=main, name="build", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL)
    except KeyboardInterrupt:
        stop.set()
        thread.join()
        raise
    if failures:
        raise failures[0]
    return results[0]
