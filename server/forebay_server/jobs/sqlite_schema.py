"""The tables of the SQLite store, and how older ones become the newest.

A job is a row of `jobs`, which has no large values: rows are rewritten when a job changes its state. What is large is
in `bodies`: the request while the job is not final, its outcome from then on, as bytes or as the digest of a file.

Every index but those on ids and pages is partial on what it is for, so that finished jobs cost nothing where waiting
jobs are looked for. `due` is the urgency inside a flow (see `store.Flow`).
"""

from pathlib import Path
from typing import Final

import apsw

from forebay_server.errors import ConfigError

APPLICATION: Final = 0x466F7265
"""Marks the file as ours: "Fore"."""

MIGRATIONS: Final = (
    """
    CREATE TABLE jobs (
        sequence INTEGER PRIMARY KEY,
        id BLOB NOT NULL,
        tenant TEXT NOT NULL,
        state INTEGER NOT NULL,
        model TEXT NOT NULL,
        version TEXT NOT NULL,
        served_version INTEGER NOT NULL,
        priority INTEGER NOT NULL,
        request_id TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        crashes INTEGER NOT NULL,
        created REAL NOT NULL,
        started REAL,
        ended REAL,
        expires REAL,
        purges REAL,
        suspect INTEGER NOT NULL,
        due REAL NOT NULL,
        ready REAL NOT NULL,
        owner TEXT,
        fingerprint BLOB NOT NULL,
        ttl REAL NOT NULL,
        url TEXT,
        secret TEXT,
        message_due REAL,
        message_tries INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE bodies (sequence INTEGER PRIMARY KEY, data BLOB, digest BLOB) STRICT;
    CREATE TABLE taken_in (only INTEGER PRIMARY KEY CHECK (only = 1), sequence INTEGER NOT NULL) STRICT;
    INSERT INTO taken_in VALUES (1, 0);
    CREATE UNIQUE INDEX ids ON jobs (id);
    CREATE UNIQUE INDEX keys ON jobs (tenant, request_id) WHERE request_id <> '';
    CREATE INDEX pages ON jobs (tenant, state, sequence, model);
    CREATE INDEX urgency ON jobs (model, tenant, priority, suspect, due, sequence) WHERE state = 1;
    CREATE INDEX lines ON jobs (model, tenant, priority, suspect, sequence) WHERE state = 1;
    CREATE INDEX delays ON jobs (ready) WHERE state = 1 AND ready > 0;
    CREATE INDEX claims ON jobs (owner, sequence) WHERE state = 2;
    CREATE INDEX expiry ON jobs (expires, sequence) WHERE state < 3 AND expires IS NOT NULL;
    CREATE INDEX finished ON jobs (purges, sequence) WHERE purges IS NOT NULL AND message_due IS NULL;
    CREATE INDEX outbox ON jobs (message_due, sequence) WHERE message_due IS NOT NULL;
    CREATE INDEX files ON bodies (digest) WHERE digest IS NOT NULL;
    """,
    "ALTER TABLE jobs ADD COLUMN traceparent TEXT NOT NULL DEFAULT ''",
)
"""The step from each version to the next. Released ones never change; a store is of the version `len(MIGRATIONS)`."""


def check_owner(connection: apsw.Connection, path: Path) -> None:
    """Raises ConfigError if the database is somebody else's, or newer than this server. Changes nothing."""
    version = connection.pragma("user_version")
    application = connection.pragma("application_id")
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").get
    if application != APPLICATION and (tables or version or application):
        raise ConfigError(f"jobs.store: {path} is an SQLite database, but not a job store")
    if version > len(MIGRATIONS):
        raise ConfigError(
            f"jobs.store: {path} has version {version}, and this server knows versions up to {len(MIGRATIONS)}: "
            "it was written by a newer server"
        )


def migrate(connection: apsw.Connection) -> None:
    """Brings the schema up to date, a transaction for each step."""
    version = connection.pragma("user_version")
    for number, step in enumerate(MIGRATIONS[version:], version + 1):
        with connection:
            connection.execute(step)
            connection.pragma("application_id", APPLICATION)
            connection.pragma("user_version", number)
