"""Makes spans of records. Imports the OpenTelemetry SDK; used by the thread that exports only.

What a span says is decided here, and only what is listed here can be in one: no metadata, no payload, no text of an
exception.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from forebay_server.scheduling.events import REASONS
from forebay_server.telemetry.tracing import names, records
from forebay_server.telemetry.tracing.records import Record, Trace

_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_UNSET: Final = Status(StatusCode.UNSET)
_ERROR: Final = Status(StatusCode.ERROR)

Attributes = dict[str, Any]


class Spans:
    """Makes spans.

    Args:
        resource: What they are about: this server.
        version: Of the server.
        max_links: Of one span; of a batch with more sampled requests the first are linked.
    """

    def __init__(self, resource: Resource, version: str, max_links: int) -> None:
        self._resource = resource
        self._scope = InstrumentationScope(names.SCOPE, version, names.SCHEMA)
        self._max_links = max_links
        self._makers: Mapping[int, Callable[[Record, int], ReadableSpan]] = {
            records.CALL: self._call,
            records.ITEM: self._item,
            records.JOB: self._job,
            records.BATCH: self._batch,
            records.WEBHOOK: self._webhook,
            records.MODEL: self._model,
        }

    def make(self, record: Record, epoch: int) -> ReadableSpan:
        """The span of a record.

        Args:
            record: See `records`.
            epoch: Nanoseconds since 1970 at the zero of the monotonic clock.
        """
        return self._makers[record[0]](record, epoch)

    def _call(self, record: Record, epoch: int) -> ReadableSpan:
        _, trace, began, ended, method, code, reason, key, rows = record
        attributes: Attributes = {names.RPC_SYSTEM: names.GRPC, names.RPC_METHOD: method, names.RPC_STATUS: code}
        status = _outcome(attributes, code, reason)
        _request(attributes, trace, began, ended, key, rows)
        return self._span(method, trace, SpanKind.SERVER, began, ended, attributes, status, trace.batches, epoch)

    def _item(self, record: Record, epoch: int) -> ReadableSpan:
        _, trace, began, ended, ident, code, reason, key, rows = record
        attributes: Attributes = {names.ITEM_ID: _signed(ident), names.RPC_STATUS: code}
        status = _outcome(attributes, code, reason)
        _request(attributes, trace, began, ended, key, rows)
        kind = SpanKind.SERVER if trace.remote else SpanKind.INTERNAL
        return self._span(names.ITEM, trace, kind, began, ended, attributes, status, trace.batches, epoch)

    def _job(self, record: Record, epoch: int) -> ReadableSpan:
        _, trace, began, ended, (ident, attempt, wait), code, reason, key, rows = record
        attributes: Attributes = {
            names.JOB_ID: ident,
            names.JOB_ATTEMPT: attempt,
            names.JOB_WAIT: wait,
            names.RPC_STATUS: code,
        }
        status = _outcome(attributes, code, reason)
        _request(attributes, trace, began, ended, key, rows)
        return self._span(names.JOB, trace, SpanKind.CONSUMER, began, ended, attributes, status, trace.batches, epoch)

    def _batch(self, record: Record, epoch: int) -> ReadableSpan:
        (_, trace, began, ended, key, instance, rows, padded, requests, reason, predicted, stamps, error, links) = (
            record
        )
        attributes: Attributes = {
            names.MODEL: key[0],
            names.VERSION: key[1],
            names.INSTANCE: instance,
            names.BATCH_ROWS: rows,
            names.BATCH_PADDED_ROWS: padded,
            names.BATCH_REQUESTS: requests,
            names.BATCH_REASON: REASONS.get(reason, names.UNKNOWN),
            names.COLLATE: stamps[1] - stamps[0],
            names.COMPUTE: stamps[2] - stamps[1],
        }
        if predicted is not None:
            attributes[names.BATCH_PREDICTED] = predicted
        if error:
            attributes[names.ERROR_TYPE] = error
        status = _ERROR if error else _UNSET
        return self._span(names.BATCH, trace, SpanKind.INTERNAL, began, ended, attributes, status, links, epoch)

    def _webhook(self, record: Record, epoch: int) -> ReadableSpan:
        _, trace, began, ended, job, tries, answer, error = record
        attributes: Attributes = {names.JOB_ID: job, names.WEBHOOK_TRIES: tries, names.HTTP_METHOD: "POST"}
        if answer:
            attributes[names.HTTP_STATUS] = answer
        if error:
            attributes[names.ERROR_TYPE] = error
        status = _ERROR if error else _UNSET
        return self._span(names.WEBHOOK, trace, SpanKind.CLIENT, began, ended, attributes, status, (), epoch)

    def _model(self, record: Record, epoch: int) -> ReadableSpan:
        _, trace, began, ended, name, model, version, error = record
        attributes: Attributes = {names.MODEL: model, names.VERSION: version}
        if error:
            attributes[names.ERROR_TYPE] = error
        status = _ERROR if error else _UNSET
        return self._span(name, trace, SpanKind.INTERNAL, began, ended, attributes, status, (), epoch)

    def _span(
        self,
        name: str,
        trace: Trace,
        kind: SpanKind,
        began: float,
        ended: float,
        attributes: Attributes,
        status: Status,
        links: Sequence[Trace],
        epoch: int,
    ) -> ReadableSpan:
        parent = None
        if trace.parent_id:
            parent = SpanContext(trace.trace_id, trace.parent_id, trace.remote, _SAMPLED)
        if trace.by:
            attributes[names.SAMPLED_BY] = trace.by
        return ReadableSpan(
            name,
            context=_context(trace),
            parent=parent,
            resource=self._resource,
            attributes=attributes,
            links=self._links(links),
            kind=kind,
            status=status,
            start_time=epoch + int(began * 1e9),
            end_time=epoch + int(ended * 1e9),
            instrumentation_scope=self._scope,
        )

    def _links(self, traces: Sequence[Trace]) -> Sequence[Link]:
        if len(traces) <= self._max_links:
            return [Link(_context(trace)) for trace in traces]
        bounded: BoundedList[Link] = BoundedList(self._max_links)
        bounded.extend([Link(_context(trace)) for trace in traces[: self._max_links]])
        bounded.dropped = len(traces) - self._max_links  # the SDK's own way keeps the last
        return bounded


def _context(trace: Trace) -> SpanContext:
    return SpanContext(trace.trace_id, trace.span_id, is_remote=False, trace_flags=_SAMPLED)


def _outcome(attributes: Attributes, code: str, reason: str) -> Status:
    if code == names.OK:
        return _UNSET
    attributes[names.ERROR_TYPE] = reason or code
    return _ERROR if code in names.SERVER_ERRORS else _UNSET


def _request(
    attributes: Attributes, trace: Trace, began: float, ended: float, key: tuple[str, int] | None, rows: int
) -> None:
    """What a request adds: its model, and where its time went."""
    if key is None:
        return
    attributes[names.MODEL] = key[0]
    attributes[names.VERSION] = key[1]
    attributes[names.ROWS] = rows
    if trace.decoded:
        attributes[names.DECODE] = trace.decoded - began
    if trace.stamps is not None:
        dispatched, collated, finished = trace.stamps
        attributes[names.QUEUE] = dispatched - began
        attributes[names.COLLATE] = collated - dispatched
        attributes[names.COMPUTE] = finished - collated
        attributes[names.ENCODE] = ended - finished


def _signed(number: int) -> int:
    """OTLP has no unsigned integers."""
    return number - (1 << 64) if number >= 1 << 63 else number
