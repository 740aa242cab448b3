"""The tables of jobs in PostgreSQL, and how an older database gets them.

All names begin with `forebay_`; tables are where the connection's `search_path` says. Times are seconds since 1970 as
`double precision`, as in the port, so that every store computes the same.

One table has everything of a job, and each question has a partial index that holds only what it may be about: the cost
of a claim goes with what waits, not with what has finished. The first row of that table is no job, it is the
*keystone*: its state is 0, and it is there as long as nobody has emptied the table.
"""

import secrets
from typing import Any, Final

from psycopg import Connection

from forebay_server.errors import ConfigError
from forebay_server.jobs.store import DUE_ANYWAY, SUSPECT_CRASHES

LOCK: Final = 0x666F7265626179
"""The advisory lock of whoever changes the schema: `forebay` in ASCII."""

MIGRATIONS: Final = (
    f"""
    CREATE TABLE forebay_store (
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        version integer NOT NULL,
        epoch text NOT NULL                             -- random: which database this is
    );
    CREATE TABLE forebay_processes (
        process text COLLATE "C" PRIMARY KEY,           -- random: a store object in a server
        groups bigint NOT NULL,                         -- how many of its groups have changed something
        seen double precision NOT NULL
    ) WITH (fillfactor = 50);
    CREATE TABLE forebay_owners (
        owner text COLLATE "C" PRIMARY KEY,
        until double precision NOT NULL,                -- when its life ends; -infinity once that was noticed
        seen double precision NOT NULL
    ) WITH (fillfactor = 50);
    CREATE TABLE forebay_jobs (
        id text COLLATE "C" PRIMARY KEY,
        tenant text COLLATE "C" NOT NULL,
        sequence bigint GENERATED ALWAYS AS IDENTITY,
        state smallint NOT NULL,
        model text COLLATE "C" NOT NULL,
        version text COLLATE "C" NOT NULL,
        served_version bigint NOT NULL DEFAULT 0,
        priority smallint NOT NULL,
        request_id text COLLATE "C" NOT NULL,
        attempt integer NOT NULL DEFAULT 0,
        crashes integer NOT NULL DEFAULT 0,
        created double precision NOT NULL,
        started double precision,
        ended double precision,
        expires double precision,
        purges double precision,
        fingerprint bytea NOT NULL,
        ttl double precision NOT NULL,
        owner text COLLATE "C" NOT NULL DEFAULT '',
        ready double precision NOT NULL,                -- when it may be claimed; 0: at any time
        webhook_url text COLLATE "C",
        webhook_secret text COLLATE "C",
        webhook_due double precision,                   -- not null: there is a message to be sent
        webhook_tries integer NOT NULL DEFAULT 0,
        payload bytea,                                  -- null once it is final
        outcome bytea,
        suspect boolean NOT NULL GENERATED ALWAYS AS (crashes >= {SUSPECT_CRASHES}) STORED,
        urgency double precision NOT NULL GENERATED ALWAYS AS (least(expires, created + {DUE_ANYWAY})) STORED
    ) WITH (
        autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05,
        autovacuum_analyze_scale_factor = 0.05
    );
    -- Tensors rarely shrink: don't try to compress them.
    ALTER TABLE forebay_jobs ALTER payload SET STORAGE EXTERNAL, ALTER outcome SET STORAGE EXTERNAL;
    CREATE UNIQUE INDEX forebay_jobs_key ON forebay_jobs (tenant, request_id) WHERE request_id <> '';
    CREATE INDEX forebay_jobs_waiting ON forebay_jobs (model, tenant, priority, suspect, urgency, sequence)
        INCLUDE (ready) WHERE state = 1;
    CREATE INDEX forebay_jobs_running ON forebay_jobs (sequence) WHERE state = 2;
    CREATE INDEX forebay_jobs_listed ON forebay_jobs (tenant, state, sequence, model);
    CREATE INDEX forebay_jobs_expiring ON forebay_jobs (expires, sequence)
        WHERE state IN (1, 2) AND expires IS NOT NULL;
    CREATE INDEX forebay_jobs_over ON forebay_jobs (purges, sequence)
        WHERE purges IS NOT NULL AND webhook_due IS NULL;
    CREATE INDEX forebay_jobs_due ON forebay_jobs (webhook_due, sequence) WHERE webhook_due IS NOT NULL;

    INSERT INTO forebay_store (version, epoch) VALUES (0, '');
    """,  # noqa: S608  # from constants only
    """ALTER TABLE forebay_jobs ADD COLUMN traceparent text COLLATE "C" NOT NULL DEFAULT ''""",
)
"""What leads from each version to the next; the first begins with nothing."""

KEYSTONE: Final = """
INSERT INTO forebay_jobs (id, tenant, state, model, version, priority, request_id, created, fingerprint, ttl, ready)
VALUES ('', '', 0, '', '', 0, '', 0, '', 0, 0) ON CONFLICT DO NOTHING
"""


def migrate(connection: Connection[Any]) -> None:
    """Brings the schema up to date, in one transaction. Of several that do so at once, the others wait for the first.

    Raises:
        ConfigError: It is of a newer version.
        psycopg.Error: Anything else.
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        there = connection.execute("SELECT to_regclass('forebay_store')").fetchone()
        version = 0
        if there and there[0]:
            row = connection.execute("SELECT version FROM forebay_store").fetchone()
            if row is None:
                raise ConfigError(
                    "the job store's table forebay_store is empty: restore the database, or drop all tables forebay_*"
                )
            version = row[0]
        if version > len(MIGRATIONS):
            raise ConfigError(
                f"the job store has schema version {version}, of a newer Forebay; this one knows versions up to"
                f" {len(MIGRATIONS)}"
            )
        for migration in MIGRATIONS[version:]:
            connection.execute(migration.encode())
        if version < len(MIGRATIONS):
            connection.execute("UPDATE forebay_store SET version = %s", [len(MIGRATIONS)])
        if connection.execute(KEYSTONE).rowcount:
            # The table is new, or was emptied: then those who knew it before shall see that it is another.
            connection.execute("UPDATE forebay_store SET epoch = %s", [secrets.token_hex(16)])
