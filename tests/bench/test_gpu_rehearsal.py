"""The whole command of the GPU check, with its processes, on a machine whose GPU isn't there: `tests.bench.machine`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu.outcome import FAILED, NOT_EXECUTED, PASSED

ROOT = Path(__file__).parents[2]


def check(folder, *arguments, **environment):
    """Runs it; its exit status, and the parts of its report by name."""
    path = [str(Path(__file__).with_name("rehearsal")), str(ROOT)]
    command = [sys.executable, "-m", "bench.gpu", "--report", str(folder), *arguments]
    finished = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), **environment},
        check=False,
    )
    parts = json.loads((folder / "gpu-check.json").read_text())["parts"]
    return finished.returncode, {part["part"]: part for part in parts}


@pytest.mark.timeout(900)
def test_faults(tmp_path):
    """Memory, a lost device and a hang, in processes of their own and with servers around them: all as it is to be."""
    status, parts = check(tmp_path, "--part", "faults")
    found = {finding["title"]: finding["good"] for finding in parts["faults"]["findings"]}
    assert [title for title, good in found.items() if good is False] == []
    assert (status, parts["faults"]["state"]) == (0, PASSED)
    assert len(found) == 21


def test_a_part_that_breaks_down_takes_no_other_with_it(tmp_path):
    """One hangs, one crashes: both have failed, with what they had found; the one after them has passed."""
    status, parts = check(
        tmp_path, "--part", "device,graphs,leaks,bert", "--minutes", "0.5", FOREBAY_REHEARSAL="device=hang,graphs=crash"
    )
    assert status == 1
    assert {name: (part["state"], part["reason"]) for name, part in parts.items() if name != "leaks"} == {
        "device": (FAILED, "it was ended after 30 s"),
        "graphs": (FAILED, "its process ended with signal SIGABRT"),
        "bert": (NOT_EXECUTED, "the package torch is not installed"),
    }
    for name in ("device", "graphs"):
        assert [finding["title"] for finding in parts[name]["findings"]] == ["it has begun"]
    assert parts["leaks"]["state"] == PASSED
