"""What the process of `forebay serve` is given, and waits for. Its signals are in tests/e2e/test_drain.py."""

import json
import signal
import subprocess
import sys
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


LIMITED = """
import resource, sys
from forebay_server.app.lifecycle import allow_files
from forebay_server.config.tree import Config, ExposureConfig, LimitsConfig, ServerConfig

soft, hard, connections = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
server = ServerConfig(probe=ExposureConfig(address="127.0.0.1:0"))
allow_files(Config(server=server, limits=LimitsConfig(max_connections=connections)))
print([resource.getrlimit(resource.RLIMIT_NOFILE)], flush=True)
"""


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "found", "warned"),
    [
        (256, 8192, 1000, 2512, False),  # 1,000 for each of two exposures
        (256, 2048, 1000, 2048, False),
        (256, 1024, 1000, 1024, True),
        (4096, 8192, 100, 4096, False),
    ],
)
def test_as_many_files_as_connections_may_need(soft, hard, connections, found, warned):
    """No more than the hard limit, never less than before; a word if that is too few for one exposure."""
    command = [sys.executable, "-c", LIMITED, str(soft), str(hard), str(connections)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    *log, last = ended.stdout.splitlines()

    assert json.loads(last.replace("(", "[").replace(")", "]")) == [[found, hard]]
    assert any("few_open_files" in line for line in log) == warned
