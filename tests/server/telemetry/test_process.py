"""Figures of this process, beside what psutil says of it."""

import os
import resource
import threading
import time
from pathlib import Path

import psutil
import pytest

from forebay_server.telemetry import names, process


def figures():
    return {metric: value for metric, _, value in process.samples(1.0)}


def test_they_are_those_of_this_process():
    """Within what changes between two looks."""
    here = psutil.Process()
    found = figures()

    assert found[names.RSS] == pytest.approx(here.memory_info().rss, rel=0.1)
    assert found[names.VIRTUAL] == pytest.approx(here.memory_info().vms, rel=0.1)
    assert found[names.THREADS] == here.num_threads()
    assert found[names.FDS_LIMIT] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert process.started() == pytest.approx(here.create_time(), abs=2.0)
    assert found[names.STARTED] == 1.0, "as it was said once: a clock that is set must not move it"


def test_cpu_time_is_user_and_system():
    """It grows with the work of any thread."""
    before, began = figures()[names.CPU], time.process_time()
    while time.process_time() - began < 0.2:
        sum(range(1000))
    grown = figures()[names.CPU] - before

    assert 0.15 <= grown <= (time.process_time() - began) + 0.05


def test_descriptors_and_threads_are_counted():
    """One more of each is one more."""
    before = figures()
    ending = threading.Event()
    thread = threading.Thread(target=ending.wait)
    thread.start()
    descriptor = os.open("/dev/null", os.O_RDONLY)
    try:
        after = figures()
    finally:
        os.close(descriptor)
        ending.set()
        thread.join()

    assert after[names.FDS] == before[names.FDS] + 1
    assert after[names.THREADS] == before[names.THREADS] + 1


def test_a_name_with_anything_in_it(monkeypatch, tmp_path):
    """The second field of the file holds the program's name, which may have spaces and parentheses."""
    fields = ["S", *(str(number) for number in range(4, 60))]
    (tmp_path / "stat").write_text(f"12 (a ) S 1) {' '.join(fields)}\n")
    (tmp_path / "fd").mkdir()
    monkeypatch.setattr(process, "_SELF", tmp_path)
    found = figures()

    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert found[names.CPU] == pytest.approx((14 + 15) * tick)  # numbered as in proc(5)
    assert (found[names.THREADS], found[names.VIRTUAL]) == (20, 23)
    assert found[names.RSS] == 24 * os.sysconf("SC_PAGE_SIZE")
    assert found[names.FDS] == 0


def test_where_there_is_no_proc(monkeypatch):
    """Nothing is told, and nothing fails."""
    monkeypatch.setattr(process, "_SELF", Path("/nowhere"))
    assert process.samples(1.0) == []
