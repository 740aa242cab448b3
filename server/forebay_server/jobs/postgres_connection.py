"""Connections to PostgreSQL: how they are set up, and what their errors mean.

No text from here has a password in it, so no text of libpq about a URL is passed on.
"""

import re
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from forebay_server.errors import ConfigError, ForebayError, StoreFull, StoreUnavailable
from forebay_server.jobs.postgres_arrays import register
from forebay_server.jobs.postgres_watch import Watch

OLDEST: Final = 140000
"""The oldest version of the server, as PostgreSQL writes it."""
ANSWER_S: Final = 10.0
"""Seconds for a statement; a server that is slower than this is taken for unavailable."""
RETRY_FULL: Final = 10.0
"""Seconds after which a caller may try again when the disk is full."""

_PARAMETERS: Final = {
    "connect_timeout": "3",
    # A peer that is gone without a word is noticed after about ten seconds.
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "target_session_attrs": "read-write",
    "application_name": "forebay",
}
"""Unless the URL says otherwise."""

_SETTINGS: Final = {
    # Locks are held for milliseconds, unless their holder is frozen; then the server ends its transaction.
    "lock_timeout": "1s",
    "statement_timeout": f"{ANSWER_S:.0f}s",
    "idle_in_transaction_session_timeout": "15s",
    # Every statement has an index, and few rows. Plans that are right for the table as it was a minute ago (it may have
    # been empty) would be a disaster now; these settings leave the one that is always right: in the order of an index.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "enable_incremental_sort": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}

_REFUSED: Final = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry"
    r"|(role|database) .* does not exist|is not permitted to log in|permission denied for database"
    r"|unrecognized configuration parameter|invalid value for parameter"
)
"""What servers say of connections that will not work before somebody changes something. libpq has no codes for these,
so they are not recognized of a server that speaks another language than English."""


def place(url: str) -> str:
    """Where a URL leads, without its password."""
    parts = conninfo_to_dict(url)
    host = parts.get("host") or parts.get("hostaddr") or "the local server"
    port = f":{parts['port']}" if parts.get("port") else ""
    return f"database {parts.get('dbname') or parts.get('user') or 'of this user'!s} on {host}{port}"


def check(url: str) -> None:
    """Looks at a URL without using it.

    Raises:
        ConfigError: It is not one.
    """
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        parts = {"port": "its text, which may have a part of the password, is not passed on"}
    # An `@` or `/` of a password that is not escaped makes another part of the URL begin there.
    odd = [name for name in ("host", "dbname") if "@" in str(parts.get(name, ""))]
    if odd or not re.fullmatch(r"[\d,]*", str(parts.get("port", ""))):
        raise ConfigError(
            "jobs.store is not a valid URL of a PostgreSQL database, such as postgresql://user:password@host:5432/name"
            " (characters such as @ and / in a password are written as %40 and %2F)"
        )


def connect(url: str, watch: Watch) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection whose commits are durable, without transactions of its own making.

    Raises:
        psycopg.Error: There is none.
        StoreUnavailable: It can't be made durable.
    """
    said = conninfo_to_dict(url)
    parameters = {name: value for name, value in _PARAMETERS.items() if name not in said}
    connection = psycopg.connect(make_conninfo(url, **parameters), autocommit=True)
    register(connection)
    try:
        with watch.over(connection):
            _set_up(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    with connection.pipeline():
        for name, value in _SETTINGS.items():
            connection.execute("SELECT set_config(%s, %s, false)", [name, value])
        connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') <> 'remote_apply'"
        )
        cursor = connection.execute("SELECT current_setting('synchronous_commit')")
    if cursor.fetchone() not in {("on",), ("remote_apply",)}:
        raise StoreUnavailable("the job store does not commit synchronously")


def refused(error: psycopg.Error, url: str) -> ConfigError | None:
    """The sentence for an error at the start that won't go away by itself; None if it may."""
    if isinstance(error, psycopg.errors.InsufficientPrivilege | psycopg.errors.InvalidSchemaName):
        said = error.diag.message_primary
        return ConfigError(f"the job store can't make or use its tables in the {place(url)}: {said}")
    if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
        said = error.diag.message_primary
        return ConfigError(
            f"the job store in the {place(url)} is damaged ({said}): restore it, or drop all tables forebay_*"
        )
    reason = str(error).rpartition("FATAL:")[2].strip().partition("\n")[0]
    if error.sqlstate is None and "FATAL:" in str(error) and _REFUSED.search(reason):
        return ConfigError(f"the job store, {place(url)}, refuses the connection: {reason}")
    return None


def translated(error: psycopg.Error) -> ForebayError:
    """What an error of a working store means for those who wait."""
    if isinstance(error, psycopg.errors.DiskFull):
        return StoreFull("the disk of the job store is full", retry_after=RETRY_FULL)
    return StoreUnavailable("the job store does not answer")
