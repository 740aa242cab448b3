"""Statements of the SQLite store that go row by row, and what its rows are in Python. Others are in `sqlite_many`."""

from typing import Any, Final

from forebay_server.jobs.sqlite_many import END
from forebay_server.jobs.states import FINAL, JobState
from forebay_server.jobs.store import SUSPECT_CRASHES, Job

Row = tuple[Any, ...]

_STATES: Final = (JobState.PENDING, *JobState)
"""By number; the first is not used."""

JOB: Final = (
    "id, tenant, jobs.sequence, state, model, version, served_version, priority, request_id, attempt, crashes, "
    "created, started, ended, expires, purges, traceparent"
)
"""The columns of a `Job`, in its order."""
WIDTH: Final = len(Job._fields)

INSERT: Final = f"""
    INSERT INTO jobs (sequence, id, tenant, state, model, version, served_version, priority, request_id, attempt,
        crashes, created, expires, suspect, due, ready, fingerprint, ttl, url, secret, message_tries, traceparent)
    VALUES (?, ?, ?, {JobState.PENDING:d}, ?, ?, 0, ?, ?, 0, 0, ?, ?, 0, ?, 0, ?, ?, ?, ?, 0, ?)
"""
HELD: Final = f"id = ?4 AND state = {JobState.RUNNING:d} AND owner = ?5 AND attempt = ?6"
FINISH: Final = f"{END} WHERE {HELD} RETURNING {JOB}, ?7"
END_ONE: Final = f"{END} WHERE sequence = ?4 RETURNING {JOB}"
RELEASE: Final = f"""
    UPDATE jobs SET state = {JobState.PENDING:d}, owner = NULL, attempt = attempt - ?1,
        ready = CASE ?3 WHEN 0 THEN 0 ELSE ?2 + ?3 END
    WHERE {HELD} RETURNING {JOB}, ?7, suspect, ready
"""
ORPHANS: Final = f"""
    SELECT sequence FROM jobs INDEXED BY claims WHERE state = {JobState.RUNNING:d} AND owner = ?
    ORDER BY sequence LIMIT ?
"""
TAKE_OVER: Final = f"""
    UPDATE jobs SET state = {JobState.PENDING:d}, owner = NULL, ready = 0, crashes = crashes + 1,
        suspect = crashes + 1 >= {SUSPECT_CRASHES}
    WHERE sequence = ? RETURNING {JOB}, suspect
"""
LATE: Final = """
    SELECT sequence, state, model, tenant, priority, suspect FROM jobs INDEXED BY expiry
    WHERE state < 3 AND expires IS NOT NULL AND expires <= ? ORDER BY expires, sequence LIMIT ?
"""
OVER: Final = """
    SELECT sequence FROM jobs INDEXED BY finished WHERE purges IS NOT NULL AND message_due IS NULL AND purges <= ?
    ORDER BY purges, sequence LIMIT ?
"""
DUE: Final = f"""
    SELECT {JOB}, url, secret, message_tries FROM jobs INDEXED BY outbox WHERE message_due IS NOT NULL
        AND message_due <= ? ORDER BY message_due, sequence LIMIT ?
"""
FLOW: Final = "model, tenant, priority, suspect"
LINE_END: Final = f"""
    SELECT sequence FROM jobs INDEXED BY lines WHERE model = ? AND tenant = ? AND priority = ? AND suspect = ?
        AND state = {JobState.PENDING:d} ORDER BY sequence
"""
assert JobState.RUNNING < 3 <= min(FINAL)  # noqa: S101  # what `state < 3` in the schema means


def job_of(row: Row) -> Job:
    """A job from the columns `JOB`, which may be followed by others."""
    return Job(
        row[0].hex(), row[1], row[2], _STATES[row[3]], row[4], row[5], row[6], row[7], row[8], row[9], row[10],
        row[11], row[12], row[13], row[14], row[15], row[16],
    )  # fmt: skip


def key_of(job_id: str) -> bytes:
    """What the id is in the database; empty for what can't be one."""
    try:
        key = bytes.fromhex(job_id)
    except ValueError:
        return b""
    return key if key.hex() == job_id else b""
