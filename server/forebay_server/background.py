"""Who goes first where threads share a core: those that answer callers, before those that can wait.

What a thread may have of a core, and how soon it gets it, are two things to Linux. The first is its nice value. The
second is its *turn*: who wakes up takes the core from a thread with longer turns at once (from 6.12 on), and from any
other when its turn is over, at the next tick of the kernel: after 4 ms and more, which callers would feel.
"""

import contextlib
import ctypes
import os
import platform
import struct
import sys
import threading
from collections.abc import Iterator
from typing import Final

STEPS: Final = 10
"""By which the nice value of a thread that can wait goes up. Of two that want the same core it gets a tenth."""
SHORT: Final = 100_000
"""Nanoseconds of a short turn; the kernel takes no less."""
USUAL: Final = 0
"""The kernel's own, of a millisecond or several."""

_SET_ATTRIBUTES: Final = {"x86_64": 314, "aarch64": 274}.get(platform.machine()) if sys.platform == "linux" else None
"""The number of `sched_setattr`, for which C libraries have had a name for a short while only."""
_ATTRIBUTES: Final = struct.Struct("=IIQiIQQQ")
"""Size, policy, flags, nice value, priority, turn, and two of other policies."""


def can_wait(steps: int = STEPS) -> None:
    """Has the calling thread run after the others, for good. On Linux, where threads have priorities of their own.

    Args:
        steps: Fewer, if what it does must not fall behind for long.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + steps))
        _turn(USUAL)


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Has threads that are started meanwhile take the core at once from those that can wait. Where Linux can do it."""
    _turn(SHORT)
    try:
        yield
    finally:
        _turn(USUAL)


def _turn(nanoseconds: int) -> None:
    """Sets the length of the calling thread's turns. Threads that it starts inherit it."""
    if _SET_ATTRIBUTES is None:
        return
    nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.sched_getscheduler(0), 0, nice, 0, nanoseconds, 0, 0)
    # Older kernels take no notice, and a container may forbid it: then it is as it was.
    ctypes.CDLL(None).syscall(_SET_ATTRIBUTES, 0, attributes, 0)
