"""The statements of the PostgreSQL store, one or two for each kind of operation.

They are for READ COMMITTED: each sees what was committed when it began, and waits for rows that others are changing,
but for claims and their like, which skip these. Operations of one kind come as arrays. `%(now)s` is null in production:
the time is then the database's, at the beginning of the transaction.

A condition `state + 0 = 2` is one that the planner can't use: it would go through all running jobs for each id.

How rows become values is in `postgres_groups`.
"""
# ruff: noqa: S608 - put together from constants only

from typing import Final

NOW: Final = "coalesce(%(now)s::float8, extract(epoch FROM transaction_timestamp())::float8)"

COLUMNS: Final = (
    "id", "tenant", "sequence", "state", "model", "version", "served_version", "priority", "request_id", "attempt",
    "crashes", "created", "started", "ended", "expires", "purges", "traceparent",
)  # fmt: skip
"""The fields of `store.Job`, in its order."""
JOB: Final = ", ".join(f"j.{column}" for column in COLUMNS)

ENDED: Final = """ended = n.now, purges = n.now + j.ttl, payload = NULL, owner = '',
    webhook_due = CASE WHEN j.webhook_url IS NOT NULL THEN n.now END"""
"""What the end of a job changes beside its state and outcome."""

BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"

HEADER: Final = """
SELECT s.epoch, s.version, p.groups
FROM forebay_store s LEFT JOIN forebay_processes p ON p.process = %(process)s
WHERE EXISTS (SELECT FROM forebay_jobs WHERE id = '')
"""

MARK: Final = f"UPDATE forebay_processes SET groups = %(groups)s::int8, seen = {NOW} WHERE process = %(process)s"

# An id that is there already is answered first, then a key. Others are inserted in their order, so that their sequences
# are; a job that somebody else has made meanwhile comes in neither part.
SUBMIT: Final = f"""
WITH d AS MATERIALIZED (
    SELECT * FROM unnest(%(ids)s, %(tenants)s, %(keys)s, %(fingerprints)s, %(models)s, %(versions)s, %(priorities)s,
        %(payloads)s, %(expire_afters)s, %(ttls)s, %(urls)s, %(secrets)s, %(traceparents)s) WITH ORDINALITY
        AS d(id, tenant, request_id, fingerprint, model, version, priority, payload, expire_after, ttl, url, secret,
            traceparent, place)
), hit AS MATERIALIZED (
    SELECT d.place, j.* FROM d, LATERAL (
        SELECT {JOB}, j.fingerprint FROM forebay_jobs j WHERE j.id = d.id
        UNION ALL
        SELECT {JOB}, j.fingerprint FROM forebay_jobs j
        WHERE j.tenant = d.tenant AND j.request_id = d.request_id AND j.request_id <> ''
        LIMIT 1
    ) j
), new AS (
    INSERT INTO forebay_jobs (id, tenant, state, model, version, priority, request_id, created, ready, expires,
        fingerprint, ttl, webhook_url, webhook_secret, payload, traceparent)
    SELECT d.id, d.tenant, 1, d.model, d.version, d.priority, d.request_id, n.now, 0,
        n.now + nullif(d.expire_after, 'NaN'), d.fingerprint, d.ttl, nullif(d.url, ''), nullif(d.secret, ''), d.payload,
        d.traceparent
    FROM (SELECT {NOW} AS now) n, d WHERE d.place NOT IN (SELECT place FROM hit) ORDER BY d.place
    ON CONFLICT DO NOTHING
    RETURNING *
)
SELECT 0, {JOB}, ''::bytea FROM new j UNION ALL SELECT hit.* FROM hit
"""

LOOK_UP: Final = f"""
SELECT d.place, j.* FROM unnest(%(ids)s, %(tenants)s, %(keys)s) WITH ORDINALITY AS d(id, tenant, request_id, place),
LATERAL (
    SELECT {JOB}, j.fingerprint FROM forebay_jobs j WHERE j.id = d.id
    UNION ALL
    SELECT {JOB}, j.fingerprint FROM forebay_jobs j
    WHERE j.tenant = d.tenant AND j.request_id = d.request_id AND j.request_id <> ''
    LIMIT 1
) j
"""
"""The hits of `SUBMIT`, once more."""

CLAIM: Final = f"""
WITH n AS MATERIALIZED (SELECT {NOW} AS now), picked AS MATERIALIZED (
    SELECT j.id, j.urgency, j.sequence, octet_length(j.payload) AS size FROM forebay_jobs j
    WHERE j.state = 1 AND j.model = %(model)s AND j.tenant = %(tenant)s AND j.priority = %(priority)s
        AND j.suspect = %(suspect)s AND j.ready <= {NOW} AND (j.expires IS NULL OR j.expires > {NOW})
        AND EXISTS (SELECT FROM forebay_owners o WHERE o.owner = %(owner)s AND o.until > {NOW})
    ORDER BY j.urgency, j.sequence LIMIT %(limit)s::int8 FOR UPDATE OF j SKIP LOCKED
), running AS (
    SELECT id, sum(size) OVER (ORDER BY urgency, sequence) - size AS before FROM picked
)
UPDATE forebay_jobs j SET state = 2, owner = %(owner)s, attempt = j.attempt + 1, started = n.now
FROM n, running WHERE j.id = running.id AND (running.before = 0 OR running.before < %(nbytes)s::int8)
RETURNING {JOB}, j.urgency, j.payload
"""

FINISH: Final = f"""
UPDATE forebay_jobs j
SET state = d.state, outcome = d.outcome, served_version = d.served_version, {ENDED}
FROM (SELECT {NOW} AS now) n, unnest(%(ids)s, %(owners)s, %(attempts)s, %(states)s, %(outcomes)s, %(versions)s)
    AS d(id, owner, attempt, state, outcome, served_version)
WHERE j.id = d.id AND j.state + 0 = 2 AND j.owner = d.owner AND j.attempt = d.attempt
RETURNING {JOB}
"""

RELEASE: Final = f"""
UPDATE forebay_jobs j
SET state = 1, owner = '', attempt = j.attempt - d.refund::integer,
    ready = CASE WHEN d.delay = 0 THEN 0 ELSE n.now + d.delay END
FROM (SELECT {NOW} AS now) n, unnest(%(ids)s, %(owners)s, %(attempts)s, %(delays)s, %(refunds)s)
    AS d(id, owner, attempt, delay, refund)
WHERE j.id = d.id AND j.state + 0 = 2 AND j.owner = d.owner AND j.attempt = d.attempt
RETURNING {JOB}
"""

CANCEL: Final = f"""
WITH d AS MATERIALIZED (
    SELECT * FROM unnest(%(ids)s, %(tenants)s) AS d(id, tenant)
), hit AS (
    UPDATE forebay_jobs j SET state = 5, outcome = NULL, served_version = 0, {ENDED}
    FROM (SELECT {NOW} AS now) n, d
    WHERE j.id = d.id AND j.tenant = d.tenant AND j.state IN (1, 2)
    RETURNING {JOB}
)
SELECT true, {JOB} FROM hit j
UNION ALL
SELECT false, {JOB} FROM d JOIN forebay_jobs j ON j.id = d.id AND j.tenant = d.tenant
WHERE j.state > 0 AND j.id NOT IN (SELECT id FROM hit)
"""
"""Whether it changed, and the job as it is then; one that somebody else changes at this moment may be as it was."""

GET: Final = f"""
SELECT {JOB}, j.outcome FROM unnest(%(ids)s, %(tenants)s) AS d(id, tenant)
JOIN forebay_jobs j ON j.id = d.id AND j.tenant = d.tenant WHERE j.state > 0
"""

PAGE: Final = f"""
WITH p AS MATERIALIZED (
    SELECT s.* FROM unnest(%(states)s) AS w(state), LATERAL (
        SELECT j.state, j.sequence FROM forebay_jobs j
        WHERE j.tenant = %(tenant)s AND j.state = w.state AND j.sequence < %(before)s::int8
            AND (%(model)s = '' OR j.model = %(model)s)
        ORDER BY j.sequence DESC LIMIT %(limit)s::int8
    ) s
    ORDER BY s.sequence DESC LIMIT %(limit)s::int8
)
SELECT {JOB} FROM p JOIN forebay_jobs j ON j.tenant = %(tenant)s AND j.state = p.state AND j.sequence = p.sequence
ORDER BY j.sequence DESC
"""

RENEW: Final = f"""
WITH n AS MATERIALIZED (SELECT {NOW} AS now), old AS MATERIALIZED (
    SELECT o.until > n.now AS lasts FROM forebay_owners o, n WHERE o.owner = %(owner)s
)
INSERT INTO forebay_owners (owner, until, seen)
SELECT %(owner)s, CASE WHEN %(seconds)s::float8 = 0 THEN '-infinity' ELSE n.now + %(seconds)s::float8 END, n.now FROM n
ON CONFLICT (owner) DO UPDATE
SET until = CASE WHEN (SELECT lasts FROM old) THEN excluded.until ELSE '-infinity' END, seen = excluded.seen
RETURNING coalesce((SELECT lasts FROM old), true)
"""

EXPIRE: Final = f"""
WITH n AS MATERIALIZED (SELECT {NOW} AS now), late AS MATERIALIZED (
    SELECT j.id FROM forebay_jobs j
    WHERE j.state IN (1, 2) AND j.expires <= {NOW}
    ORDER BY j.expires, j.sequence LIMIT %(limit)s::int8 FOR UPDATE OF j SKIP LOCKED
)
UPDATE forebay_jobs j SET state = 6, outcome = %(outcome)s, served_version = 0, {ENDED}
FROM n, late WHERE j.id = late.id
RETURNING {JOB}
"""

TAKE_OVER: Final = f"""
WITH n AS MATERIALIZED (SELECT {NOW} AS now), gone AS MATERIALIZED (
    SELECT j.id, j.attempt >= %(most)s::int8 AS over FROM forebay_jobs j
    WHERE j.state = 2 AND NOT EXISTS (SELECT FROM forebay_owners o WHERE o.owner = j.owner AND o.until > {NOW})
    ORDER BY j.sequence LIMIT %(limit)s::int8 FOR UPDATE OF j SKIP LOCKED
), failed AS (
    UPDATE forebay_jobs j
    SET crashes = j.crashes + 1, state = 4, outcome = %(outcome)s, served_version = 0, {ENDED}
    FROM n, gone WHERE j.id = gone.id AND gone.over
    RETURNING {JOB}
), again AS (
    UPDATE forebay_jobs j
    SET crashes = j.crashes + 1, state = 1, owner = '', ready = 0
    FROM gone WHERE j.id = gone.id AND NOT gone.over
    RETURNING {JOB}
)
SELECT * FROM failed UNION ALL SELECT * FROM again
"""

PURGE: Final = f"""
WITH over AS MATERIALIZED (
    SELECT j.id FROM forebay_jobs j
    WHERE j.purges <= {NOW} AND j.webhook_due IS NULL
    ORDER BY j.purges, j.sequence LIMIT %(limit)s::int8 FOR UPDATE OF j SKIP LOCKED
)
DELETE FROM forebay_jobs j USING over WHERE j.id = over.id RETURNING 1
"""

FORGET: Final = f"""
WITH owners AS (
    DELETE FROM forebay_owners o WHERE o.seen < {NOW} - %(seconds)s::float8
        AND NOT EXISTS (SELECT FROM forebay_jobs j WHERE j.state = 2 AND j.owner = o.owner)
)
DELETE FROM forebay_processes WHERE seen < {NOW} - %(seconds)s::float8
"""
"""Owners and processes of which nothing was heard for long."""

BACKLOG: Final = f"""
SELECT j.model, j.tenant, j.priority, j.suspect, count(*), min(j.sequence), max(j.sequence),
    greatest(0, min(j.ready) - {NOW})
FROM forebay_jobs j WHERE j.state = 1 GROUP BY j.model, j.tenant, j.priority, j.suspect
"""

DELIVERIES: Final = f"""
WITH n AS MATERIALIZED (SELECT {NOW} AS now), due AS MATERIALIZED (
    SELECT j.id, j.webhook_due FROM forebay_jobs j WHERE j.webhook_due <= {NOW}
    ORDER BY j.webhook_due, j.sequence LIMIT %(limit)s::int8 FOR UPDATE OF j SKIP LOCKED
)
UPDATE forebay_jobs j SET webhook_due = n.now + %(seconds)s::float8, webhook_tries = j.webhook_tries + 1
FROM n, due WHERE j.id = due.id
RETURNING {JOB}, due.webhook_due, j.webhook_url, j.webhook_secret, j.webhook_tries - 1
"""

DELIVERED: Final = "UPDATE forebay_jobs SET webhook_due = NULL WHERE id = %(id)s"

UNDELIVERED: Final = f"""
UPDATE forebay_jobs SET webhook_due = CASE WHEN webhook_due IS NOT NULL THEN {NOW} + %(delay)s::float8 END
WHERE id = %(id)s
"""

NOTIFY: Final = "SELECT pg_notify(%(channel)s, %(payload)s)"
