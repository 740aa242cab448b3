"""The operations of a store as SQLite statements. Inside a transaction of `sqlite.SqliteStore`, which alone calls this.

Operations come as runs of the same kind, so that a statement is prepared once and run for many rows. There is one
connection and one thread: what a SELECT has found is still so when the UPDATE comes.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from json import loads
from math import inf
from typing import Any, Final

import apsw
import structlog

from forebay_server.errors import ForebayError, Internal, JobKeyReused, JobNotFound
from forebay_server.jobs import sqlite_statements as sql
from forebay_server.jobs.payloads import PayloadLost, Payloads
from forebay_server.jobs.sqlite_backlog import FlowKey, Lines
from forebay_server.jobs.sqlite_bodies import Bodies
from forebay_server.jobs.sqlite_many import CLAIM, CLAIMABLE, Claims, numbers, tuple_of
from forebay_server.jobs.sqlite_statements import Row, job_of, key_of
from forebay_server.jobs.states import FINAL, JobState
from forebay_server.jobs.store import (
    DUE_ANYWAY,
    Backlog,
    Cancel,
    Claim,
    Claimed,
    ClaimLost,
    Delivered,
    Deliveries,
    Delivery,
    Finish,
    Found,
    Get,
    Job,
    Operation,
    Outcome,
    Page,
    Purge,
    Reap,
    Release,
    Renew,
    Submit,
    Submitted,
    Undelivered,
    Waiting,
    Webhook,
)

_log = structlog.get_logger(__name__)

_HAVE_OUTCOME: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.EXPIRED})
_ALL_SEQUENCES: Final = 2**63 - 1
RUNNING: Final = JobState.RUNNING


class Rows:
    """The jobs of an open database.

    Args:
        connection: It has the newest schema, and nobody else uses it.
        payloads: Where large bodies are.
        owners: When the lives of this process's owners end, by the steady clock; -inf once that was noticed. There are
            no others: a process that opens a database has it alone.
        lost: The outcome of a job whose payload's file is lost.
    """

    def __init__(
        self,
        connection: apsw.Connection,
        payloads: Payloads,
        owners: dict[str, float],
        lost: bytes,
    ) -> None:
        # Any: the columns' types are the schema's, which the type checker does not know.
        self._do: Callable[..., Any] = connection.execute
        self._do_many: Callable[..., Any] = connection.executemany
        self.bodies = Bodies(connection, payloads)
        """The large values of the jobs."""
        self._owners = owners
        self._lost = lost
        self._lines = Lines(self._line_end)
        self._claims = Claims(connection.execute)
        self._sequence = self._before = 0
        self._now = self._instant = 0.0
        self.damaged: list[str] = []
        """Jobs of the group that ended because their payload's file is lost."""
        self._acts: dict[type, Callable[[Any], list[Outcome]]] = {
            Submit: self._submit,
            Claim: self._each(self._claim),
            Finish: self._finish,
            Release: self._release,
            Cancel: self._each(self._cancel),
            Get: self._each(self._get),
            Page: self._each(self._page),
            Renew: self._each(self._renew),
            Reap: self._each(self._reap),
            Purge: self._each(self._purge),
            Backlog: self._each(self._backlog),
            Deliveries: self._each(self._deliveries),
            Delivered: self._each(self._delivered),
            Undelivered: self._each(self._undelivered),
        }

    def load(self) -> None:
        """Reads what is counted in memory."""
        purged, there = self._do("SELECT (SELECT sequence FROM taken_in), (SELECT max(sequence) FROM jobs)").get
        self._sequence = max(purged, there or 0)
        pending = f"state = {JobState.PENDING:d}"
        lines = self._do(
            f"""
            SELECT {sql.FLOW}, count(*), min(sequence), max(sequence) FROM jobs INDEXED BY lines WHERE {pending}
            GROUP BY {sql.FLOW}
            """
        )
        delays = self._do(
            f"SELECT {sql.FLOW}, sequence, ready FROM jobs INDEXED BY delays WHERE {pending} AND ready > 0"
        )
        self._lines.load(
            ((row[:4], row[4], row[5], row[6]) for row in lines), ((row[:4], row[4], row[5]) for row in delays)
        )

    @property
    def taken_in(self) -> int:
        """The sequence of the newest job."""
        return self._sequence

    def begin(self) -> None:
        """A group begins: what it changes in memory can be taken back."""
        self._lines.begin()
        self._before = self._sequence
        self.damaged = []

    def take_back(self) -> None:
        """The group did not happen."""
        self._lines.take_back()
        self._claims.clear()
        self._sequence = self._before

    def carry_out(self, operations: Sequence[Operation], *, now: float, instant: float) -> list[Outcome]:
        """Carries out a group at `now` (seconds since 1970), which is `instant` by the clock of the owners' lives."""
        self._now, self._instant = now, instant
        outcomes: list[Outcome] = []
        for kind, run in groupby(operations, type):
            outcomes += self._acts[kind](list(run))
        return outcomes

    @staticmethod
    def _each(act: Callable[[Any], Outcome]) -> Callable[[Any], list[Outcome]]:
        return lambda run: [act(operation) for operation in run]

    # --- Jobs -----------------------------------------------------------------------------------------------------

    def _submit(self, run: list[Submit]) -> list[Outcome]:
        now = self._now
        outcomes: list[Outcome] = []
        added: list[tuple[Submit, Job]] = []

        def rows() -> Iterator[Row]:
            for operation in coming:
                self._sequence = sequence = self._sequence + 1
                id_, tenant, model, priority = operation.id, operation.tenant, operation.model, operation.priority
                version, key = operation.version, operation.request_id
                after = operation.expire_after
                expires = None if after is None else now + after
                due = now + DUE_ANYWAY
                if expires is not None and expires < due:
                    due = expires
                job = Job(
                    id_, tenant, sequence, JobState.PENDING, model, version, 0, priority, key, 0, 0, now, None, None,
                    expires, None, operation.traceparent,
                )  # fmt: skip
                outcomes.append(Submitted(job, created=True))
                added.append((operation, job))
                url, secret = operation.webhook or (None, None)
                yield (
                    sequence, bytes.fromhex(id_), tenant, model, version, priority, key, now, expires, due,
                    operation.fingerprint, operation.ttl, url, secret, operation.traceparent,
                )  # fmt: skip

        coming = iter(run)
        while True:
            try:
                self._do_many(sql.INSERT, rows())
            except apsw.ConstraintError:
                # The row that came last is there already, under its id or its key; those before it are in.
                operation, _ = added.pop()
                outcomes[-1] = self._same(operation)
            else:
                break
        self.bodies.add([(job.sequence, operation.payload) for operation, job in added])
        for _, job in added:
            self._lines.add((job.model, job.tenant, job.priority, 0), job.sequence)
        return outcomes

    def _same(self, operation: Submit) -> Submitted | JobKeyReused:
        select = f"SELECT {sql.JOB}, fingerprint FROM jobs WHERE"
        row = self._do(f"{select} id = ?", (bytes.fromhex(operation.id),)).get
        if row is None:
            key = (operation.tenant, operation.request_id)
            row = self._do(f"{select} tenant = ? AND request_id = ? AND request_id <> ''", key).get
        job = job_of(row)
        if (job.tenant, row[sql.WIDTH]) != (operation.tenant, operation.fingerprint):
            return JobKeyReused(f"the request id {operation.request_id!r} stands for a job with another payload")
        return Submitted(job, created=job.id == operation.id)

    def _claim(self, operation: Claim) -> list[Claimed]:
        if not self._alive(operation.owner):
            return []
        now, flow, owner = self._now, operation.flow, operation.owner
        ids, *columns = loads(self._do(CLAIMABLE, (*flow, now, now, operation.limit)).get)
        payloads = self.bodies.first(columns[0], columns[-1], operation.nbytes)  # What is not read takes no memory.
        if not payloads:
            return []
        sequences = columns[0][: len(payloads)]
        self._do(CLAIM, (owner, now, numbers(sequences)))
        self._lines.remove(flow, sequences)
        model, tenant, priority, _ = flow
        claimed = []
        start = 0
        # Not strict: there may be no room for the last ones.
        for payload, sequence, version, key, attempt, crashes, created, expires, trace, ttl in zip(
            payloads, *columns[:-1], strict=False
        ):
            job = tuple_of(
                Job,
                (
                    ids[start : start + 32], tenant, sequence, RUNNING, model, version, 0, priority, key, attempt + 1,
                    crashes, created, now, None, expires, None, trace,
                ),
            )  # fmt: skip
            start += 32
            if isinstance(payload, PayloadLost):
                _log.error("job_request_lost", job=job.id, reason=str(payload))
                self._end(sequence, JobState.FAILED, self._lost)
                self.damaged.append(job.id)
            else:
                self._claims.add(job, owner, ttl)
                claimed.append(tuple_of(Claimed, (job, payload)))
        return claimed

    def _finish(self, run: list[Finish]) -> list[Outcome]:
        now = self._now
        outcomes = self._claims.end(run, now)
        unknown = [
            (
                operation.state,
                operation.served_version,
                now,
                key_of(operation.id),
                operation.owner,
                operation.attempt,
                n,
            )
            for n, operation in enumerate(run)
            if outcomes[n] is None
        ]
        for row in self._do_many(sql.FINISH, unknown):
            outcomes[row[sql.WIDTH]] = job_of(row)
        self.bodies.replace(
            [(job.sequence, operation.outcome) for job, operation in zip(outcomes, run, strict=True) if job]
        )
        return [outcome or ClaimLost() for outcome in outcomes]

    def _release(self, run: list[Release]) -> list[Outcome]:
        now = self._now
        outcomes: list[Outcome] = [None] * len(run)
        claims = [
            (operation.refund, now, operation.delay, key_of(operation.id), operation.owner, operation.attempt, number)
            for number, operation in enumerate(run)
        ]
        for row in self._do_many(sql.RELEASE, claims):
            number, suspect, ready = row[sql.WIDTH :]
            outcomes[number] = job = job_of(row)
            self._claims.drop(job.id)
            self._lines.add((job.model, job.tenant, job.priority, suspect), job.sequence, ready)
        return [outcome or ClaimLost() for outcome in outcomes]

    def _cancel(self, operation: Cancel) -> Job | JobNotFound:
        row = self._row(operation, ", suspect")
        if row is None:
            return JobNotFound(f"there is no job {operation.id}")
        job = job_of(row)
        if job.state in FINAL:
            return job
        if job.state is JobState.PENDING:
            self._lines.remove((job.model, job.tenant, job.priority, row[sql.WIDTH]), [job.sequence])
        return self._end(job.sequence, JobState.CANCELLED, None)

    def _get(self, operation: Get) -> Found | ForebayError:
        row = self._row(operation)
        if row is None:
            return JobNotFound(f"there is no job {operation.id}")
        job = job_of(row)
        if job.state not in _HAVE_OUTCOME:
            return Found(job, None)
        outcome = self.bodies.of(job.sequence)
        if isinstance(outcome, PayloadLost):
            error = Internal()
            _log.error("job_outcome_lost", job=job.id, reason=str(outcome), error_id=error.error_id)
            return error
        return Found(job, outcome)

    def _row(self, operation: Get | Cancel, more: str = "") -> Row | None:
        select = f"SELECT {sql.JOB}{more} FROM jobs WHERE id = ? AND tenant = ?"
        row: Row | None = self._do(select, (key_of(operation.id), operation.tenant)).get
        return row

    def _page(self, operation: Page) -> list[Job]:
        rows: list[Row] = []
        for state in operation.states or JobState:
            model = "AND model = ?5" if operation.model else ""
            select = f"""
                SELECT {sql.JOB} FROM jobs INDEXED BY pages WHERE tenant = ?1 AND state = ?2 AND sequence < ?3 {model}
                ORDER BY sequence DESC LIMIT ?4
            """
            values: Row = (operation.tenant, state, operation.before or _ALL_SEQUENCES, operation.limit)
            rows += self._do(select, (*values, operation.model) if operation.model else values)
        rows.sort(key=lambda row: -row[2])
        return [job_of(row) for row in rows[: operation.limit]]

    def _end(self, sequence: int, state: JobState, outcome: bytes | None) -> Job:
        row = self._do(sql.END_ONE, (state, 0, self._now, sequence)).get
        self.bodies.replace([(sequence, outcome)])
        job = job_of(row)
        self._claims.drop(job.id)
        return job

    # --- Time -----------------------------------------------------------------------------------------------------

    def _alive(self, owner: str) -> bool:
        return self._owners.get(owner, -inf) > self._instant

    def _renew(self, operation: Renew) -> bool:
        owner = operation.owner
        if owner in self._owners and not self._alive(owner):
            self._owners[owner] = -inf
            return False
        self._owners[owner] = self._instant + operation.seconds if operation.seconds else -inf
        return True

    def _reap(self, operation: Reap) -> list[Job]:
        changed = []
        for sequence, state, *flow in self._do(sql.LATE, (self._now, operation.limit)).fetchall():
            if state == JobState.PENDING:
                self._lines.remove((flow[0], flow[1], flow[2], flow[3]), [sequence])
            changed.append(self._end(sequence, JobState.EXPIRED, operation.expired))
        running = self._do(f"SELECT DISTINCT owner FROM jobs INDEXED BY claims WHERE state = {JobState.RUNNING:d}")
        orphans: list[int] = []
        for (owner,) in running.fetchall():
            if not self._alive(owner):
                orphans += (row[0] for row in self._do(sql.ORPHANS, (owner, operation.limit)))
        for sequence in sorted(orphans)[: operation.limit]:
            row = self._do(sql.TAKE_OVER, (sequence,)).get
            job = job_of(row)
            self._claims.drop(job.id)
            if job.attempt >= operation.max_attempts:
                job = self._end(sequence, JobState.FAILED, operation.crashed)
            else:
                self._lines.add((job.model, job.tenant, job.priority, row[sql.WIDTH]), sequence)
            changed.append(job)
        return changed

    def _purge(self, operation: Purge) -> int:
        over = self._do(sql.OVER, (self._now, operation.limit)).fetchall()
        if over:
            self.bodies.remove([row[0] for row in over])
            self._do_many("DELETE FROM jobs WHERE sequence = ?", over)
            self._do("UPDATE taken_in SET sequence = ?", (self._sequence,))
        return len(over)

    def _backlog(self, _operation: Backlog) -> list[Waiting]:
        return self._lines.waiting(self._now)

    def _line_end(self, flow: FlowKey, last: bool) -> int:  # noqa: FBT001  # as `Lines` asks
        sequence: int = self._do(f"{sql.LINE_END} DESC LIMIT 1" if last else f"{sql.LINE_END} LIMIT 1", flow).get
        return sequence

    # --- Webhooks -------------------------------------------------------------------------------------------------

    def _deliveries(self, operation: Deliveries) -> list[Delivery]:
        rows = self._do(sql.DUE, (self._now, operation.limit)).fetchall()
        again = self._now + operation.seconds
        take = "UPDATE jobs SET message_due = ?, message_tries = message_tries + 1 WHERE sequence = ?"
        self._do_many(take, [(again, row[2]) for row in rows])
        return [Delivery(job_of(row), Webhook(row[sql.WIDTH], row[sql.WIDTH + 1]), row[sql.WIDTH + 2]) for row in rows]

    def _delivered(self, operation: Delivered) -> None:
        update = "UPDATE jobs SET message_due = NULL WHERE id = ? AND message_due IS NOT NULL"
        self._do(update, (key_of(operation.id),))

    def _undelivered(self, operation: Undelivered) -> None:
        update = "UPDATE jobs SET message_due = ? WHERE id = ? AND message_due IS NOT NULL"
        self._do(update, (self._now + operation.delay, key_of(operation.id)))
