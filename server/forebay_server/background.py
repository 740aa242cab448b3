"""Threads that can wait: where all share a core, those that answer callers go first."""

import os
import sys
import threading
from typing import Final

STEPS: Final = 10
"""By which the nice value goes up. Of two threads that want the same core this one gets a tenth. And who wakes up, as
there is a request, does not wait until its turn ends (3 ms and more), which callers would feel."""


def can_wait(steps: int = STEPS) -> None:
    """Has the calling thread run after the others, for good. On Linux, where threads have priorities of their own.

    Args:
        steps: Fewer, if what it does must not fall behind for long.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + steps))
