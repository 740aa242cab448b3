"""A group of operations as statements, and the rows that come back as outcomes.

All statements of a group are sent before the first answer is read (pipeline mode), so a group costs two round trips,
however many operations it has. And operations that do not disturb each other go together into one statement: neighbours
among `Submit`, `Finish`, `Release`, `Cancel` and `Get` that are about different jobs commute, so their order among
themselves is free. One case can't be told beforehand: a `Submit` whose key stands for a job that another of these
changes. Where such a key comes after a change, its job is looked up once more after all changes.
"""

from collections.abc import Callable, Sequence
from math import nan
from typing import Any, Final

from forebay_server.errors import JobKeyReused, JobNotFound
from forebay_server.jobs import postgres_statements as sql
from forebay_server.jobs.postgres_arrays import Blobs, Doubles, Longs, Texts, escaped, unescaped
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import (
    Backlog,
    Cancel,
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
    Webhook,
)

MOST_BYTES: Final = 16 << 20
"""Of payloads in one statement; the server holds it in memory several times."""
STATES: Final = {int(state): state for state in JobState}
_WIDTH: Final = len(sql.COLUMNS)

Mergeable = Submit | Finish | Release | Cancel | Get
Rows = Sequence[tuple[Any, ...]]
Take = Callable[[Rows], None]


class Disturbed(Exception):
    """Other processes changed the same jobs so often that the group has to be done again."""


def job_of(row: tuple[Any, ...]) -> Job:
    """A job from the columns `sql.COLUMNS`, which may be followed by others."""
    job = Job(row[0], row[1], row[2], STATES[row[3]], *row[4:_WIDTH])
    if "\\" in job.tenant or "\\" in job.model or "\\" in job.version or "\\" in job.request_id:
        return job._replace(
            tenant=unescaped(job.tenant),
            model=unescaped(job.model),
            version=unescaped(job.version),
            request_id=unescaped(job.request_id),
        )
    return job


class _Segment:
    """Operations of a group that may go in any order, with their places."""

    def __init__(self) -> None:
        self.submits: list[tuple[int, Submit]] = []
        self.late: list[tuple[int, Submit]] = []
        """Those of `submits` that have a key and come after a change."""
        self.finishes: list[tuple[int, Finish]] = []
        self.releases: list[tuple[int, Release]] = []
        self.cancels: list[tuple[int, Cancel]] = []
        self.gets: list[tuple[int, Get]] = []
        self._keys: set[tuple[str, str]] = set()
        self._read: set[str] = set()
        self.changed: dict[str, int] = {}
        """The place of the operation that changes a job, by its id."""
        self._size = 0

    def add(self, place: int, operation: Mergeable) -> bool:
        """Takes it in, if it disturbs none of the others."""
        if operation.id in self.changed:
            return False
        if isinstance(operation, Get):
            self._read.add(operation.id)
            self.gets.append((place, operation))
            return True
        if operation.id in self._read:
            return False
        if isinstance(operation, Submit):
            return self._add_submit(place, operation)
        if isinstance(operation, Finish):
            if not self._fits(operation.outcome):
                return False
            self.finishes.append((place, operation))
        elif isinstance(operation, Release):
            self.releases.append((place, operation))
        else:
            self.cancels.append((place, operation))
        self.changed[operation.id] = place
        return True

    def _add_submit(self, place: int, submit: Submit) -> bool:
        key = submit.tenant, submit.request_id
        if key in self._keys or not self._fits(submit.payload):
            return False
        if submit.request_id:
            self._keys.add(key)
            if self.changed:
                self.late.append((place, submit))
        self._read.add(submit.id)
        self.submits.append((place, submit))
        return True

    def _fits(self, data: bytes) -> bool:
        if self._size and self._size + len(data) > MOST_BYTES:
            return False
        self._size += len(data)
        return True


class Group:
    """Operations that become one transaction. `clock`: seconds since 1970; None: the database's clock.

    Used in steps: run each of `steps` and give its rows to the function with it; then again as long as there are new
    `steps`.
    """

    def __init__(self, operations: Sequence[Operation], now: float | None) -> None:
        self.outcomes: list[Outcome] = [None] * len(operations)
        self.steps: list[tuple[str, dict[str, Any], Take]] = []
        self.wrote = False
        """Whether anything changed."""
        self.changed: set[str] = set()
        """Jobs that did."""
        self.waiting = False
        """Whether there is something new to be claimed."""
        self.now = now
        self._tries = 0
        alone: dict[type, Callable[[int, Any], None]] = {
            Claim: self._claim,
            Page: self._page,
            Renew: self._renew,
            Reap: self._reap,
            Purge: self._purge,
            Backlog: self._backlog,
            Deliveries: self._deliveries,
            Delivered: self._delivered,
            Undelivered: self._undelivered,
        }
        segment = _Segment()
        for place, operation in enumerate(operations):
            if isinstance(operation, Mergeable):
                if not segment.add(place, operation):
                    segment = self._close(segment)
                    segment.add(place, operation)
            else:
                segment = self._close(segment)
                alone[type(operation)](place, operation)
        self._close(segment)

    def _step(self, statement: str, take: Take, **parameters: Any) -> None:
        self.steps.append((statement, parameters | {"now": self.now}, take))

    def _changes(self, rows: Rows) -> list[Job]:
        """The jobs in these rows, all of which were changed by this group."""
        jobs = [job_of(row) for row in rows]
        self._note(jobs)
        return jobs

    def _note(self, jobs: Sequence[Job]) -> None:
        if jobs:
            self.wrote = True
            self.changed.update(job.id for job in jobs)
            self.waiting = self.waiting or any(job.state is JobState.PENDING for job in jobs)

    # --- What goes together ---------------------------------------------------------------------------------------

    def _close(self, segment: _Segment) -> _Segment:
        """Makes statements of a segment; a new one."""
        if segment.submits:
            self._submit(segment.submits)
        if segment.finishes:
            self._finish(segment.finishes)
        if segment.releases:
            self._release(segment.releases)
        if segment.cancels:
            self._cancel(segment.cancels)
        if segment.gets:
            self._get(segment.gets)
        if segment.late:
            self._look_up(segment.late, segment.changed)
        return _Segment()

    def _submit(self, submits: list[tuple[int, Submit]]) -> None:
        operations = [submit for _, submit in submits]

        def take(rows: Rows) -> None:
            new = {row[1]: row for row in rows if row[0] == 0}
            hits = {row[0]: row for row in rows if row[0] != 0}
            again = []
            for index, (place, submit) in enumerate(submits):
                row = new.get(submit.id)
                if row:
                    job = job_of(row[1:])
                    self.outcomes[place] = Submitted(job, created=True)
                    self._note([job])
                elif index + 1 in hits:
                    self.outcomes[place] = _known(submit, hits[index + 1])
                else:  # Somebody else has taken it in since the statement began.
                    again.append((place, submit))
            if again:
                self._once_more()
                self._submit(again)

        self._step(
            sql.SUBMIT,
            take,
            **_keys(operations),
            fingerprints=Blobs(each.fingerprint for each in operations),
            models=Texts(each.model for each in operations),
            versions=Texts(each.version for each in operations),
            priorities=Longs(each.priority for each in operations),
            payloads=Blobs(each.payload for each in operations),
            expire_afters=Doubles(nan if each.expire_after is None else each.expire_after for each in operations),
            ttls=Doubles(each.ttl for each in operations),
            urls=Texts(each.webhook.url if each.webhook else "" for each in operations),
            secrets=Texts(each.webhook.secret if each.webhook else "" for each in operations),
            traceparents=Texts(each.traceparent for each in operations),
        )

    def _look_up(self, submits: list[tuple[int, Submit]], changed: dict[str, int]) -> None:
        def take(rows: Rows) -> None:
            for row in rows:
                place, submit = submits[row[0] - 1]
                if changed.get(row[1], place) < place:
                    self.outcomes[place] = _known(submit, row)

        self._step(sql.LOOK_UP, take, **_keys([submit for _, submit in submits]))

    def _finish(self, finishes: list[tuple[int, Finish]]) -> None:
        operations = sorted((finish for _, finish in finishes), key=lambda finish: finish.id)
        self._step(
            sql.FINISH,
            self._holders(finishes),
            ids=Texts(each.id for each in operations),
            owners=Texts(each.owner for each in operations),
            attempts=Longs(each.attempt for each in operations),
            states=Longs(each.state for each in operations),
            outcomes=Blobs(each.outcome for each in operations),
            versions=Longs(each.served_version for each in operations),
        )

    def _release(self, releases: list[tuple[int, Release]]) -> None:
        operations = sorted((release for _, release in releases), key=lambda release: release.id)
        self._step(
            sql.RELEASE,
            self._holders(releases),
            ids=Texts(each.id for each in operations),
            owners=Texts(each.owner for each in operations),
            attempts=Longs(each.attempt for each in operations),
            delays=Doubles(each.delay for each in operations),
            refunds=Longs(each.refund for each in operations),
        )

    def _holders(self, operations: Sequence[tuple[int, Finish | Release]]) -> Take:
        def take(rows: Rows) -> None:
            jobs = {job.id: job for job in self._changes(rows)}
            for place, operation in operations:
                self.outcomes[place] = jobs.get(operation.id) or ClaimLost()

        return take

    def _cancel(self, cancels: list[tuple[int, Cancel]]) -> None:
        operations = sorted((cancel for _, cancel in cancels), key=lambda cancel: cancel.id)

        def take(rows: Rows) -> None:
            self._changes([row[1:] for row in rows if row[0]])
            jobs = {row[1]: job_of(row[1:]) for row in rows}
            again = []
            for place, cancel in cancels:
                job = jobs.get(cancel.id)
                self.outcomes[place] = job or _missing(cancel.id)
                if job and job.state in {JobState.PENDING, JobState.RUNNING}:
                    again.append((place, cancel))
            if again:  # Somebody else has given it an end since the statement began.
                self._once_more()
                self._cancel(again)

        self._step(
            sql.CANCEL,
            take,
            ids=Texts(each.id for each in operations),
            tenants=Texts(each.tenant for each in operations),
        )

    def _get(self, gets: list[tuple[int, Get]]) -> None:
        def take(rows: Rows) -> None:
            founds = {row[0]: Found(job_of(row), row[_WIDTH]) for row in rows}
            for place, get in gets:
                found = founds.get(get.id)
                self.outcomes[place] = found if found and found.job.tenant == get.tenant else _missing(get.id)

        self._step(sql.GET, take, ids=Texts(get.id for _, get in gets), tenants=Texts(get.tenant for _, get in gets))

    def _once_more(self) -> None:
        self._tries += 1
        if self._tries > 8:
            raise Disturbed

    # --- What goes alone ------------------------------------------------------------------------------------------

    def _claim(self, place: int, claim: Claim) -> None:
        def take(rows: Rows) -> None:
            rows = sorted(rows, key=lambda row: (row[_WIDTH], row[2]))
            self.outcomes[place] = [
                Claimed(job, row[_WIDTH + 1]) for job, row in zip(self._changes(rows), rows, strict=True)
            ]

        flow = claim.flow
        self._step(
            sql.CLAIM,
            take,
            owner=escaped(claim.owner),
            model=escaped(flow.model),
            tenant=escaped(flow.tenant),
            priority=flow.priority,
            suspect=flow.suspect,
            limit=claim.limit,
            nbytes=claim.nbytes,
        )

    def _page(self, place: int, page: Page) -> None:
        def take(rows: Rows) -> None:
            self.outcomes[place] = [job_of(row) for row in rows]

        self._step(
            sql.PAGE,
            take,
            tenant=escaped(page.tenant),
            states=Longs(sorted(set(page.states)) or STATES),
            model=escaped(page.model),
            before=page.before or 2**63 - 1,
            limit=page.limit,
        )

    def _renew(self, place: int, renew: Renew) -> None:
        def take(rows: Rows) -> None:
            self.wrote = True
            self.outcomes[place] = rows[0][0]

        self._step(sql.RENEW, take, owner=escaped(renew.owner), seconds=renew.seconds)

    def _reap(self, place: int, reap: Reap) -> None:
        changed: list[Job] = []
        self.outcomes[place] = changed

        def expired(rows: Rows) -> None:
            changed.extend(sorted(self._changes(rows), key=lambda job: (job.expires, job.sequence)))

        def taken(rows: Rows) -> None:
            changed.extend(sorted(self._changes(rows), key=lambda job: job.sequence))

        self._step(sql.EXPIRE, expired, limit=reap.limit, outcome=reap.expired)
        self._step(sql.TAKE_OVER, taken, limit=reap.limit, most=reap.max_attempts, outcome=reap.crashed)

    def _purge(self, place: int, purge: Purge) -> None:
        def take(rows: Rows) -> None:
            self.wrote = self.wrote or bool(rows)
            self.outcomes[place] = len(rows)

        self._step(sql.PURGE, take, limit=purge.limit)

    def _backlog(self, place: int, _backlog: Backlog) -> None:
        def take(rows: Rows) -> None:
            self.outcomes[place] = sorted(
                Waiting(Flow(unescaped(model), unescaped(tenant), priority, suspect), *figures)
                for model, tenant, priority, suspect, *figures in rows
            )

        self._step(sql.BACKLOG, take)

    def _deliveries(self, place: int, deliveries: Deliveries) -> None:
        def take(rows: Rows) -> None:
            self.wrote = self.wrote or bool(rows)
            self.outcomes[place] = [
                Delivery(job_of(row), Webhook(unescaped(row[_WIDTH + 1]), unescaped(row[_WIDTH + 2])), row[_WIDTH + 3])
                for row in sorted(rows, key=lambda row: (row[_WIDTH], row[2]))
            ]

        self._step(sql.DELIVERIES, take, limit=deliveries.limit, seconds=deliveries.seconds)

    def _delivered(self, _place: int, delivered: Delivered) -> None:
        self._step(sql.DELIVERED, self._silent, id=escaped(delivered.id))

    def _undelivered(self, _place: int, undelivered: Undelivered) -> None:
        self._step(sql.UNDELIVERED, self._silent, id=escaped(undelivered.id), delay=undelivered.delay)

    def _silent(self, _rows: Rows) -> None:
        self.wrote = True


def _keys(submits: Sequence[Submit]) -> dict[str, Texts]:
    return {
        "ids": Texts(each.id for each in submits),
        "tenants": Texts(each.tenant for each in submits),
        "keys": Texts(each.request_id for each in submits),
    }


def _known(submit: Submit, row: tuple[Any, ...]) -> Submitted | JobKeyReused:
    """The answer for a job that is there already, as `hit` of the statement has it."""
    job, fingerprint = job_of(row[1:]), row[1 + _WIDTH]
    if (job.tenant, fingerprint) != (submit.tenant, submit.fingerprint):
        return JobKeyReused(f"the request id {submit.request_id!r} stands for a job with another payload")
    return Submitted(job, created=job.id == submit.id)


def _missing(job_id: str) -> JobNotFound:
    return JobNotFound(f"there is no job {job_id}")
