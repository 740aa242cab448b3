"""Threads that can wait."""

import os
import sys
import threading

import pytest

from forebay_server.background import STEPS, can_wait


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priorities of their own")
def test_one_thread_waits_and_no_other():
    """Its nice value goes up, to 19 at most; the process's stays."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    found = []

    def work():
        for steps in (3, STEPS, 19):
            can_wait(steps)
            found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [min(19, before + steps) for steps in (3, 3 + STEPS, 19)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
