"""Threads that go first, and threads that can wait."""

import ctypes
import os
import struct
import sys
import threading

import pytest

from forebay_server.background import SHORT, STEPS, answering, can_wait

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priorities of their own")

GET_ATTRIBUTES = {"x86_64": 315, "aarch64": 275}


def turn():
    """Nanoseconds of the calling thread's turns; 0: the kernel does not say."""
    attributes = ctypes.create_string_buffer(48)
    number = GET_ATTRIBUTES.get(os.uname().machine)
    if number is None or ctypes.CDLL(None).syscall(number, 0, attributes, len(attributes), 0):
        return 0
    return struct.unpack("=IIQiIQQQ", attributes.raw)[5]


def in_thread(work):
    """Starts a thread and waits for it."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_one_thread_waits_and_no_other():
    """Its nice value goes up, to 19 at most; the process's stays."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    found = []

    def work():
        for steps in (3, STEPS, 19):
            can_wait(steps)
            found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    in_thread(work)
    assert found == [min(19, before + steps) for steps in (3, 3 + STEPS, 19)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_threads_that_answer_have_short_turns():
    """Those that are started meanwhile, and what they start; not one that can wait, nor who started them."""
    usual = turn()
    if not usual:
        pytest.skip("this kernel's threads have no turns of their own")
    found = []

    def waits():
        can_wait()
        found.append(turn())

    def work():
        found.append(turn())
        in_thread(waits)

    with answering():
        in_thread(work)
    in_thread(work)
    assert found == [SHORT, usual, usual, usual]
    assert turn() == usual
