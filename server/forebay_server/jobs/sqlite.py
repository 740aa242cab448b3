"""The store in an SQLite file: what one server needs, with nothing to install or to run.

One process has the file, one connection writes it, and the same connection moves its log (WAL) into it: no other ever
touches the two. `synchronous=FULL`: a commit returns when it is on the disk. The file's lock is SQLite's own, held as
long as the connection lives, so the kernel lets go of it however the process ends.

Large bodies are files in a folder beside it (`payloads`).

When the disk is full, nothing of a group happens (`StoreFull`); when the file can't be written or read otherwise, the
connection is given up and opened anew with the next group (`StoreUnavailable`). Both end when their causes do. A disk
that fails may have lost what it had confirmed; if jobs are missing then, the log says so.
"""

import errno
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import apsw
import structlog

from forebay_server.errors import ConfigError, StoreFull, StoreUnavailable
from forebay_server.jobs.failpoints import reach
from forebay_server.jobs.payloads import Payloads
from forebay_server.jobs.sqlite_rows import Rows
from forebay_server.jobs.sqlite_schema import check_owner, migrate
from forebay_server.jobs.store import Backlog, Changed, Operation, Outcome, Purge, Reap, Renew

_log = structlog.get_logger(__name__)

RETRY_FULL: Final = 5.0
"""Seconds after which somebody may have made room."""
_LOCK_PATIENCE: Final = 1000
"""Milliseconds that an earlier process has to let go of the file."""
_MOVE_LOG: Final = 2_000
"""Pages in the log from which it is moved into the file after a group that nobody waits for: housekeeping only."""
_MOVE_LOG_NOW: Final = 16_000
"""Pages (64 MiB) from which it is moved after any group."""
_HOUSEKEEPING: Final = frozenset({Backlog, Purge, Reap, Renew})
_CACHE: Final = -65_536
"""Negative: KiB. The pages that are written again and again: the ends of tables, and the index of the ids."""
_CHECKED: Final = 50_000
"""Pages (200 MiB); a file up to this size is checked when it is opened, which takes less than a second."""
_SLACK: Final = 4
"""Free pages are given back while they are more than one in so many; the others will be used again."""
_GIVEN_BACK: Final = 500
"""Pages that one purge gives back at most: some milliseconds."""
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class SqliteStore:
    """Keeps jobs in an SQLite file.

    `open`, `apply` and `close` may come from different threads, but not at the same time.

    Args:
        path: The file; it and the folder `PATH.payloads` are made if they are not there.
        clock: Seconds since 1970.
        steady: Seconds by a clock that is never set, for the lives of owners: they are all of this process. None: the
            system's, or `clock` if that was given.
        lost: The outcome (a serialized `google.rpc.Status`) of a job whose payload's file is lost. Such a job is FAILED
            when it is claimed, and `changed` is told of it; `Get` gives `Internal` for a job whose outcome's is.
        vfs: The file system that SQLite uses; None: the operating system's.
    """

    name = "sqlite"

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] | None = None,
        steady: Callable[[], float] | None = None,
        lost: bytes = b"",
        vfs: str | None = None,
    ) -> None:
        self._path = path
        self._clock = clock or time.time
        self._steady = steady or clock or time.monotonic
        self._lost = lost
        self._vfs = vfs
        self._payloads = Payloads(path.with_name(f"{path.name}.payloads"))
        self._owners: dict[str, float] = {}
        self._connection: apsw.Connection | None = None
        self._rows: Rows | None = None
        self._log_pages = 0
        self._taken_in = 0
        """The last sequence that was confirmed, as far as this process knows."""
        self._changed: Changed = lambda _: None

    def open(self, changed: Changed) -> None:
        """Opens the file, makes its schema the newest, and clears away what a crash has left. See `Store.open`."""
        self._changed = changed
        self._connect(apsw.SQLITE_OPEN_CREATE)

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Carries out a group in one transaction. See `Store.apply`."""
        connection, rows = self._connected()
        owners = self._owners.copy()
        rows.begin()
        purges = any(type(operation) is Purge for operation in operations)
        try:
            connection.execute("BEGIN IMMEDIATE")
            reach("group.begun")
            outcomes = rows.carry_out(operations, now=self._clock(), instant=self._steady())
            if purges:
                _give_back_pages(connection)
            self._payloads.settle()
            reach("group.applied")
            connection.execute("COMMIT")
        except BaseException as exc:
            self._owners.clear()
            self._owners.update(owners)
            rows.take_back()
            fault = self._fault(connection, exc)
            if fault is exc:
                raise
            raise fault from exc
        self._taken_in = rows.taken_in
        reach("group.committed")
        if rows.damaged:
            self._changed(rows.damaged)
        with suppress(apsw.Error, OSError):  # It is committed; what fails here, the next purge or opening does.
            if purges:
                self._remove_files(rows)
            if self._log_pages >= _MOVE_LOG and (
                self._log_pages >= _MOVE_LOG_NOW or all(type(operation) in _HOUSEKEEPING for operation in operations)
            ):
                self._move_log(connection)
        return outcomes

    def close(self) -> None:
        """Moves the log into the file, and lets go of both."""
        connection, self._connection, self._rows = self._connection, None, None
        if connection is not None:
            try:
                connection.close(True)
            except apsw.Error as exc:
                _log.warning("job_store_closed_badly", reason=str(exc))

    # --- Opening --------------------------------------------------------------------------------------------------

    def _connected(self) -> tuple[apsw.Connection, Rows]:
        if self._connection is None or self._rows is None:
            try:
                self._connect()
            except ConfigError as exc:
                _log.warning("job_store_not_reopened", reason=str(exc))
                raise StoreUnavailable("the job store can't be opened") from exc
        assert self._connection is not None  # noqa: S101  # for the type checker
        assert self._rows is not None  # noqa: S101  # as above
        return self._connection, self._rows

    def _connect(self, create: int = 0) -> None:
        try:
            self._set_up(create)
        except BaseException as exc:
            self.close()
            sentence = self._sentence(exc)
            if sentence:
                raise ConfigError(f"jobs.store: {sentence}") from exc
            if isinstance(exc, (apsw.Error, OSError)):
                raise StoreUnavailable("the job store does not answer") from exc
            raise

    def _set_up(self, create: int) -> None:
        path = self._path
        if not path.parent.is_dir():
            raise ConfigError(f"jobs.store: the folder {path.parent} does not exist")
        if path.exists() and not path.is_file():
            raise ConfigError(f"jobs.store: {path} is not a file")
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE | create, vfs=self._vfs)
        self._connection = connection
        if connection.readonly("main"):  # Before anything is read: that needs a lock, which needs a file to write.
            raise ConfigError(f"jobs.store: {path} can't be written")
        connection.set_busy_timeout(_LOCK_PATIENCE)
        # In this mode the lock stays, and the index of the log is in this process's memory.
        connection.pragma("locking_mode", "exclusive")
        check_owner(connection, path)
        if connection.pragma("page_count") <= _CHECKED:
            found = connection.execute("PRAGMA quick_check(1)").get
            if found != "ok":
                raise apsw.CorruptError(found)
        connection.pragma("auto_vacuum", 2)  # Incremental; for a new file.
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "full")
        connection.pragma("cache_size", _CACHE)
        connection.set_wal_hook(self._logged)  # Instead of SQLite's own, which would move the log inside a commit.
        migrate(connection)
        rows = Rows(connection, self._payloads, self._owners, self._lost)
        rows.load()
        if rows.taken_in < self._taken_in:
            _log.error("acknowledged_jobs_lost", jobs=self._taken_in - rows.taken_in, reason="the file is an older one")
        self._taken_in = rows.taken_in
        try:
            self._payloads.open()
            self._payloads.sweep(rows.bodies.uses)
        except OSError as exc:
            raise ConfigError(f"jobs.store: {exc.filename} can't be used: {exc.strerror}") from exc
        self._rows = rows

    def _sentence(self, exc: BaseException) -> str:
        """What an operator can do about a file that can't be opened; empty: it is not the file's fault."""
        path = self._path
        sentences: tuple[tuple[type[Exception], str], ...] = (
            (apsw.NotADBError, f"{path} is not an SQLite database"),
            (apsw.CorruptError, f"{path} is damaged ({exc}): put a copy in its place, or move it away"),
            (apsw.BusyError, f"{path} is in use by another process"),
            (apsw.ReadOnlyError, f"{path} can't be written"),
            (apsw.FullError, f"there is no room for {path}"),
        )
        if isinstance(exc, apsw.CantOpenError):
            return f"{path} can't be opened: {self._reason()}"
        return next((sentence for kind, sentence in sentences if isinstance(exc, kind)), "")

    def _reason(self) -> str:
        """Why the system does not open the file."""
        try:
            os.close(os.open(self._path, os.O_RDWR))  # No connection has it open, so no lock goes with it.
        except FileNotFoundError:
            return f"the folder {self._path.parent} can't be written"
        except OSError as exc:
            return os.strerror(exc.errno or 0)
        return "its log can't be written"

    # --- Keeping it in order --------------------------------------------------------------------------------------

    def _fault(self, connection: apsw.Connection, exc: BaseException) -> BaseException:
        """Ends a group that failed: the transaction is gone. What to raise instead."""
        full = isinstance(exc, apsw.FullError) or (
            isinstance(exc, (OSError, apsw.IOError))
            and (exc.errno if isinstance(exc, OSError) else connection.system_errno) in _NO_ROOM
        )
        broken = isinstance(exc, (apsw.Error, OSError)) and not full
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if full:
                self._move_log(connection)  # What is in it now can be written over.
        except apsw.Error:
            broken = broken or connection.in_transaction
        if broken:
            _log.warning("job_store_failed", reason=str(exc))
            self.close()
        if full:
            return StoreFull("the disk of the job store is full", retry_after=RETRY_FULL)
        return StoreUnavailable("the job store does not answer") if broken else exc

    def _logged(self, _connection: apsw.Connection, _database: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _move_log(self, connection: apsw.Connection) -> None:
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        self._log_pages = 0

    def _remove_files(self, rows: Rows) -> None:
        bodies = rows.bodies
        while bodies.loose:
            digest = bodies.loose.pop()
            if not bodies.uses(digest):
                reach("purge.files_left")
                self._payloads.remove(digest)


def _give_back_pages(connection: apsw.Connection) -> None:
    free = connection.pragma("freelist_count")
    if free * _SLACK > connection.pragma("page_count"):
        connection.execute(f"PRAGMA incremental_vacuum({min(free, _GIVEN_BACK)})").fetchall()
