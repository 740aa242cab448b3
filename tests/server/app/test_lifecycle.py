"""What the main thread of `forebay serve` waits for. Signals of whole processes are in tests/e2e/test_drain.py."""

import signal
import threading
import time

import pytest

from forebay_server.app.lifecycle import Stop


@pytest.fixture
def stop():
    before = signal.getsignal(signal.SIGUSR1)
    made = Stop()
    yield made
    made.close()
    signal.signal(signal.SIGUSR1, before)


def test_another_thread_ends_the_wait(stop):
    """And once said, it is said."""
    threading.Timer(0.05, stop.set).start()
    stop.wait()
    stop.wait()


def test_a_signal_that_another_thread_gets_ends_the_wait(stop):
    """Python handles signals in the main thread, and the kernel does not always give them to it."""
    signal.signal(signal.SIGUSR1, lambda _number, _frame: stop.set())
    threading.Timer(0.05, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)).start()
    stop.wait()


def test_signals_that_are_not_the_end_do_not_end_it(stop):
    """However many there are."""
    heard = []
    signal.signal(signal.SIGUSR1, lambda number, _frame: heard.append(number))

    def send():
        for _ in range(100):
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            time.sleep(0.001)
        stop.set()

    thread = threading.Thread(target=send)
    thread.start()
    stop.wait()
    thread.join()

    assert heard


def test_a_late_word_harms_nobody():
    """A thread that outlives the server may still say that it is to end."""
    made = Stop()
    made.close()
    made.set()
