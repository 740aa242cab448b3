"""Figures of the process, as Linux tells them. In an exporter's thread: the files are made while they are read."""

import os
import resource
import time
from pathlib import Path
from typing import Final

from forebay_server.telemetry import names
from forebay_server.telemetry.samples import Sample

_SELF: Final = Path("/proc/self")
_TICK: Final = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def started() -> float:
    """When the process started, in seconds since 1970, by the clock as it goes now."""
    uptime = float(Path("/proc/uptime").read_text("ascii").split()[0])
    return time.time() - uptime + int(_stat()[19]) * _TICK


def _stat() -> list[str]:
    """The fields of /proc/self/stat from the third on; the second may hold anything."""
    return (_SELF / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()


def samples(began: float) -> list[Sample]:
    """What the process uses; nothing where there is no /proc.

    Args:
        began: As `started` has said once.
    """
    try:
        stat = _stat()
        open_fds = sum(1 for _ in (_SELF / "fd").iterdir())
    except OSError:
        return []
    return [
        (names.CPU, (), (int(stat[11]) + int(stat[12])) * _TICK),
        (names.RSS, (), int(stat[21]) * _PAGE),
        (names.VIRTUAL, (), int(stat[20])),
        (names.STARTED, (), began),
        (names.FDS, (), open_fds),
        (names.FDS_LIMIT, (), resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        (names.THREADS, (), int(stat[17])),
    ]
