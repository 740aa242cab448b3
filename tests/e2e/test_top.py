"""`forebay top` in a real terminal, watching a real server under traffic."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import numpy as np
import pyte
import pytest

from forebay_client import Client

COLUMNS, LINES = 120, 32
MODEL = ("synthetic:base_ms=2", "--name", "watched", "--max-batch-size", "8")


class Terminal:
    """A terminal with a command in it, and what is to be seen there."""

    def __init__(self, *arguments, columns=COLUMNS, lines=LINES):
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._own, theirs = pty.openpty()
        self._resize(columns, lines)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("FOREBAY_")}
        for variable in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(variable, None)
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "forebay_server", "top", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,
        )
        os.close(theirs)

    def _resize(self, columns, lines):
        fcntl.ioctl(self._own, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns, lines):
        """The user drags the window's corner."""
        self.screen.resize(lines, columns)
        self._resize(columns, lines)

    def look(self, seconds=0.05):
        """Takes in what is drawn within some time; the lines of the screen."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._own], [], [], left)[0]:
                try:
                    data = os.read(self._own, 65536)
                except OSError:  # it has ended
                    break
                self.raw += data
                self._stream.feed(data)
        return [line.rstrip() for line in self.screen.display]

    def until(self, condition, what, patience=30.0):
        """Looks until the lines are as wanted."""
        end = time.monotonic() + patience
        while not condition(lines := self.look()):
            assert time.monotonic() < end, f"not seen: {what}\n" + "\n".join(lines)
            assert self.popen.poll() is None, "it has ended:\n" + "\n".join(lines)
        return lines

    def interrupt(self):
        """Ctrl-C; the exit code."""
        self.popen.send_signal(signal.SIGINT)
        end = time.monotonic() + 10
        while self.popen.poll() is None and time.monotonic() < end:
            self.look()
        return self.popen.wait(1)

    def close(self):
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        os.close(self._own)


@pytest.fixture
def terminal():
    made = []

    def make(*arguments, **size):
        made.append(Terminal(*arguments, **size))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def traffic():
    """Callers that send rows to a server until the test ends, and bear its absence."""
    ending = threading.Event()
    threads = []

    def start(address, callers=4):
        def send():
            with Client(address) as client:
                while not ending.is_set():
                    try:
                        client.predict("watched", {"x": np.ones((2, 4), np.float32)}, deadline=1.0)
                    except Exception:  # noqa: BLE001  # the server may be away
                        ending.wait(0.05)

        threads.extend(threading.Thread(target=send) for _ in range(callers))
        for thread in threads:
            thread.start()

    yield start
    ending.set()
    for thread in threads:
        thread.join()


def figure(lines, name):
    """The number after a name in the line of totals."""
    found = re.search(rf"{re.escape(name)} ([\d,.]+)", lines[1])
    return float(found[1].replace(",", "")) if found else None


def test_a_server_under_traffic_is_seen_to_move(process, terminal, traffic, front_end):
    """Rates, times, batches, why they started, the engine's share, jobs: all of it on the screen, and true."""
    server = process(*MODEL, "--jobs", "jobs.db").ready()
    address = server.addresses["public"]
    traffic(address)
    top = terminal("--address", address, "--interval", "0.5")
    lines = top.until(
        lambda lines: (figure(lines, "req/s") or 0) > 20 and "started because" in "\n".join(lines), "rates"
    )
    before = _served(address)
    top.until(lambda now: now[0] != lines[0], "the uptime moves")
    lines = top.look(2.0)
    served = (_served(address) - before) / 2.0

    assert re.fullmatch(rf"forebay top  {re.escape(address)}  up 00:00:\d\d  \S+ {re.escape(front_end)}", lines[0])
    assert 0.3 * served < figure(lines, "req/s") < 3 * served
    assert figure(lines, "fail/s") == 0
    assert 2.0 <= figure(lines, "p50") <= figure(lines, "p99") < 1000
    (row,) = [line for line in lines if line.startswith("watched:1  ready")]
    assert re.search(r" \d+%$", row)
    assert int(re.search(r"(\d+)%$", row)[1]) > 5
    (title,) = [place for place, line in enumerate(lines) if line.startswith("watched:1  synthetic, 1/1 instances")]
    assert "rows  batches" in lines[title + 1]
    assert re.match(r"\s+(2|3-4|5-8)  █+ \d+", lines[title + 2])
    assert "idle" in "\n".join(lines[title + 2 : title + 6])
    assert any(line.startswith("jobs  sqlite  pending 0  running 0") for line in lines)


def _served(address):
    with Client(address) as client:
        (figures,) = client.statistics("watched")
    return sum(outcome.requests for outcome in figures.outcomes if outcome.code == "OK")


def test_a_server_that_goes_away_and_comes_back(process, terminal):
    """NO ANSWER with what was last known, then RESTARTED; the terminal is left as it was found."""
    server = process(*MODEL).ready()
    address = server.addresses["public"]
    top = terminal("--address", address, "--interval", "0.2")
    top.until(lambda lines: figure(lines, "req/s") is not None, "the server")
    server.popen.kill()
    lines = top.until(lambda lines: "NO ANSWER for" in lines[0], "the outage")
    assert any(line.startswith("watched:1  ready") for line in lines)

    process(*MODEL, "--listen", address, listen=False).ready()
    top.until(lambda lines: "RESTARTED" in lines[0], "the restart")

    assert top.interrupt() == 0
    assert top.raw.rstrip().endswith(b"\x1b[?1049l\x1b[?25h") or b"\x1b[?1049l" in top.raw[-40:]
    assert b"Traceback" not in top.raw


@pytest.mark.parametrize("front_end", ["grpc.aio"], indirect=True)
def test_a_terminal_that_becomes_narrow(process, terminal):
    """What matters stays, at the new width, without waiting for the next answer."""
    address = process(*MODEL).ready().addresses["public"]
    top = terminal("--address", address, "--interval", "3")
    lines = top.until(lambda lines: any("ROWS/BATCH" in line for line in lines), "the wide table")
    assert any(line.endswith("BUSY") for line in lines)

    top.resize(48, 10)
    top.until(lambda lines: any(line.startswith("MODEL") and "ROWS/BATCH" not in line for line in lines), "narrow", 2.5)
    lines = top.look()
    (title,) = [line for line in lines if line.startswith("MODEL")]
    assert title.split()[:2] == ["MODEL", "REQ/S"]


def test_nobody_at_the_address(terminal):
    """It says so, and waits."""
    top = terminal("--address", "127.0.0.1:1", "--interval", "0.2")
    lines = top.until(lambda lines: "NO ANSWER for 1 s" in lines[0], "the outage")

    assert lines[0].startswith("forebay top  127.0.0.1:1  NO ANSWER for 1 s: ")
    assert top.interrupt() == 0


@pytest.mark.parametrize("front_end", ["grpc.aio"], indirect=True)
def test_scripts_get_one_interval(process):
    """`--once --json` is a line of JSON with the figures of one interval; without a server it fails in a sentence."""
    address = process(*MODEL).ready().addresses["public"]
    command = [sys.executable, "-m", "forebay_server", "top", "--once", "--interval", "0.3", "--address"]
    with Client(address) as client:
        client.predict("watched", {"x": np.ones((3, 4), np.float32)})
    ended = subprocess.run([*command, address, "--json"], capture_output=True, text=True, timeout=30, check=True)
    found = json.loads(ended.stdout)
    text = subprocess.run([*command, address], capture_output=True, text=True, timeout=30, check=True)
    nobody = subprocess.run([*command, "127.0.0.1:1"], capture_output=True, text=True, timeout=30, check=False)

    assert (found["address"], found["ok_rate"], found["lost_for"]) == (address, 0.0, None)
    assert (found["models"][0]["model"], found["models"][0]["state"]) == ("watched", "ready")
    assert "watched:1  ready" in text.stdout
    assert "\x1b" not in text.stdout
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert nobody.stderr.startswith("forebay: ")


def test_a_pipe_is_no_terminal():
    """Without `--once` or `--json` there is nothing to draw on."""
    ended = subprocess.run(
        [sys.executable, "-m", "forebay_server", "top"], capture_output=True, text=True, timeout=30, check=False
    )

    assert (ended.returncode, ended.stderr.splitlines()) == (
        2,
        ["forebay: stdout is no terminal; use --once or --json (see forebay top --help)"],
    )
