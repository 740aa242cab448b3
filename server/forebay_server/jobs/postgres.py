"""Jobs in a PostgreSQL database that many servers share.

A group of operations is one transaction in two round trips: everything, then the commit. What is committed is on the
server's disk (`synchronous_commit` is set on each connection, and verified). Claims skip jobs that another server is
about to claim (`FOR UPDATE SKIP LOCKED`); all times are the database's. Others are told after the commit by NOTIFY.

**A database that forgets.** What was acknowledged must stay. But a database can be emptied, replaced, restored from a
backup, or failed over to a replica that lagged behind. Each store object writes the number of its last group that
changed something in a row of its own, in the same transaction, and looks at it at the beginning of each group, together
with the random epoch of the database and the keystone of its table of jobs. If any is missing, is another, or is behind
what was acknowledged to this object, the database has lost jobs. Then the store serves nothing more and says so in the
log, until an operator has restarted the server: a new object takes the database for what it is.

What happens when the connection is lost: before the commit was sent nothing has happened, and the group is done again
on a new connection; afterwards it is not known (`StoreUnavailable`).

No connection pooler that shares sessions between clients (PgBouncer's transaction mode) may stand between: statements
are prepared, and notifications belong to a session.
"""

import contextlib
import random
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg
import structlog

from forebay_server.errors import ConfigError, StoreUnavailable
from forebay_server.jobs import postgres_connection
from forebay_server.jobs import postgres_statements as sql
from forebay_server.jobs.failpoints import reach
from forebay_server.jobs.postgres_connection import refused, translated
from forebay_server.jobs.postgres_groups import Disturbed, Group, Take
from forebay_server.jobs.postgres_listener import Listener, payloads
from forebay_server.jobs.postgres_schema import MIGRATIONS, migrate
from forebay_server.jobs.postgres_watch import Watch
from forebay_server.jobs.store import Changed, Operation, Outcome, Purge

PATIENCE: Final = 15.0
"""Seconds for a group, after which its connection is cut: the server may be frozen, so that its own limits fail."""
TRIES: Final = 5
"""Times that a group is done again which is known not to have happened."""
FORGET: Final = 30 * 86_400.0
"""Seconds for which the names of owners and processes are kept that were not heard of."""
FORGET_EVERY: Final = 3600.0
"""Seconds between two looks for such names."""
LOST: Final = "the job store has lost jobs, and serves nothing until it was looked after"

_log = structlog.get_logger(__name__)


class PostgresStore:
    """Keeps jobs in the database of a URL. `clock`: seconds since 1970, for tests; None: the database's clock."""

    name = "postgresql"

    def __init__(self, url: str, *, clock: Callable[[], float] | None = None, patience: float = PATIENCE) -> None:
        self._url = url
        self._clock = clock
        self._watch = Watch(patience)
        self._process = ""
        self._epoch = ""
        self._channel = ""
        self._groups = 0
        """How many of this object's groups changed something, those of which that is not known included."""
        self._acknowledged = 0
        """The same, without these."""
        self._lost = ""
        """What shows that the database has forgotten something."""
        self._ailing = False
        """Whether the last group failed."""
        self._warned = False
        """Whether the server has warned since this was set to False."""
        self._forgets = 0.0
        """When old names are deleted again; monotonic."""
        self._pid = 0
        """The process that serves this object at the server."""
        self._listener: Listener | None = None
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    # --- Life -----------------------------------------------------------------------------------------------------

    def open(self, changed: Changed) -> None:
        """Connects, brings the schema up to date, and begins to listen.

        Raises:
            ConfigError: It can't be used.
            StoreUnavailable: It does not answer now.
        """
        postgres_connection.check(self._url)
        self._watch.start()
        try:
            self._prepare()
        except psycopg.Error as error:
            self.close()
            place = postgres_connection.place(self._url)
            # Not `from error`: libpq's text may have parts of the URL.
            raise (refused(error, self._url) or StoreUnavailable(f"the job store, {place}, does not answer")) from None
        except BaseException:
            self.close()
            raise
        self._listener = Listener(self._url, self._channel, changed, own=self._own, watch=self._watch)
        self._listener.start()

    def _prepare(self) -> None:
        connection, _ = self._connected()
        with self._watch.over(connection):
            self._bring_up(connection)

    def _bring_up(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        server = connection.info.server_version
        if server < postgres_connection.OLDEST:
            raise ConfigError(f"the job store needs PostgreSQL 14 or newer, and this is {server // 10_000}")
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise ConfigError(f"the job store needs a database with the encoding UTF8, and this has {encoding}")
        migrate(connection)
        connection.execute("SELECT FROM forebay_jobs, forebay_owners LIMIT 0")  # `INSERT` below looks at the others.
        if _one(connection, "SELECT current_setting('fsync')") != "on":
            _log.warning("job_store_not_durable", reason="the PostgreSQL server runs with fsync = off")
        self._epoch = _one(connection, "SELECT epoch FROM forebay_store")
        # Of the database and the schema, so that strangers in the same database do not wake each other.
        self._channel = f"forebay_{self._epoch}"
        # Each life of this object counts its own groups.
        self._process, self._groups, self._acknowledged = secrets.token_hex(16), 0, 0
        connection.execute(
            "INSERT INTO forebay_processes (process, groups, seen)"
            " VALUES (%s, 0, extract(epoch FROM transaction_timestamp()))",
            [self._process],
        )

    def close(self) -> None:
        """Lets go of the connections. What was told of owners stays."""
        if self._listener:
            self._listener.close()
            self._listener = None
        self._drop()
        self._watch.close()

    # --- Groups ---------------------------------------------------------------------------------------------------

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Carries out a group of operations in one transaction, which is durable at the return.

        Raises:
            StoreFull: There is no room, and nothing has happened.
            StoreUnavailable: The store does not answer, or has forgotten jobs; it is not known whether the group
                happened.
        """
        try:
            outcomes = self._apply(operations)
        except psycopg.Error as error:
            # What is wrong may be this connection: the next group has another one.
            self._drop()
            if not self._ailing:
                # Without its traceback, which has the payloads, and without its details, which have values.
                said = error.diag.message_primary or str(error).partition("\n")[0]
                _log.warning("job_store_unavailable", code=error.sqlstate, said=said)
            self._ailing = True
            raise translated(error) from error
        except BaseException:
            self._drop()
            raise
        if self._ailing:
            _log.info("job_store_available_again")
        self._ailing = False
        return outcomes

    def _apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        began = time.monotonic()
        for attempt in range(TRIES):
            if self._lost:
                raise StoreUnavailable(LOST)
            connection, fresh = self._connected()
            group = Group(operations, self._clock() if self._clock else None)
            try:
                with self._watch.over(connection):
                    self._carry_out(connection, group)
            except (psycopg.OperationalError, Disturbed) as error:
                # The commit was not sent, so nothing has happened.
                late = time.monotonic() - began > self._watch.patience
                if late or not self._rolled_back(connection, error, fresh=fresh):
                    raise
                # A pause by chance, or those that were in each other's way would meet again.
                time.sleep(random.uniform(0.0, 0.02) * attempt)  # noqa: S311  # no secret
                continue
            with self._watch.over(connection):
                self._commit(connection, group)
                if any(type(operation) is Purge for operation in operations):
                    self._forget(connection)
            return group.outcomes
        raise StoreUnavailable("the job store is too busy")

    def _rolled_back(self, connection: psycopg.Connection[tuple[Any, ...]], error: Exception, *, fresh: bool) -> bool:
        """Rolls a group back; whether it may go well if it is done again."""
        if connection.closed:
            self._drop()
            return not fresh
        with self._watch.over(connection):
            connection.execute("ROLLBACK")
        return isinstance(
            error,
            Disturbed
            | psycopg.errors.DeadlockDetected
            | psycopg.errors.SerializationFailure
            | psycopg.errors.LockNotAvailable,
        )

    def _carry_out(self, connection: psycopg.Connection[tuple[Any, ...]], group: Group) -> None:
        """Everything but the commit."""
        try:
            with connection.pipeline():
                connection.execute(sql.BEGIN, prepare=True)
                reach("group.begun")
                header = connection.execute(sql.HEADER, {"process": self._process}, prepare=True, binary=True)
                steps = _send(connection, group)
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
            raise self._lose("its tables are gone") from error
        self._check(header.fetchone())
        while steps:
            for cursor, take in steps:
                take(cursor.fetchall() if cursor.description else ())
            steps = []
            if group.steps:
                with connection.pipeline():
                    steps = _send(connection, group)
        reach("group.applied")

    def _commit(self, connection: psycopg.Connection[tuple[Any, ...]], group: Group) -> None:
        """Makes it durable, and tells others. From here on an error leaves it open whether it happened."""
        self._warned = False
        self._groups += group.wrote
        commit = None
        try:
            with connection.pipeline():
                if group.wrote:
                    mark = {"now": group.now, "groups": self._groups, "process": self._process}
                    connection.execute(sql.MARK, mark, prepare=True)
                commit = connection.execute("COMMIT", prepare=True)
                for payload in payloads(sorted(group.changed), more=group.waiting):
                    # Outside the transaction: inside, its lock would let only one server commit at a time.
                    told = {"channel": self._channel, "payload": payload}
                    connection.execute(sql.NOTIFY, told, prepare=True)
        except psycopg.Error as error:
            if commit is None or commit.statusmessage != "COMMIT":
                raise
            # Others look by themselves, if a little later.
            _log.warning("job_store_notification_failed", code=error.sqlstate)
        if commit.statusmessage != "COMMIT" or self._warned:
            # The commit of a failed transaction is a roll-back; and a warning says that a standby does not have it.
            raise StoreUnavailable("the job store could not commit")
        if group.wrote:
            self._acknowledged = self._groups
        reach("group.committed")

    def _forget(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        """Deletes old names, now and then."""
        if time.monotonic() >= self._forgets:
            self._forgets = time.monotonic() + FORGET_EVERY
            now = self._clock() if self._clock else None
            with contextlib.suppress(psycopg.Error):
                connection.execute(sql.FORGET, {"now": now, "seconds": FORGET})

    # --- A database that forgets ----------------------------------------------------------------------------------

    def _check(self, header: tuple[Any, ...] | None) -> None:
        if header is None:
            raise self._lose("its tables were emptied")
        epoch, version, groups = header
        if epoch != self._epoch:
            raise self._lose("it is another database")
        if groups is None or groups < self._acknowledged:
            raise self._lose("it is older than what was acknowledged")
        if version != len(MIGRATIONS):
            raise StoreUnavailable("the job store was upgraded for a newer Forebay")

    def _lose(self, reason: str) -> StoreUnavailable:
        self._lost = reason
        _log.error(
            "job_store_lost_jobs", reason=reason, hint="acknowledged jobs are missing; no job is served until a restart"
        )
        return StoreUnavailable(LOST)

    # --- The connection -------------------------------------------------------------------------------------------

    def _connected(self) -> tuple[psycopg.Connection[tuple[Any, ...]], bool]:
        """The connection, and whether it is a new one."""
        if self._connection:
            return self._connection, False
        connection = postgres_connection.connect(self._url, self._watch)
        self._keep(connection)
        return connection, True

    def _keep(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        connection.add_notice_handler(self._hear)
        self._pid = connection.info.backend_pid
        self._connection = connection

    def _hear(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warned = True

    def _own(self, pid: int) -> bool:
        return pid == self._pid

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.close()


def _send(connection: psycopg.Connection[tuple[Any, ...]], group: Group) -> list[tuple[Any, Take]]:
    """Sends the next statements of a group; each with what takes its rows."""
    steps, group.steps = group.steps, []
    return [
        (connection.execute(statement, parameters, prepare=True, binary=True), take)
        for statement, parameters, take in steps
    ]


def _one(connection: psycopg.Connection[tuple[Any, ...]], query: str) -> Any:
    row = connection.execute(query).fetchone()
    return row[0] if row else None
