"""Figures of GPUs, through NVIDIA's real bindings and a management library that tells what is known."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from forebay_server.telemetry.gpu import Gpus

LOOK = """
import json
from forebay_server.telemetry.gpu import Gpus

gpus = Gpus()
gpus.start()
found = [[metric.prometheus, *labels, value] for metric, labels, value in gpus.samples()]
gpus.close()
assert gpus.samples() == []
gpus.close()
gpus.start()
assert len(gpus.samples()) == len(found), "it can be taken up again"
print(json.dumps(found))
"""


def look(environment):
    """What a process of its own finds, and what it writes to its log. The bindings load the library once a process."""
    ended = subprocess.run(
        [sys.executable, "-c", LOOK],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *log, last = ended.stdout.splitlines()
    return json.loads(last), "\n".join(log)


def test_what_each_gpu_tells_is_told(nvml):
    """Two are seen; of the second nobody knows how busy it is; the third belongs to somebody else."""
    found, log = look(nvml)

    assert found == [
        ["forebay_gpu_memory_used_bytes", "0", 1_000_000_000],
        ["forebay_gpu_memory_total_bytes", "0", 80_000_000_000],
        ["forebay_gpu_utilization_ratio", "0", 0.37],
        ["forebay_gpu_memory_used_bytes", "1", 2_000_000_000],
        ["forebay_gpu_memory_total_bytes", "1", 160_000_000_000],
    ]
    assert "Insufficient Permissions" in log


def test_without_a_driver_there_are_none(nvml):
    """The library says so, which is worth a line and nothing else."""
    found, log = look({**nvml, "NO_DRIVER": "1"})

    assert found == []
    assert "Driver Not Loaded" in log


def test_without_the_bindings_there_are_none(monkeypatch):
    """Nothing is asked, nothing fails."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpus = Gpus()
    gpus.start()

    assert gpus.samples() == []
    gpus.close()


def test_closing_what_was_never_started():
    """Harmless."""
    Gpus().close()


@pytest.mark.skipif(not Path("/proc/driver/nvidia").exists(), reason="needs an NVIDIA driver")
def test_a_real_gpu():
    """All three figures of the first, within their bounds."""
    gpus = Gpus()
    gpus.start()
    found = {metric.prometheus: value for metric, labels, value in gpus.samples() if labels == ("0",)}
    gpus.close()

    assert 0 < found["forebay_gpu_memory_used_bytes"] <= found["forebay_gpu_memory_total_bytes"]
    assert 0.0 <= found["forebay_gpu_utilization_ratio"] <= 1.0
