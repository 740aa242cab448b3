"""Statements of the SQLite store that read or change many rows at once, as arrays instead of row by row.

Each step of a statement lets go of the GIL and takes it again, and while the dispatcher is at work, taking it again
costs far more than the row. So claims and ends, which come by the hundred, go down as arrays, what is claimed comes up
as columns, and one step does all of them. For that the store remembers the jobs that are claimed: what a `Finish` has
to answer is known then without reading it back. What is remembered may be forgotten at any time; then the database is
asked.
"""

from array import array
from collections.abc import Callable, Sequence
from typing import Any, Final

import apsw

from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import Finish, Job

CLAIMABLE: Final = f"""
    SELECT json_array(
        lower(group_concat(hex(id), '')), json_group_array(sequence), json_group_array(version),
        json_group_array(request_id), json_group_array(attempt), json_group_array(crashes), json_group_array(created),
        json_group_array(expires), json_group_array(traceparent), json_group_array(ttl), json_group_array(size)
    )
    FROM (
        SELECT id, jobs.sequence AS sequence, version, request_id, attempt, crashes, created, expires, traceparent, ttl,
            length(data) AS size
        FROM jobs INDEXED BY urgency LEFT JOIN bodies USING (sequence)
        WHERE model = ? AND tenant = ? AND priority = ? AND suspect = ? AND state = {JobState.PENDING:d}
            AND ready <= ? AND (expires IS NULL OR expires > ?)
        ORDER BY due, jobs.sequence LIMIT ?
    )
"""
"""Columns in JSON, a value for each job: ids are joined, a payload in a file has no size."""
DATA: Final = """
    SELECT CAST(group_concat(data, '') AS BLOB) FROM carray(?) AS wanted CROSS JOIN bodies ON sequence = wanted.value
"""
"""What some jobs have, joined in their order."""
CLAIM: Final = f"""
    UPDATE jobs SET state = {JobState.RUNNING:d}, owner = ?1, attempt = attempt + 1, started = ?2, ready = 0
    WHERE sequence IN (SELECT value FROM carray(?3))
"""
END: Final = """
    UPDATE jobs SET state = ?1, served_version = ?2, ended = ?3, purges = ?3 + ttl, owner = NULL,
        message_due = CASE WHEN url IS NULL THEN NULL ELSE ?3 END
"""
"""Of one job, or many, as the WHERE says that comes after it."""
_END_MANY: Final = f"{END} WHERE sequence IN (SELECT value FROM carray(?4))"
_PLACED: Final = "(SELECT row_number() OVER () AS place, value FROM carray({}))"
"""The values of an array with their places in it."""
REPLACE: Final = f"""
    UPDATE bodies SET data = datum.value, digest = NULL
    FROM {_PLACED.format("?1")} AS sequence JOIN {_PLACED.format("?2")} AS datum USING (place)
    WHERE bodies.sequence = sequence.value
"""
"""Sequences, and as many bodies, none of them empty."""

tuple_of: Final = tuple.__new__
"""Makes a named tuple of its values in half the time that its class takes: this is done for each job."""

_Held = tuple[Job, str, float]
"""A claimed job, by whom, and its time to live."""


def numbers(values: Sequence[int]) -> Any:
    """An array of 64-bit integers, not empty, as a value of a statement."""
    return apsw.carray(array("q", values))


def blobs(values: Sequence[bytes]) -> Any:
    """An array of bytes, not empty, as a value of a statement. An empty one would become NULL."""
    return apsw.carray(tuple(values))


class Claims:
    """The jobs that are claimed, remembered.

    Args:
        do: Runs a statement.
    """

    def __init__(self, do: Callable[..., Any]) -> None:
        self._do = do
        self._held: dict[str, _Held] = {}

    def add(self, job: Job, owner: str, ttl: float) -> None:
        """A job is claimed."""
        self._held[job.id] = (job, owner, ttl)

    def drop(self, job_id: str) -> None:
        """A job is no longer claimed, or perhaps not as it was."""
        self._held.pop(job_id, None)

    def clear(self) -> None:
        """What is remembered may be wrong."""
        self._held.clear()

    def end(self, run: Sequence[Finish], now: float) -> list[Job | None]:
        """Gives those jobs their ends whose claims are remembered. None: is not; the database has to say."""
        held = self._held
        outcomes: list[Job | None] = []
        alike: dict[tuple[JobState, int], list[int]] = {}
        for operation in run:
            known = held.get(operation.id)
            if known is None or known[1] != operation.owner or known[0].attempt != operation.attempt:
                outcomes.append(None)
                continue
            del held[operation.id]
            job, _, ttl = known
            state, version = operation.state, operation.served_version
            sequence = job.sequence
            # By place, not by name (`_replace`).
            ended = (*job[:3], state, *job[4:6], version, *job[7:13], now, job[14], now + ttl, job[16])
            outcomes.append(tuple_of(Job, ended))
            sequences = alike.get((state, version))
            if sequences is None:
                alike[state, version] = [sequence]
            else:
                sequences.append(sequence)
        for (state, version), sequences in alike.items():
            self._do(_END_MANY, (state, version, now, numbers(sequences)))
        return outcomes
