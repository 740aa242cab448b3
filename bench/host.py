"""What any report says of the machine that it was made on. No host name and no path; standard library only."""

import os
import platform
from pathlib import Path


def cpu() -> str:
    """The processor's model."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_threads() -> int:
    """Hardware threads that this process may use."""
    return len(os.sched_getaffinity(0))


def memory_gib() -> float:
    """All memory of the machine."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def kernel() -> str:
    """`Linux 6.18.44`."""
    return f"{platform.system()} {platform.release().partition('-')[0]}"


def python() -> str:
    """`CPython 3.11.7`."""
    return f"{platform.python_implementation()} {platform.python_version()}"
