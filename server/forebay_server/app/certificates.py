"""Has the certificates read again: when their files have changed, and when somebody asks.

Files are looked at from time to time rather than watched: secrets that a platform mounts are links to folders that are
replaced as a whole, which watches of files don't see.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog

from forebay_server.app.wiring import configured
from forebay_server.background import can_wait
from forebay_server.config.tree import ServerConfig
from forebay_server.errors import ConfigError

_END: Final = "end"
_RENEW: Final = "renew"

_log = structlog.get_logger(__name__)


class Certificates:
    """A thread that looks after the files of TLS; none without such files.

    Args:
        files: Their paths.
        renew: Reads all of them again; new connections use them. ConfigError: they can't be used, the old ones stay.
        interval: Seconds between looks; 0: only when asked.
    """

    def __init__(self, files: Sequence[str], renew: Callable[[], None], interval: float) -> None:
        self._files = tuple(files)
        self._renew = renew
        self._interval = interval
        self._seen: list[tuple[int, ...]] = []
        self._asked: queue.SimpleQueue[str] = queue.SimpleQueue()  # may be put into by handlers of signals
        self._thread = threading.Thread(target=self._run, name="forebay-certificates", daemon=True)

    def look(self) -> bool:
        """Whether the files are others than at the last look."""
        before, self._seen = self._seen, [_identity(file) for file in self._files]
        return self._seen != before

    def start(self) -> None:
        """Starts the thread. The files as they are in use were looked at."""
        if self._files:
            self._thread.start()

    def ask(self) -> None:
        """Has the files read again, soon. From any thread, and from handlers of signals."""
        self._asked.put(_RENEW)

    def close(self) -> None:
        """Ends the thread."""
        self._asked.put(_END)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        can_wait()
        while True:
            try:
                asked = self._asked.get(timeout=self._interval or None)
            except queue.Empty:
                asked = ""
            if asked == _END:
                return
            if self.look() or asked:
                self._read()

    def _read(self) -> None:
        try:
            self._renew()
        except ConfigError as error:
            _log.error("certificates_not_renewed", error=str(error))
        else:
            _log.info("certificates_renewed")


def files_of(server: ServerConfig) -> list[str]:
    """The files of the TLS of all exposures."""
    found: list[str] = []
    for exposure in configured(server).values():
        if (tls := exposure.tls) is not None:
            found += [file for file in (tls.certificate, tls.key, tls.client_ca) if file]
    return found


def _identity(file: str) -> tuple[int, ...]:
    """What changes if a file, or what it is a link to, is replaced or written; empty if it is not there."""
    try:
        found = Path(file).stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
