"""Hears from other servers that jobs have changed.

A notification is sent after the commit that it tells of, and may be lost with the process that was about to send it. So
everyone also looks once a second, and a lost one costs no more than that.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg
import structlog

from forebay_server.errors import StoreUnavailable
from forebay_server.jobs import postgres_connection
from forebay_server.jobs.postgres_watch import Watch
from forebay_server.jobs.store import Changed

RECHECK: Final = 1.0
"""Seconds between looks without being told."""
COARSE: Final = 0.02
"""Seconds between two calls that may make everyone look."""
ANY: Final = "*"
"""What a notification begins with that tells of more than its ids: anything may have changed."""
_MOST: Final = 7999
"""Bytes in one notification."""
_NOTIFICATIONS: Final = 4
"""Of one group; if its ids need more, it tells of no ids."""

_log = structlog.get_logger(__name__)


def payloads(ids: Sequence[str], *, more: bool) -> list[str]:
    """What is sent: these jobs have changed, and perhaps `more`."""
    sent: list[str] = [ANY] if more else []
    part: list[str] = []
    size = 0
    for each in ids:
        if size + len(each) + 1 > _MOST:
            sent.append(",".join(part))
            part, size = [], 0
        part.append(each)
        size += len(each) + 1
    if part:
        sent.append(",".join(part))
    return sent if len(sent) <= _NOTIFICATIONS else [ANY]


class Listener:
    """A thread with a connection of its own. `own`: whether a process at the server serves the store's own groups."""

    def __init__(self, url: str, channel: str, changed: Changed, *, own: Callable[[int], bool], watch: Watch) -> None:
        self._url = url
        self._channel = channel
        self._changed = changed
        self._own = own
        self._watch = watch
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="forebay-store-listener", daemon=True)

    def start(self) -> None:
        """Begins to listen."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        connection = self._connection
        if connection:
            self._watch.cut(connection)
        self._thread.join(10.0)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                with postgres_connection.connect(self._url, self._watch) as connection:
                    self._connection = connection
                    with self._watch.over(connection):
                        connection.execute(f'LISTEN "{self._channel}"')
                    self._listen(connection)
            except (psycopg.Error, OSError, StoreUnavailable):
                pass  # The store itself says so in the log; this thread looks once a second, and tries again.
            except Exception as error:  # noqa: BLE001  # a fault of ours must not end the thread
                # Without its traceback, which would have the URL with its password.
                _log.error("job_store_listener_failed", error=type(error).__name__, said=str(error))
            finally:
                self._connection = None
            if not self._closing.is_set():
                self._tell(set(), more=True)
                self._closing.wait(RECHECK)

    def _listen(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._tell(set(), more=True)  # What happened before it listened.
        looked = time.monotonic()
        while not self._closing.is_set():
            ids: set[str] = set()
            more = False
            left = max(0.0, looked + RECHECK - time.monotonic())
            # Ends with the first packet, which may have many.
            for notification in connection.notifies(timeout=left, stop_after=1):
                if self._own(notification.pid):
                    continue
                if notification.payload == ANY:
                    more = True
                else:
                    ids.update(notification.payload.split(","))
            more = more or time.monotonic() >= looked + RECHECK
            if more:
                # Those who look take a while: what came meanwhile is one look more, not one each.
                self._closing.wait(max(0.0, looked + COARSE - time.monotonic()))
                looked = time.monotonic()
            if ids or more:
                self._tell(ids, more=more)

    def _tell(self, ids: set[str], *, more: bool) -> None:
        with contextlib.suppress(Exception):  # Whoever hears it is answerable for it.
            if ids:
                self._changed(ids)
            if more:
                self._changed(())
