"""Keeps what becomes spans, where things happen.

The dispatcher's part must be cheap: a request that is not sampled costs a call and a random number (and a look at
`traceparent`, if its caller has sent one), and nothing at its end but a comparison. Nothing here waits, and nothing
grows without bound: a record that finds the queue full is dropped and counted. So that the noteworthy (what failed or
was slow) is dropped last, some of the queue is kept for it; and while the rest is full, a request that would be sampled
is dropped at its beginning, where that costs no more than not to want it.

`begin`, `item`, `batch` and what ends a request belong to the dispatcher; `resume`, `webhook` and `model` may be called
from any thread.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Final, Protocol

from forebay_server.scheduling.events import EXEMPLAR
from forebay_server.telemetry.tracing import context, records
from forebay_server.telemetry.tracing.names import CANCELLED, DEADLINE_EXCEEDED, KEPT_ERRORS, OK, UNKNOWN
from forebay_server.telemetry.tracing.records import Record, Trace
from forebay_server.telemetry.tracing.sampling import Sampler, Tail

ONLINE: Final = 0
"""`scheduling.request.Level.ONLINE`: jobs may wait, so none is slow."""

REJECTED: Final = "rejected"
"""A batch that failed through its callers, see `scheduling.bisection`: nothing that an operator has to look into."""

RESERVE: Final = 8
"""This part of the queue (an eighth) is for the noteworthy."""

Metadata = Sequence[tuple[str, str | bytes]]
Mark = Trace | str | None
"""What a request carries: the span that it will be; or, if it is not sampled, its `traceparent` if it had one, because
the tail rule may keep it after all."""


class Traced(Protocol):
    """A request, as far as its span tells of it; `services.pending.Inference`."""

    trace: Any
    """A `Mark`."""
    arrival: float
    deadline: float
    rows: int
    lane: Any

    @property
    def method(self) -> int:
        """See `scheduling.events`."""


class Part(Protocol):
    """See `scheduling.request.Part`."""

    request: Any


class Batch(Protocol):
    """See `scheduling.request.Batch`."""

    parts: Any
    lane: Any
    instance: int
    rows: int
    padded_rows: int
    reason: Any
    predicted: float | None
    dispatched: float
    collated: float
    finished: float
    completed: float


class Tracer:
    """Decides who is sampled, and collects what becomes spans.

    Args:
        sampler: The decision at the beginning.
        tail: The decision at the end.
        codes: The canonical name of the status code for each reason of an error.
        clock: Monotonic seconds.
        most: Records that may wait to be sent, some of them only if they are noteworthy.
        events: Where exemplars are reported, as `scheduling.events` says.
        wall: Seconds since 1970.
        random: For decisions and for ids, which need not be secret.
    """

    def __init__(
        self,
        sampler: Sampler,
        tail: Tail,
        *,
        codes: Mapping[str, str],
        clock: Callable[[], float],
        most: int,
        events: list[tuple[Any, ...]] | None = None,
        wall: Callable[[], float] = time.time,
        random: Random | None = None,
    ) -> None:
        self._sampler = sampler
        self._ratio = sampler.ratio
        self._tail = tail
        self._codes = codes
        self.clock = clock
        self._most = most
        self._room = most - most // RESERVE
        self._wall = wall
        self._events: list[tuple[Any, ...]] = [] if events is None else events
        source = random or Random()  # noqa: S311  # see above
        self._random = source.random
        self._bits = source.getrandbits
        self.queue: deque[Record] = deque()
        """What waits to be made a span of and sent. The other end belongs to one thread."""
        self.dropped = 0
        """Spans that found the queue full, and requests that were not sampled because it was."""

    @property
    def suppressed(self) -> int:
        """Requests that the tail rule would have kept, had there not been so many."""
        return self._tail.suppressed

    # --- The beginning --------------------------------------------------------------------------------------------

    def begin(self, metadata: Metadata | None) -> Mark:
        """A call has arrived: whether it is sampled."""
        if metadata is not None:
            for key, value in metadata:
                if key == "traceparent":
                    return self._follow(value)
        return self._first() if self._random() < self._ratio and self._has_room() else None

    def item(self, traceparent: str, stream: Mark) -> Mark:
        """An item of a stream has arrived: whether it is sampled.

        One with a context of its own is treated like a call. Of the others the sampler's part is sampled, as children
        of their stream if that is sampled: a stream may have millions, so they don't simply follow it.
        """
        if traceparent:
            return self._follow(traceparent)
        if self._random() >= self._ratio or not self._has_room():
            return None
        if isinstance(stream, Trace):
            return Trace(stream.trace_id, self._bits(64) or 1, stream.span_id)
        return self._first()

    def resume(self, traceparent: str) -> Mark:
        """Something begins that was asked for earlier, perhaps in another process, and whether that was sampled."""
        if not traceparent:
            return None
        parent = context.parse(traceparent)
        if parent is None or not parent.sampled:
            return traceparent
        return Trace(parent.trace_id, self._bits(64) or 1, parent.span_id, remote=True)

    def onward(self, mark: Mark) -> str:
        """The `traceparent` for what is asked for now and begins later; empty if nothing is known."""
        if isinstance(mark, Trace):
            return context.write(mark.trace_id, mark.span_id, sampled=True)
        parent = context.parse(mark) if mark else None
        return "" if parent is None else context.write(parent.trace_id, parent.span_id, sampled=False)

    def _follow(self, value: str | bytes) -> Mark:
        # The usual answer of a caller that is not sampled itself is understood without parsing the rest.
        if self._sampler.parent_based and len(value) == 55 and value[53:] == "00" and value[:3] == "00-":
            return value  # type: ignore[return-value]  # bytes are not equal to a text
        parent = context.parse(value)
        if parent is None:
            return self._first() if self._random() < self._ratio and self._has_room() else None
        if self._sampler.wants(parent) and self._has_room():
            return Trace(parent.trace_id, self._bits(64) or 1, parent.span_id, remote=True)
        return value  # type: ignore[return-value]  # what has been parsed is a text

    def _has_room(self) -> bool:
        """Whether one more may be sampled; if not, it counts as dropped, whatever the tail rule says of it later."""
        if len(self.queue) < self._room:
            return True
        self.dropped += 1
        return False

    def _first(self, by: str = "") -> Trace:
        return Trace(self._bits(128) or 1, self._bits(64) or 1, by=by)

    def _keep(self, mark: Mark, by: str, now: float) -> Trace | None:
        """Samples afterwards what was not; None if there are too many of these."""
        if not self._tail.take(now):
            return None
        parent = context.parse(mark) if isinstance(mark, str) else None
        if parent is None:
            return self._first(by)
        return Trace(parent.trace_id, self._bits(64) or 1, parent.span_id, remote=True, by=by)

    # --- Batches --------------------------------------------------------------------------------------------------

    def batch(self, batch: Batch, error: str) -> None:
        """A batch has run, and its requests have not been told yet. To be called by the runner.

        Args:
            batch: With all its stamps.
            error: What became of it if it failed; empty: it went well.
        """
        slow = batch.completed - self._tail.slow
        wrong = bool(error) and error != REJECTED
        noteworthy = wrong
        links: list[Trace] = []
        for part in batch.parts:
            request = part.request
            trace = request.trace
            if trace.__class__ is not Trace:
                if wrong:
                    by = "error"
                elif request.arrival < slow and request.level == ONLINE:
                    by = "slow"
                else:
                    continue
                trace = self._keep(trace, by, batch.completed)
                if trace is None:
                    continue
                request.trace = trace
                noteworthy = True
            links.append(trace)
        if not links:
            return
        stamps = (batch.dispatched, batch.collated, batch.finished)
        first = links[0]
        span = Trace(first.trace_id, self._bits(64) or 1, first.span_id)
        for trace in links:
            trace.stamps = stamps
            trace.batches.append(span)
        self._put(
            (
                records.BATCH,
                span,
                batch.dispatched,
                batch.finished,
                batch.lane.key,
                batch.instance,
                batch.rows,
                batch.padded_rows,
                len(batch.parts),
                int(batch.reason),
                batch.predicted,
                stamps,
                error,
                links,
            ),
            noteworthy=noteworthy,
        )

    # --- The end --------------------------------------------------------------------------------------------------

    def answered(self, request: Traced, method: str) -> None:
        """A sampled request of a call has its response."""
        self._request(records.CALL, request, method, OK, "")

    def answered_item(self, request: Traced, item: int) -> None:
        """A sampled item has its response."""
        self._request(records.ITEM, request, item, OK, "")

    def failed(self, request: Traced, method: str, reason: str) -> None:
        """A request of a call was refused, or has failed."""
        self._failure(records.CALL, request, method, reason)

    def failed_item(self, request: Traced, item: int, reason: str) -> None:
        """An item was refused, or has failed."""
        self._failure(records.ITEM, request, item, reason)

    def cancelled(self, request: Traced, method: str) -> None:
        """The caller of a call is gone, or its deadline has passed."""
        self._cancelled(records.CALL, request, method)

    def cancelled_item(self, request: Traced, item: int) -> None:
        """An item's stream is gone, or its deadline has passed."""
        self._cancelled(records.ITEM, request, item)

    def ended(
        self,
        mark: Mark,
        kind: int,
        began: float,
        what: Any,
        code: str,
        reason: str = "",
        key: tuple[str, int] | None = None,
        rows: int = 0,
        *,
        patient: bool = True,
    ) -> None:
        """Something has ended, of which there may be a span.

        Args:
            mark: As it began.
            kind: Of the record.
            began: When it began.
            what: The method of a call, the id of an item, or a job.
            code: The canonical name of its status.
            reason: The contract's reason of an error.
            key: The model, if it is known.
            rows: Of the request.
            patient: Whether it may take its time: then it is never slow.
        """
        now = self.clock()
        if code in KEPT_ERRORS:
            by = "error"
        elif not patient and now - began >= self._tail.slow:
            by = "slow"
        else:
            by = ""
        if mark.__class__ is not Trace:
            mark = self._keep(mark, by, now) if by else None
            if mark is None:
                return
        self._put((kind, mark, began, now, what, code, reason, key, rows), noteworthy=bool(by))

    def _request(self, kind: int, request: Traced, what: Any, code: str, reason: str) -> None:
        trace = request.trace
        if trace.__class__ is not Trace:
            return
        now, key, arrival = self.clock(), request.lane.key, request.arrival
        slow = now - arrival >= self._tail.slow
        self._put((kind, trace, arrival, now, what, code, reason, key, request.rows), noteworthy=slow)
        if code == OK and trace.stamps is not None:
            wall = self._wall()
            self._events.append((EXEMPLAR, key, request.method, now - arrival, trace.trace_id, trace.span_id, wall))

    def _failure(self, kind: int, request: Traced, what: Any, reason: str) -> None:
        code = self._codes.get(reason, UNKNOWN)
        self.ended(request.trace, kind, request.arrival, what, code, reason, request.lane.key, request.rows)

    def _cancelled(self, kind: int, request: Traced, what: Any) -> None:
        late = request.deadline <= self.clock()
        code = DEADLINE_EXCEEDED if late else CANCELLED
        self.ended(request.trace, kind, request.arrival, what, code, "", request.lane.key, request.rows)

    # --- Beside requests ------------------------------------------------------------------------------------------

    def header(self, mark: Mark) -> str:
        """The `traceparent` for the receiver of a webhook: only if there is a span that its own can be put under."""
        return self.onward(mark) if isinstance(mark, Trace) else ""

    def webhook(self, mark: Mark, began: float, job: str, tries: int, status: int, error: str) -> None:
        """A try to send a webhook has ended.

        Args:
            mark: What `resume` gave for it.
            began: When it began.
            job: The id of the job.
            tries: Which try it was.
            status: Of HTTP; 0: there was no answer.
            error: Why it did not arrive; empty: it did.
        """
        if isinstance(mark, Trace):
            self._put((records.WEBHOOK, mark, began, self.clock(), job, tries, status, error), noteworthy=bool(error))

    def model(self, name: str, model: str, version: int) -> "Step":
        """A model begins to be brought into service. Such spans are rare, so all are kept, unless nothing is wanted."""
        wanted = self._ratio > 0.0 or self._sampler.parent_based
        return Step(self, name, model, version, self._first() if wanted else None)

    def _put(self, record: Record, *, noteworthy: bool) -> None:
        if len(self.queue) >= (self._most if noteworthy else self._room):
            self.dropped += 1
        else:
            self.queue.append(record)


def decoded(request: Traced, mark: Mark, now: float) -> None:
    """A request has been built: it carries its mark from now on."""
    request.trace = mark
    if mark.__class__ is Trace:
        mark.decoded = now


class Step:
    """A step in bringing a model into service, and the steps inside it. Used by the loader's thread."""

    __slots__ = ("_began", "_model", "_name", "_trace", "_tracer", "_version")

    def __init__(self, tracer: Tracer, name: str, model: str, version: int, trace: Trace | None) -> None:
        self._tracer = tracer
        self._name = name
        self._model = model
        self._version = version
        self._trace = trace
        self._began = tracer.clock()

    def inner(self, name: str) -> "Step":
        """A step inside this one begins."""
        outer = self._trace
        trace = None if outer is None else Trace(outer.trace_id, self._tracer._bits(64) or 1, outer.span_id)  # noqa: SLF001  # its other half
        return Step(self._tracer, name, self._model, self._version, trace)

    def end(self, error: str = "") -> None:
        """It has ended; `error` is the kind of what went wrong."""
        if self._trace is not None:
            now = self._tracer.clock()
            record = (records.MODEL, self._trace, self._began, now, self._name, self._model, self._version, error)
            self._tracer._put(record, noteworthy=True)  # noqa: SLF001  # see above
