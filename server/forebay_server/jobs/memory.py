"""The store as a dictionary: not durable, for tests, and the plainest statement of what every store does.

It scans where the others have an index. The differential test holds the others to it.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any

from forebay_server.errors import JobKeyReused, JobNotFound
from forebay_server.jobs.states import FINAL, JobState
from forebay_server.jobs.store import (
    DUE_ANYWAY,
    SUSPECT_CRASHES,
    Backlog,
    Cancel,
    Changed,
    Claim,
    Claimed,
    ClaimLost,
    Delivered,
    Deliveries,
    Delivery,
    Finish,
    Flow,
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
)


class _Row:
    """A job and what only its store knows of it."""

    __slots__ = ("delivery", "job", "outcome", "owner", "payload", "ready", "submit")

    def __init__(self, submit: Submit, job: Job) -> None:
        self.submit = submit
        self.job = job
        self.payload = submit.payload
        self.outcome: bytes | None = None
        self.owner = ""
        """Who holds it; only while it is RUNNING."""
        self.ready = 0.0
        """When it may be claimed; 0: at any time, also if the clock is set back."""
        self.delivery: tuple[float, int] | None = None
        """When its webhook message is due, and how many times it was taken."""

    @property
    def flow(self) -> Flow:
        job = self.job
        return Flow(job.model, job.tenant, job.priority, job.crashes >= SUSPECT_CRASHES)

    @property
    def urgency(self) -> tuple[float, int]:
        job = self.job
        return min(inf if job.expires is None else job.expires, job.created + DUE_ANYWAY), job.sequence

    def expired(self, now: float) -> bool:
        return self.job.expires is not None and self.job.expires <= now


class MemoryStore:
    """Keeps jobs in this process only. `clock`: seconds since 1970."""

    name = "memory"

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._now = 0.0
        self._rows: dict[str, _Row] = {}
        self._keys: dict[tuple[str, str], _Row] = {}
        """By (tenant, request id)."""
        self._owners: dict[str, float] = {}
        """When their lives end; -inf once that was noticed."""
        self._sequence = 0
        self._acts: dict[type, Callable[[Any], Outcome]] = {
            Submit: self._submit,
            Claim: self._claim,
            Finish: self._finish,
            Release: self._release,
            Cancel: self._cancel,
            Get: self._get,
            Page: self._page,
            Renew: self._renew,
            Reap: self._reap,
            Purge: self._purge,
            Backlog: self._backlog,
            Deliveries: self._deliveries,
            Delivered: self._delivered,
            Undelivered: self._undelivered,
        }

    def open(self, changed: Changed) -> None:
        """Nothing is there to be opened, and nobody else makes changes."""

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Carries out the operations, one after the other, at one instant."""
        self._now = self._clock()
        return [self._acts[type(operation)](operation) for operation in operations]

    def close(self) -> None:
        """What it keeps ends with the object."""

    def _alive(self, owner: str) -> bool:
        return self._owners.get(owner, -inf) > self._now

    def _end(self, row: _Row, state: JobState, outcome: bytes | None, served_version: int = 0) -> Job:
        ended = self._now
        row.job = row.job._replace(
            state=state, served_version=served_version, ended=ended, purges=ended + row.submit.ttl
        )
        row.owner, row.payload, row.outcome = "", b"", outcome
        if row.submit.webhook:
            row.delivery = (ended, 0)
        return row.job

    def _held(self, operation: Finish | Release) -> _Row | None:
        row = self._rows.get(operation.id)
        if row and row.job.state is JobState.RUNNING:
            claim = row.owner, row.job.attempt
            return row if claim == (operation.owner, operation.attempt) else None
        return None

    def _sorted(self, rows: Iterable[_Row], key: Callable[[_Row], Any], limit: int) -> list[_Row]:
        return sorted(rows, key=key)[:limit]

    # --- Jobs -----------------------------------------------------------------------------------------------------

    def _submit(self, operation: Submit) -> Submitted | JobKeyReused:
        row = self._rows.get(operation.id)
        if row is None and operation.request_id:
            row = self._keys.get((operation.tenant, operation.request_id))
        if row:
            if (row.job.tenant, row.submit.fingerprint) != (operation.tenant, operation.fingerprint):
                return JobKeyReused(f"the request id {operation.request_id!r} stands for a job with another payload")
            return Submitted(row.job, created=row.job.id == operation.id)
        self._sequence += 1
        job = Job(
            id=operation.id,
            tenant=operation.tenant,
            sequence=self._sequence,
            state=JobState.PENDING,
            model=operation.model,
            version=operation.version,
            served_version=0,
            priority=operation.priority,
            request_id=operation.request_id,
            attempt=0,
            crashes=0,
            created=self._now,
            started=None,
            ended=None,
            expires=None if operation.expire_after is None else self._now + operation.expire_after,
            purges=None,
            traceparent=operation.traceparent,
        )
        row = self._rows[operation.id] = _Row(operation, job)
        if operation.request_id:
            self._keys[operation.tenant, operation.request_id] = row
        return Submitted(job, created=True)

    def _claim(self, operation: Claim) -> list[Claimed]:
        if not self._alive(operation.owner):
            return []
        now = self._now
        waiting = (
            row
            for row in self._rows.values()
            if row.job.state is JobState.PENDING
            and row.flow == operation.flow
            and row.ready <= now
            and not row.expired(now)
        )
        rows: list[_Row] = []
        room = operation.nbytes
        for row in self._sorted(waiting, lambda row: row.urgency, operation.limit):
            if rows and room <= 0:
                break
            room -= len(row.payload)
            rows.append(row)
        for row in rows:
            row.owner = operation.owner
            row.job = row.job._replace(state=JobState.RUNNING, attempt=row.job.attempt + 1, started=now)
        return [Claimed(row.job, row.payload) for row in rows]

    def _finish(self, operation: Finish) -> Job | ClaimLost:
        row = self._held(operation)
        return self._end(row, operation.state, operation.outcome, operation.served_version) if row else ClaimLost()

    def _release(self, operation: Release) -> Job | ClaimLost:
        row = self._held(operation)
        if row is None:
            return ClaimLost()
        row.owner, row.ready = "", self._now + operation.delay if operation.delay else 0.0
        row.job = row.job._replace(state=JobState.PENDING, attempt=row.job.attempt - operation.refund)
        return row.job

    def _cancel(self, operation: Cancel) -> Job | JobNotFound:
        row = self._rows.get(operation.id)
        if row is None or row.job.tenant != operation.tenant:
            return JobNotFound(f"there is no job {operation.id}")
        return row.job if row.job.state in FINAL else self._end(row, JobState.CANCELLED, None)

    def _get(self, operation: Get) -> Found | JobNotFound:
        row = self._rows.get(operation.id)
        if row is None or row.job.tenant != operation.tenant:
            return JobNotFound(f"there is no job {operation.id}")
        return Found(row.job, row.outcome)

    def _page(self, operation: Page) -> list[Job]:
        wanted = (
            row
            for row in self._rows.values()
            if row.job.tenant == operation.tenant
            and (not operation.states or row.job.state in operation.states)
            and (not operation.model or row.job.model == operation.model)
            and (not operation.before or row.job.sequence < operation.before)
        )
        return [row.job for row in self._sorted(wanted, lambda row: -row.job.sequence, operation.limit)]

    # --- Time -----------------------------------------------------------------------------------------------------

    def _renew(self, operation: Renew) -> bool:
        if operation.owner in self._owners and not self._alive(operation.owner):
            self._owners[operation.owner] = -inf
            return False
        self._owners[operation.owner] = self._now + operation.seconds if operation.seconds else -inf
        return True

    def _reap(self, operation: Reap) -> list[Job]:
        late = (row for row in self._rows.values() if row.job.state not in FINAL and row.expired(self._now))
        expired = self._sorted(late, lambda row: (row.job.expires, row.job.sequence), operation.limit)
        changed = [self._end(row, JobState.EXPIRED, operation.expired) for row in expired]
        left = (row for row in self._rows.values() if row.job.state is JobState.RUNNING and not self._alive(row.owner))
        for row in self._sorted(left, lambda row: row.job.sequence, operation.limit):
            row.job = row.job._replace(crashes=row.job.crashes + 1)
            if row.job.attempt >= operation.max_attempts:
                changed.append(self._end(row, JobState.FAILED, operation.crashed))
            else:
                row.owner, row.ready = "", 0.0
                row.job = row.job._replace(state=JobState.PENDING)
                changed.append(row.job)
        return changed

    def _purge(self, operation: Purge) -> int:
        over = (
            row
            for row in self._rows.values()
            if row.job.purges is not None and row.job.purges <= self._now and row.delivery is None
        )
        rows = self._sorted(over, lambda row: (row.job.purges, row.job.sequence), operation.limit)
        for row in rows:
            del self._rows[row.job.id]
            self._keys.pop((row.job.tenant, row.job.request_id), None)
        return len(rows)

    def _backlog(self, _operation: Backlog) -> list[Waiting]:
        flows: dict[Flow, list[_Row]] = {}
        for row in self._rows.values():
            if row.job.state is JobState.PENDING:
                flows.setdefault(row.flow, []).append(row)
        return [
            Waiting(
                flow,
                jobs=len(rows),
                first=min(row.job.sequence for row in rows),
                last=max(row.job.sequence for row in rows),
                ready=max(0.0, min(row.ready for row in rows) - self._now),
            )
            for flow, rows in sorted(flows.items())
        ]

    # --- Webhooks -------------------------------------------------------------------------------------------------

    def _deliveries(self, operation: Deliveries) -> list[Delivery]:
        due = [
            (row.delivery, row.job.sequence, row, row.submit.webhook)
            for row in self._rows.values()
            if row.delivery and row.submit.webhook and row.delivery[0] <= self._now
        ]
        taken = []
        for (_, tries), _, row, webhook in sorted(due, key=lambda item: (item[0][0], item[1]))[: operation.limit]:
            row.delivery = (self._now + operation.seconds, tries + 1)
            taken.append(Delivery(row.job, webhook, tries))
        return taken

    def _delivered(self, operation: Delivered) -> None:
        row = self._rows.get(operation.id)
        if row:
            row.delivery = None

    def _undelivered(self, operation: Undelivered) -> None:
        row = self._rows.get(operation.id)
        if row and row.delivery:
            row.delivery = (self._now + operation.delay, row.delivery[1])
