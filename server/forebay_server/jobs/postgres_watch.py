"""Cuts connections that hang.

A server that is frozen keeps its connections open, and its kernel answers for it, so no limit of the server or of TCP
ends the wait. This does: a thread that shuts down the socket of whoever has waited for too long, and who then gets an
error.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import psycopg

LOOKS: Final = 10
"""In the time that is allowed."""


class Watch:
    """A thread with an eye on waits that take longer than `patience` seconds."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._lock = threading.Lock()
        """Held to cut a connection, so that nobody closes it at that moment and its number becomes another file's."""
        self._waits: dict[psycopg.Connection[Any], float] = {}
        """When each began; monotonic."""
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to look, with a new thread each time."""
        self._closing.clear()
        self._thread = threading.Thread(target=self._run, name="forebay-store-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()  # It never waits for anybody for long.
            self._thread = None

    @contextlib.contextmanager
    def over(self, connection: psycopg.Connection[Any]) -> Iterator[None]:
        """Watches over what is done with a connection, which may be closed only after that."""
        with self._lock:
            self._waits[connection] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                del self._waits[connection]

    def cut(self, connection: psycopg.Connection[Any]) -> None:
        """Ends a connection that another thread waits on; it gets an error."""
        with self._lock:
            _shut_down(connection)

    def _run(self) -> None:
        while not self._closing.wait(self.patience / LOOKS):
            with self._lock:
                late = time.monotonic() - self.patience
                for connection, since in self._waits.items():
                    if since < late:
                        _shut_down(connection)


def _shut_down(connection: psycopg.Connection[Any]) -> None:
    # Whatever is wrong with it, it is not in use then.
    with contextlib.suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as copy:
        copy.shutdown(socket.SHUT_RDWR)
