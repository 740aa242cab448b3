"""Real faults: on the data path, and with a server around it. Each in a process of its own; the next one must work."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.gpu.engine import ENDLESS, ILLEGAL, Work
from bench.gpu.outcome import Notes
from bench.gpu.serving import Served, serve
from forebay_client import ForebayError, Unavailable
from forebay_server.engines.gpu import cuda

PATIENCE = 90.0  # seconds for a process to come so far
HANGS = 3.0  # seconds without an answer that count as none
EXIT_DEVICE = 72


def run(notes: Notes) -> None:
    """All of them, on the first device."""
    device = cuda.open_device(0)  # says what is missing before others have to
    Work(device).close()
    device.close()
    _memory(notes)
    _lost(notes)
    _endless(notes)
    _served_out_of_memory(notes)
    _served_lost(notes)
    _served_endless(notes)


class _Child:
    """A process that tells what happens to it, line by line."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.lines: dict[str, dict[str, Any]] = {}
        self._said = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._ended = False
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                told = json.loads(line)
                what = told["what"]
            except (ValueError, KeyError, TypeError):  # a line of some library
                print(line, end="")
                continue
            with self._said:
                self.lines[what] = told
                self._said.notify_all()
        with self._said:
            self._ended = True
            self._said.notify_all()

    def wait(self, what: str, seconds: float = PATIENCE) -> dict[str, Any] | None:
        """What it says of something; None if it does not."""
        with self._said:
            self._said.wait_for(lambda: what in self.lines or self._ended, seconds)
            return self.lines.get(what)

    def end(self) -> dict[str, dict[str, Any]]:
        """All that it has said, at its end."""
        with self._said:
            self._said.wait_for(lambda: self._ended, PATIENCE)
        return self.lines


@contextlib.contextmanager
def _child(kind: str) -> Iterator[_Child]:
    process = subprocess.Popen([sys.executable, "-m", "bench.gpu.faulty", kind], stdout=subprocess.PIPE, text=True)
    try:
        yield _Child(process)
    finally:
        process.kill()
        process.wait()


def _good(told: dict[str, Any] | None) -> bool:
    return told is not None and bool(told.get("good"))


def _memory(notes: Notes) -> None:
    with _child("memory") as child:
        said = child.end()
    notes.check(
        "out of memory: a batch that is too large says so", "large" in said, said.get("large", {}).get("error", "")
    )
    notes.check(
        "out of memory: small batches go on", _good(said.get("small before")) and _good(said.get("small after"))
    )
    notes.check("out of memory: with memory again the large batch runs", _good(said.get("large after")))


def _lost(notes: Notes) -> None:
    with _child("lost") as child:
        said = child.end()
    first, second = said.get("first", {}), said.get("second", {})
    notes.check(
        "illegal address: the batch's instance is dead", first.get("device") == "cuda:0", first.get("error", "")
    )
    notes.check("illegal address: so is every other one on the device", second.get("device") == "cuda:0")
    notes.check("illegal address: nobody opens the device again in this process", "again" in said)
    notes.check("illegal address: what is left can be closed", "closed" in said)
    _works(notes, "illegal address")


def _endless(notes: Notes) -> None:
    with _child("endless") as child:
        notes.check("hang: the batch could be issued", child.wait("issued") is not None)
        notes.check("hang: it does not come back", child.wait("collected", HANGS) is None)
    _works(notes, "hang")


def _works(notes: Notes, after: str) -> None:
    with _child("healthy") as child:
        notes.check(f"{after}: a new process can use the device", _good(child.end().get("works")))


def _rows(value: float, rows: int = 1) -> np.typing.NDArray[np.float32]:
    return np.full((rows, 8), value, np.float32)


def _right(served: Served, value: float, rows: int = 1) -> bool:
    answered = served.client.predict("check", _rows(value, rows), deadline=20.0).array
    return bool(np.array_equal(answered, 2 * _rows(value, rows)))


def _served_out_of_memory(notes: Notes) -> None:
    with serve(
        "check:width=262144,graphs=0", "--max-batch-size", "64", "--set", "models.0.engine.device_memory_mib=24"
    ) as served:
        rows = np.ones((64, 262_144), np.float32)
        answered = [served.client.predict("check", rows[:count], deadline=60.0).array for count in (1, 8, 1)]
        notes.check(
            "served, a budget too small for the largest batches: they run in smaller ones",
            all(bool((array == 2).all()) for array in answered),
        )


def _served_lost(notes: Notes) -> None:
    with serve("check:width=8") as served:
        notes.check("served, illegal address: it works before", _right(served, 1))
        try:
            served.client.predict("check", _rows(ILLEGAL), deadline=20.0)
        except Unavailable as error:
            notes.check("served, illegal address: the caller gets UNAVAILABLE", good=True, detail=str(error))
        except ForebayError as error:
            notes.check("served, illegal address: the caller gets UNAVAILABLE", good=False, detail=str(error))
        else:
            notes.check("served, illegal address: the caller gets UNAVAILABLE", good=False, detail="it got an answer")
        status = served.wait(PATIENCE)
        notes.check(
            f"served, illegal address: the process leaves with {EXIT_DEVICE}", status == EXIT_DEVICE, str(status)
        )
    with serve("check:width=8") as served:
        notes.check("served, illegal address: the next process works", _right(served, 2))


def _served_endless(notes: Notes) -> None:
    with serve("check:width=8", "--set", "models.0.engine.max_execution_s=3") as served:
        notes.check("served, hang: it works before", _right(served, 1) and served.healthy("check"))
        began = time.monotonic()
        try:
            served.client.predict("check", _rows(ENDLESS), deadline=60.0)
        except ForebayError as error:
            seconds = time.monotonic() - began
            notes.check("served, hang: the watchdog tells the caller", isinstance(error, Unavailable), str(error))
            notes.figure("served, hang: found after", seconds, "s", most=30.0)
        else:
            notes.check("served, hang: the watchdog tells the caller", good=False, detail="it got an answer")
        notes.check("served, hang: the model's health turns", not served.healthy("check"))
    with serve("check:width=8") as served:
        notes.check("served, hang: the next process works", _right(served, 2))
