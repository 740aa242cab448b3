"""Writes log lines in a thread of its own, so that nobody who logs waits for whoever reads.

A pipe that nobody empties blocks its writer for ever; the dispatcher must not be that writer. Lines wait in a queue of
at most `MOST_LINES` and `MOST_BYTES`; what finds it full is dropped, and a line at its place says how many there were.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

MOST_LINES: Final = 10_000
MOST_BYTES: Final = 8 << 20
IDLE: Final = 1.0  # seconds without a line
CLOSE_PATIENCE: Final = 1.0  # seconds for lines that wait when the process ends


class LineWriter:
    """Takes lines from any thread; has one that writes them.

    Args:
        descriptor: Where to. Not through a file object: others who use that would wait for its lock.
        dropped: Makes the line that says how many were dropped.
    """

    def __init__(self, descriptor: int, dropped: Callable[[int], str]) -> None:
        self._descriptor = descriptor
        self._say_dropped = dropped
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._closing = False
        self._untold = 0
        """Dropped lines that no line has told yet."""
        self._ahead = 0
        """Lines in the queue that came before the first of them."""
        self._thread = threading.Thread(target=self._run, name="forebay-log", daemon=True)
        self.on_idle: Callable[[bool], None] = lambda _at_once: None
        """Called by the thread, with False, when there was nothing to write for a while; by `close`, with True."""
        self.dropped = 0
        """Lines that were dropped."""

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def write(self, line: str) -> None:
        """Takes a line, without its end. Never blocks."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._lock:
            if len(self._lines) >= MOST_LINES or self._bytes + len(data) > MOST_BYTES:
                if not self._untold:
                    self._ahead = len(self._lines)
                self.dropped += 1
                self._untold += 1
                return
            self._lines.append(data)
            self._bytes += len(data)
            self._idle.clear()
        self._woken.set()

    def flush(self, patience: float = CLOSE_PATIENCE) -> bool:
        """Waits until all lines are written, or for so many seconds; whether they are."""
        return self._idle.wait(patience)

    def close(self, patience: float = CLOSE_PATIENCE) -> bool:
        """Ends the thread when all lines are written; waits for so many seconds. Whether it has ended."""
        self.on_idle(True)
        self._closing = True
        self._woken.set()
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            data = self._take()
            if data:
                try:
                    self._write(data)
                except OSError:  # nobody is there any more to read it, nor to hear of it
                    with self._lock:
                        self.dropped += 1
            elif self._closing:
                return
            elif not self._woken.wait(IDLE):
                self.on_idle(False)

    def _take(self) -> bytes:
        """The next line, or a word about those that were dropped at its place; nothing if there is none."""
        with self._lock:
            self._woken.clear()
            if self._untold and not self._ahead:
                untold, self._untold = self._untold, 0
                return self._say_dropped(untold).encode() + b"\n"
            if self._lines:
                data = self._lines.popleft()
                self._bytes -= len(data)
                self._ahead = max(0, self._ahead - 1)
                return data
            self._idle.set()
            return b""

    def _write(self, data: bytes) -> None:
        while data:
            try:
                written = os.write(self._descriptor, data)
            except BlockingIOError:  # somebody has made it so; a thread of its own may wait
                time.sleep(0.01)
                continue
            data = data[written:]


class LineLogger:
    """What structlog calls with a line that is ready."""

    def __init__(self, writer: LineWriter) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = self.msg = writer.write
