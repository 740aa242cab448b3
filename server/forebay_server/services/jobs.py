"""`forebay.v1.JobService`: translates between the contract and the desk of `jobs`, where jobs are handed in.

Every handler reads its message, asks the desk, and answers when the desk does; what the desk has to say comes back in
the dispatcher thread, at once or later. The calls that wait (`Result` with `wait`, `WatchJob`) are remembered here, so
that they can be let go when their caller goes. The desk bounds how many there are, and ends them when the server
drains.

Whether a job exists may not be told to strangers, nor by the way in which it is denied: an id that can't be one is
looked up like any other, as one that nobody has, and there is one answer to all that are not found.

An error of a job is no error of these calls: it is in the job's outcome.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, Protocol

from google.protobuf.message import DecodeError

from forebay.v1 import job_service_pb2
from forebay_server.errors import ForebayError, InvalidRequest, JobNotFound, MessageTooLarge
from forebay_server.jobs.states import FINAL, JobState
from forebay_server.jobs.store import Found, Job, Page, Submit
from forebay_server.services.complaints import Complaints
from forebay_server.services.intake import Intake
from forebay_server.services.job_messages import job_part, page_start, page_token, result
from forebay_server.services.models import DEFAULT_PAGE, MAX_PAGE
from forebay_server.services.service import Endpoint, Handler, Outbox, Service
from forebay_server.services.status import failure, internal
from forebay_server.services.submissions import Submissions, checked_seconds
from forebay_server.services.validation import check_name
from forebay_server.varint import varint
from forebay_server.wire.port import FAIL, FINISH, RESPOND, SEND, Event, Failure, Method, MethodKind, Peer

NAME: str = job_service_pb2.DESCRIPTOR.services_by_name["JobService"].full_name
"""Asked of the contract, which thereby is known to reflection."""

MARGIN: Final = 0.1
"""A waiting `Result` is answered when this part of the time that its call has is still left, so that the answer
arrives before the deadline, ..."""
LONGEST_MARGIN: Final = 0.5
"""... but at most so many seconds before it."""

NOT_FOUND = failure(JobNotFound("there is no such job"))

_ID = re.compile(r"[0-9a-f]{32}")
_NOBODY: Final = "0" * 32
"""An id that no job has (one in 2^128 may)."""
_STATES: Final = frozenset(map(int, JobState))
_NEXT_TOKEN: Final = job_service_pb2.ListJobsResponse(next_page_token="x").SerializeToString()[:1]  # noqa: S106  # no password


class Desk(Protocol):
    """Where jobs are handed in and asked for; `jobs.desk.Desk`, which says what each does.

    Nobody is told anything from within the call that asks for it.
    """

    def submit(self, job: Submit, done: Callable[[Job | ForebayError], None]) -> None:
        """Takes in a job."""

    def look(self, job_id: str, tenant: str, done: Callable[[Found | ForebayError], None]) -> None:
        """Tells a job as it is."""

    def wait(
        self,
        job_id: str,
        tenant: str,
        connection: Hashable,
        until: float,
        done: Callable[[Found | ForebayError], None],
    ) -> Any:
        """Tells a job when it is final, or at `until` as it is then; gives what `leave` takes."""

    def watch(self, job_id: str, tenant: str, connection: Hashable, tell: Callable[[Job | ForebayError], None]) -> Any:
        """Tells a job now and at each change, until it is final or there is an error; gives what `leave` takes."""

    def leave(self, waiter: Any) -> None:
        """Forgets one who waits or watches. Harmless for one who has been told all."""

    def cancel(self, job_id: str, tenant: str, done: Callable[[Job | ForebayError], None]) -> None:
        """Cancels a job."""

    def page(self, page: Page, done: Callable[[Sequence[Job] | ForebayError], None]) -> None:
        """Lists jobs."""

    def prospect(self, job: Job) -> tuple[int, float | None]:
        """About how many jobs are ahead of a PENDING one, and about how many seconds it waits (None: not known)."""


class JobService:
    """Durable jobs over gRPC.

    Args:
        desk: Who knows the jobs.
        intake: Knows callers and their deadlines.
        submissions: Reads what is handed in.
        outbox: Where answers go.
        max_send_bytes: The largest message that the wire sends.
        complaints: Told of calls that were refused or have failed.
        traceparent: The trace context of a call.
    """

    def __init__(
        self,
        desk: Desk,
        intake: Intake,
        submissions: Submissions,
        outbox: Outbox,
        *,
        max_send_bytes: int = 16 << 20,
        complaints: Complaints | None = None,
        traceparent: Callable[[int], str] | None = None,
    ) -> None:
        self._traceparent = traceparent
        self.desk = desk
        self.outbox = outbox
        self._intake = intake
        self._submissions = submissions
        self._max_send_bytes = max_send_bytes
        self._complaints = complaints or Complaints(intake.clock)
        self._waiting: dict[int, tuple[Any, Peer | None]] = {}
        """By call, what the desk calls a waiter, and who it is."""
        self._watches: dict[int, _Watch] = {}

    def service(self) -> Service:
        """The service for the dispatcher."""
        return Service(
            name=NAME,
            endpoints=[
                self._unary("Submit", self._submit),
                Endpoint(
                    method=Method(path=f"/{NAME}/Result", kind=MethodKind.UNARY),
                    on_call=self._handler("Result", self._result),
                    on_cancel=self._stop_waiting,
                ),
                Endpoint(
                    method=Method(path=f"/{NAME}/WatchJob", kind=MethodKind.SERVER_STREAM),
                    on_call=self._handler("WatchJob", self._watch),
                    on_cancel=self._stop_watching,
                    on_full=self._filled,
                    on_writable=self._writable,
                ),
                self._unary("CancelJob", self._cancel),
                self._unary("ListJobs", self._list),
            ],
        )

    @property
    def waiting(self) -> int:
        """Calls that wait for something to happen to a job."""
        return len(self._waiting) + len(self._watches)

    # --- Calls --------------------------------------------------------------------------------------------------------

    def _submit(self, event: Event) -> None:
        _, call, _, body, _, peer, metadata = event
        traceparent = "" if self._traceparent is None else self._traceparent(call)
        job = self._submissions.read(body or b"", self._intake.tenant(peer, metadata), traceparent)
        self.desk.submit(job, self._answer(call, "Submit", self.told))

    def _result(self, event: Event) -> None:
        _, call, _, body, deadline, peer, metadata = event
        request = job_service_pb2.ResultRequest.FromString(body or b"")
        wait = _wait(request)
        job_id = _known_form(request.id)
        tenant = self._intake.tenant(peer, metadata)
        now = self._intake.clock()
        until = min(now + wait, self._latest(deadline, now))
        answer = self._answer(call, "Result", self._found)
        if until <= now:
            self.desk.look(job_id, tenant, answer)
            return

        def done(outcome: Found | ForebayError) -> None:
            if self._waiting.pop(call, None) is not None:
                answer(outcome)

        # The peer is kept so that no other connection gets the same `id` meanwhile.
        self._waiting[call] = self.desk.wait(job_id, tenant, id(peer), until, done), peer

    def _watch(self, event: Event) -> None:
        _, call, _, body, _, peer, metadata = event
        request = job_service_pb2.WatchJobRequest.FromString(body or b"")
        tenant = self._intake.tenant(peer, metadata)
        watch = _Watch(self, call, peer)
        watch.waiter = self.desk.watch(_known_form(request.id), tenant, id(peer), watch.tell)
        self._watches[call] = watch

    def _cancel(self, event: Event) -> None:
        _, call, _, body, _, peer, metadata = event
        request = job_service_pb2.CancelJobRequest.FromString(body or b"")
        tenant = self._intake.tenant(peer, metadata)
        self.desk.cancel(_known_form(request.id), tenant, self._answer(call, "CancelJob", self.told))

    def _list(self, event: Event) -> None:
        _, call, _, body, _, peer, metadata = event
        request = job_service_pb2.ListJobsRequest.FromString(body or b"")
        tenant = self._intake.tenant(peer, metadata)
        states, size = _filters(request)
        model, token = request.model, request.page_token
        before = page_start(token, tenant, states, model) if token else 0

        def encode(jobs: Sequence[Job]) -> bytes:
            parts = [job_part(job) for job in jobs[:size]]
            if len(jobs) > size:
                following = page_token(jobs[size - 1].sequence, tenant, states, model).encode()
                parts += (_NEXT_TOKEN, varint(len(following)), following)
            return b"".join(parts)

        # One more than is shown says whether there is another page.
        page = Page(tenant, states, model, before, size + 1)
        self.desk.page(page, self._answer(call, "ListJobs", encode))

    # --- Those who wait -----------------------------------------------------------------------------------------------

    def _latest(self, deadline: float, now: float) -> float:
        """When a call with this deadline has to be answered."""
        left = self._intake.deadline(deadline, now) - now
        return now + left - min(left * MARGIN, LONGEST_MARGIN)

    def _stop_waiting(self, event: Event) -> None:
        waiting = self._waiting.pop(event[1], None)
        if waiting is not None:
            self.desk.leave(waiting[0])

    def _stop_watching(self, event: Event) -> None:
        watch = self._watches.pop(event[1], None)
        if watch is not None:
            self.desk.leave(watch.waiter)

    def _filled(self, call: int) -> None:
        watch = self._watches.get(call)
        if watch is not None:
            watch.full = True

    def _writable(self, event: Event) -> None:
        watch = self._watches.get(event[1])
        if watch is not None:
            watch.full = False
            if watch.untold is not None:
                job, watch.untold = watch.untold, None
                watch.tell(job)

    def seen_by(self, watch: "_Watch", outcome: Job | ForebayError) -> None:
        """One who watches is told: a job, or why there is nothing more."""
        call = watch.call
        if call not in self._watches:
            return
        if isinstance(outcome, ForebayError):
            del self._watches[call]
            self.outbox.append((FAIL, call, _failure(outcome)))
        elif watch.full:
            watch.untold = outcome
        else:
            self.outbox.append((SEND, call, self.told(outcome)))
            if outcome.state in FINAL:
                del self._watches[call]
                self.outbox.append((FINISH, call, None))

    # --- Answers ------------------------------------------------------------------------------------------------------

    def told(self, job: Job) -> bytes:
        """A response that is a job."""
        return job_part(job, self.desk.prospect(job) if job.state is JobState.PENDING else None)

    def _found(self, found: Found) -> bytes:
        job = found.job
        parts = result(found, self.desk.prospect(job) if job.state is JobState.PENDING else None)
        size = sum(map(len, parts))
        if size > self._max_send_bytes:
            limit = self._max_send_bytes
            raise MessageTooLarge(f"the job and its outcome are {size} bytes, more than the {limit} of a message")
        return b"".join(parts)

    def _answer(self, call: int, method: str, encode: Callable[[Any], bytes]) -> Callable[[Any], None]:
        """What answers a unary call when the desk has an outcome for it."""
        outbox = self.outbox

        def done(outcome: Any) -> None:
            if isinstance(outcome, ForebayError):
                outbox.append((FAIL, call, _failure(outcome)))
                self._complaints.refused(outcome, method)
                return
            try:
                outbox.append((RESPOND, call, encode(outcome)))
            except ForebayError as error:
                outbox.append((FAIL, call, failure(error)))
            except Exception as error:  # noqa: BLE001  # one answer may not harm the others that are due
                outbox.append((FAIL, call, failure(internal(error, method=method))))

        return done

    def _unary(self, method: str, work: Handler) -> Endpoint:
        return Endpoint(
            method=Method(path=f"/{NAME}/{method}", kind=MethodKind.UNARY), on_call=self._handler(method, work)
        )

    def _handler(self, method: str, work: Handler) -> Handler:
        """A handler that does some work, and answers with the error if that fails."""
        sentence = f"the message can't be parsed as a {method}Request"
        unreadable = InvalidRequest([("", sentence)])
        malformed = failure(unreadable)

        def handle(event: Event) -> None:
            try:
                work(event)
            except ForebayError as error:
                self.outbox.append((FAIL, event[1], _failure(error)))
                self._complaints.refused(error, method, metadata=event[6])
            except DecodeError:
                self.outbox.append((FAIL, event[1], malformed))
                self._complaints.refused(unreadable, method, metadata=event[6])
            except Exception as error:  # noqa: BLE001  # nothing that one message does may stop the dispatcher
                self.outbox.append((FAIL, event[1], failure(internal(error, method=method))))

        return handle


class _Watch:
    """A `WatchJob`."""

    __slots__ = ("_service", "call", "full", "peer", "untold", "waiter")

    def __init__(self, service: JobService, call: int, peer: Peer | None) -> None:
        self._service = service
        self.call = call
        self.peer = peer
        """Kept, as for one who waits."""
        self.full = False
        """The caller does not read. It is told the latest when it does."""
        self.untold: Job | None = None
        self.waiter: Any = None

    def tell(self, outcome: Job | ForebayError) -> None:
        """The desk tells."""
        self._service.seen_by(self, outcome)


def _failure(error: ForebayError) -> Failure:
    return NOT_FOUND if isinstance(error, JobNotFound) else failure(error)


def _known_form(job_id: str) -> str:
    """The id, or one that nobody has if it can't be one."""
    return job_id if _ID.fullmatch(job_id) else _NOBODY


def _wait(request: job_service_pb2.ResultRequest) -> float:
    """Seconds.

    Raises:
        InvalidRequest: It is no duration, or negative.
    """
    if not request.HasField("wait"):
        return 0.0
    violations: list[tuple[str, str]] = []
    seconds = checked_seconds(request.wait, "wait", violations)
    if violations:
        raise InvalidRequest(violations)
    return seconds


def _filters(request: job_service_pb2.ListJobsRequest) -> tuple[frozenset[JobState], int]:
    """The states and the size of the page that are asked for.

    Raises:
        InvalidRequest: One of the fields is not as it has to be.
    """
    violations = [
        (f"states[{position}]", "is no state that a job can have")
        for position, state in enumerate(request.states)
        if state not in _STATES
    ]
    if request.page_size < 0:
        violations.append(("page_size", "must not be negative"))
    if request.model:
        try:
            check_name(request.model)
        except InvalidRequest as error:
            violations += error.violations
    if violations:
        raise InvalidRequest(violations)
    return frozenset(map(JobState, request.states)), min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
