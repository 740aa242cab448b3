"""The CPU quota: affinity and both kinds of cgroups."""

import os

import pytest

from forebay_server.engines.cpu import cpu_quota, threads_per_instance

CPUS = len(os.sched_getaffinity(0))


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, CPUS),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "50000 100000\n"}, 0.5),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, CPUS),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "25000 100000\n"}, 0.25),
        ({"proc/self/cgroup": "0::/on/the/host\n", "sys/fs/cgroup/cpu.max": "75000 100000\n"}, 0.75),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/a\n0::/a\n",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "20000\n",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
            },
            0.2,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/a\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
            },
            CPUS,
        ),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "nonsense\n"}, CPUS),
    ],
)
def test_quota(tmp_path, files, quota):
    """The smallest of affinity and all groups up to the root counts; what can't be read does not."""
    write(tmp_path, files)
    assert cpu_quota(tmp_path) == quota


def test_threads():
    """The quota is shared among the instances, each gets at least one; what is set is taken."""
    assert threads_per_instance(0, 1, 8.0) == 8
    assert threads_per_instance(0, 3, 8.0) == 2
    assert threads_per_instance(0, 4, 0.5) == 1
    assert threads_per_instance(5, 4, 2.0) == 5
