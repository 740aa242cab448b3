"""What TensorRT's builder says of its progress: phases, some inside others, each of so many steps.

TensorRT calls a monitor from its own threads. `Watcher` is what Forebay's parts implement: the server tells the loader
a few words, the command line draws bars.
"""

import time
from collections.abc import Callable
from typing import Any, Final, Protocol

EVERY: Final = 1.0  # seconds between words; a build has thousands of steps


class Watcher(Protocol):
    """Looks at a build. Its methods are called by any thread, several at a time, and raise nothing."""

    def started(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase has begun, inside another one or on its own."""

    def advanced(self, phase: str, step: int) -> bool:
        """This step of it is done, counted from 0. False ends the build."""

    def finished(self, phase: str) -> None:
        """It is done."""


class Words:
    """Says in words how far the outermost phase is, not more often than once a second.

    Args:
        tell: Whom.
        stopping: Whether the build is to end.
        clock: Monotonic seconds.
    """

    def __init__(
        self, tell: Callable[[str], None], stopping: Callable[[], bool], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell = tell
        self._stopping = stopping
        self._clock = clock
        self._steps: dict[str, int] = {}
        self._told = -EVERY

    def started(self, phase: str, parent: str | None, steps: int) -> None:
        """Remembers it if it is an outermost one."""
        if parent is None:
            self._steps[phase] = steps

    def advanced(self, phase: str, step: int) -> bool:
        """Says it; goes on until it is to end."""
        steps = self._steps.get(phase)
        now = self._clock()
        if steps is not None and now - self._told >= EVERY:
            self._told = now
            self._tell(f"building its plan: {phase}, {step + 1} of {steps}")
        return not self._stopping()

    def finished(self, phase: str) -> None:
        """Forgets it."""
        self._steps.pop(phase, None)


def make_monitor(trt: Any, watcher: Watcher) -> Any:
    """Makes what TensorRT calls."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the class comes with the library
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            watcher.started(phase, parent or None, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            return watcher.advanced(phase, step)

        def phase_finish(self, phase: str) -> None:
            watcher.finished(phase)

    return Monitor()
