"""How many CPUs this process may use: affinity and cgroup quotas, not what the machine has.

Engines ask it for their default number of threads. It changes nothing and remembers nothing.
"""

import os
from pathlib import Path


def cpu_quota(root: Path = Path("/")) -> float:
    """CPUs that this process may keep busy: the smallest of its affinity and the quotas of its cgroups (v2 and v1).

    Args:
        root: Where `proc` and `sys` are; another one in tests.
    """
    quotas = [float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)]
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return quotas[0]
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:
            for folder in _upwards(mount, group):
                quotas += _quota_v2(folder)
        elif "cpu" in controllers.split(","):
            for name in (controllers, "cpu"):
                for folder in _upwards(mount / name, group):
                    quotas += _quota_v1(folder)
    return min(quotas)


def threads_per_instance(threads: int, instances: int, quota: float) -> int:
    """Threads of one instance: as set, or (`threads` is 0) an equal share of the quota, at least one."""
    return threads or max(1, int(quota / instances))


def _upwards(mount: Path, group: str) -> list[Path]:
    """The folder of a cgroup and of all its ancestors: each may have a quota.

    In a container the path in /proc is often that of the host while the mount shows the container's own group at its
    root; folders that don't exist are simply not read.
    """
    parts = [part for part in group.split("/") if part not in {"", ".."}]
    return [mount.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _quota_v2(folder: Path) -> list[float]:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return [] if quota == "max" else [int(quota) / int(period)]
    except (OSError, ValueError, ZeroDivisionError):
        return []


def _quota_v1(folder: Path) -> list[float]:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return [quota / period] if quota > 0 else []
    except (OSError, ValueError, ZeroDivisionError):
        return []
