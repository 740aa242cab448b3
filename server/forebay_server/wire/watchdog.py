"""A watchdog that needs no GIL: it ends the process when its owner stops coming back.

It stands on `faulthandler.dump_traceback_later(exit=True)`: a thread in C that prints all stacks to stderr and ends the
process with code 1. (The native adapter has a watchdog of its own, with code 70.) There is one such timer in a process.

Setting that timer starts a thread, which is too much for each turn of a busy dispatcher. So it is set with a margin of
a quarter of the budget, and again only when the margin is used up: the process ends between one budget and one and a
quarter after the owner's last sign of life.
"""

import faulthandler
import time

_MARGIN = 0.25  # of the budget
_STDERR = 2  # not `sys.stderr`: whoever has replaced that may have no descriptor to give


class Watchdog:
    """Used by one thread only."""

    def __init__(self) -> None:
        self._budget: float | None = None
        self._fires_at = 0.0  # monotonic seconds; 0: not set

    def watch(self, budget: float | None) -> None:
        """Sets the longest time in seconds between two signs of life, from now; None lets the watchdog rest."""
        if budget != self._budget:
            self._budget = budget
            self.rest()
        self.alive()

    def patience(self) -> float:
        """How long, in seconds, its owner may wait before it must call `rest`."""
        return max(self._fires_at - time.monotonic(), 0.0) / 2 if self._fires_at else 0.0

    def armed(self) -> bool:
        """Whether the timer runs."""
        return self._fires_at > 0

    def rest(self) -> None:
        """The owner is about to wait for a long time: no signs of life are expected until `alive`."""
        if self._fires_at:
            faulthandler.cancel_dump_traceback_later()
            self._fires_at = 0.0

    def alive(self) -> None:
        """A sign of life."""
        budget = self._budget
        if budget is None:
            return
        now = time.monotonic()
        if self._fires_at - now < budget:
            wait = budget * (1 + _MARGIN)
            faulthandler.dump_traceback_later(wait, file=_STDERR, exit=True)
            self._fires_at = now + wait
