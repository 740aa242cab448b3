"""Lines through a thread of their own, to real pipes."""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from forebay_server.app import log_writer
from forebay_server.app.log_writer import LineLogger, LineWriter


@pytest.fixture
def pipe():
    """Both ends of a pipe of 4 KiB."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    for end in (reading, writing):
        with suppress(OSError):
            os.close(end)


@pytest.fixture
def make(pipe):
    made = []

    def start():
        writer = LineWriter(pipe[1], lambda lines: f"dropped {lines}")
        writer.start()
        made.append(writer)
        return writer

    yield start
    for writer in made:
        with suppress(OSError):
            os.set_blocking(pipe[0], False)
            while os.read(pipe[0], 65536):
                pass
        writer.close()


def drain(reading, seconds=5.0):
    """All that comes until there is a pause."""
    os.set_blocking(reading, False)
    data = b""
    end = time.monotonic() + seconds
    quiet = time.monotonic() + 0.2
    while time.monotonic() < min(end, quiet):
        try:
            data += os.read(reading, 65536)
            quiet = time.monotonic() + 0.2
        except BlockingIOError:
            time.sleep(0.005)
    return data.decode().splitlines()


def test_lines_are_written_in_order(pipe, make):
    """Each with its end, and before `flush` and `close` return."""
    writer = make()
    logger = LineLogger(writer)
    logger.info("one")
    logger.error("zwei \udcff ☂")

    assert writer.flush()
    assert writer.close()
    assert os.read(pipe[0], 4096).decode().splitlines() == ["one", "zwei \\udcff ☂"]


def test_a_pipe_that_nobody_reads_holds_nobody_up(pipe, make, monkeypatch):
    """Lines wait, those beyond the limit are dropped, and a line tells how many once somebody reads again."""
    monkeypatch.setattr(log_writer, "MOST_LINES", 1000)
    writer = make()
    began = time.monotonic()
    for number in range(20_000):
        writer.write(f"line {number:08}")
    took = time.monotonic() - began

    assert took < 1.0
    assert not writer.flush(0.05)
    assert 17_000 < writer.dropped < 20_000
    lines = drain(pipe[0])
    assert lines[0] == "line 00000000"
    told = [int(line.removeprefix("dropped ")) for line in lines if line.startswith("dropped ")]
    assert sum(told) == writer.dropped
    assert len(lines) - len(told) + writer.dropped == 20_000


def test_bytes_that_wait_are_bounded(make, monkeypatch):
    """A few huge lines are as bad as many small ones."""
    monkeypatch.setattr(log_writer, "MOST_BYTES", 100_000)
    writer = make()
    for _ in range(20):
        writer.write("x" * 20_000)

    assert writer.dropped >= 15


def test_a_pipe_whose_reader_is_gone(pipe, make):
    """Lines are lost and counted; nobody fails."""
    writer = make()
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), pipe[0])  # not closed: the number would be another file's before the fixtures end
    writer.write("nobody hears it")

    assert writer.flush()
    assert writer.dropped == 1
    assert writer.close()


def test_closing_does_not_wait_for_a_stuck_pipe(make):
    """It gives up after its patience."""
    writer = make()
    for number in range(1000):
        writer.write(f"line {number:08}")

    assert not writer.close(0.1)
