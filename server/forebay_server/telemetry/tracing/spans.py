"""Makes spans of records, as parts of a message. Imports OpenTelemetry; used by the thread that exports only.

What a span says is decided here, and only what is listed here can be in one: no metadata, no payload, no text of an
exception.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from forebay_server.scheduling.events import REASONS
from forebay_server.telemetry.tracing import names, records
from forebay_server.telemetry.tracing.message import attribute, before, layout, links, named, span
from forebay_server.telemetry.tracing.records import Record, Trace

ALIKE: Final = 1024
"""Spans that say different things for which the bytes are remembered."""

_KIND: Final = Span.SpanKind
_DECODE, _QUEUE, _COLLATE, _COMPUTE, _ENCODE = (
    before(key) for key in (names.DECODE, names.QUEUE, names.COLLATE, names.COMPUTE, names.ENCODE)
)
_DECODED: Final = layout(_DECODE)
_SPENT: Final = layout(_QUEUE, _COLLATE, _COMPUTE, _ENCODE)
_RUN: Final = layout(_COLLATE, _COMPUTE)

_ITEM: Final = {
    remote: named(names.ITEM, _KIND.SPAN_KIND_SERVER if remote else _KIND.SPAN_KIND_INTERNAL)
    for remote in (False, True)
}
_JOB: Final = named(names.JOB, _KIND.SPAN_KIND_CONSUMER)
_BATCH: Final = named(names.BATCH, _KIND.SPAN_KIND_INTERNAL)
_WEBHOOK: Final = named(names.WEBHOOK, _KIND.SPAN_KIND_CLIENT)

Key = tuple[str, int]


class Spans:
    """Makes spans.

    Args:
        max_links: Of one span; of a batch with more sampled requests the first are linked.
    """

    def __init__(self, max_links: int) -> None:
        self._max_links = max_links
        self._makers: Mapping[int, Callable[[Record, int], bytes]] = {
            records.CALL: self._call,
            records.ITEM: self._item,
            records.JOB: self._job,
            records.BATCH: self._batch,
            records.WEBHOOK: self._webhook,
            records.MODEL: self._model,
        }

    def make(self, record: Record, epoch: int) -> bytes:
        """The span of a record.

        Args:
            record: See `records`.
            epoch: Nanoseconds since 1970 at the zero of the monotonic clock.
        """
        return self._makers[record[0]](record, epoch)

    def _call(self, record: Record, epoch: int) -> bytes:
        _, trace, began, ended, method, code, reason, key, rows = record
        name, attributes = _method(method)
        outcome, failed = _outcome(code, reason, key, rows)
        attributes += outcome
        if key is not None:
            attributes += _spent(trace, began, ended)
        return self._span(trace, name, began, ended, attributes, trace.batches, epoch, failed=failed)

    def _item(self, record: Record, epoch: int) -> bytes:
        _, trace, began, ended, ident, code, reason, key, rows = record
        outcome, failed = _outcome(code, reason, key, rows)
        attributes = attribute(names.ITEM_ID, ident) + outcome
        if key is not None:
            attributes += _spent(trace, began, ended)
        return self._span(trace, _ITEM[trace.remote], began, ended, attributes, trace.batches, epoch, failed=failed)

    def _job(self, record: Record, epoch: int) -> bytes:
        _, trace, began, ended, (ident, attempt, wait), code, reason, key, rows = record
        outcome, failed = _outcome(code, reason, key, rows)
        attributes = attribute(names.JOB_ID, ident) + attribute(names.JOB_ATTEMPT, attempt)
        attributes += attribute(names.JOB_WAIT, wait) + outcome
        if key is not None:
            attributes += _spent(trace, began, ended)
        return self._span(trace, _JOB, began, ended, attributes, trace.batches, epoch, failed=failed)

    def _batch(self, record: Record, epoch: int) -> bytes:
        (_, trace, began, ended, key, instance, rows, padded, requests, reason, predicted, stamps, error, linked) = (
            record
        )
        dispatched, collated, finished = stamps
        attributes = _run(key, instance, rows, padded, requests, reason)
        attributes += _RUN.pack(_COLLATE, collated - dispatched, _COMPUTE, finished - collated)
        if predicted is not None:
            attributes += attribute(names.BATCH_PREDICTED, predicted)
        return self._span(trace, _BATCH, began, ended, attributes + _error(error), linked, epoch, failed=bool(error))

    def _webhook(self, record: Record, epoch: int) -> bytes:
        _, trace, began, ended, job, tries, answer, error = record
        attributes = attribute(names.JOB_ID, job) + attribute(names.WEBHOOK_TRIES, tries)
        attributes += attribute(names.HTTP_METHOD, "POST")
        if answer:
            attributes += attribute(names.HTTP_STATUS, answer)
        return self._span(trace, _WEBHOOK, began, ended, attributes + _error(error), (), epoch, failed=bool(error))

    def _model(self, record: Record, epoch: int) -> bytes:
        _, trace, began, ended, name, model, version, error = record
        attributes = _about((model, version)) + _error(error)
        head = named(name, _KIND.SPAN_KIND_INTERNAL)
        return self._span(trace, head, began, ended, attributes, (), epoch, failed=bool(error))

    def _span(
        self,
        trace: Trace,
        name: bytes,
        began: float,
        ended: float,
        attributes: bytes,
        linked: Sequence[Trace],
        epoch: int,
        *,
        failed: bool,
    ) -> bytes:
        if trace.by:
            attributes += attribute(names.SAMPLED_BY, trace.by)
        start, end = epoch + int(began * 1e9), epoch + int(ended * 1e9)
        return span(trace, name, start, end, attributes, links(linked, self._max_links), failed=failed)


@lru_cache(ALIKE)
def _method(method: str) -> tuple[bytes, bytes]:
    """The name of a call's span, and what is known of the call from the start."""
    attributes = attribute(names.RPC_SYSTEM, names.GRPC) + attribute(names.RPC_METHOD, method)
    return named(method, _KIND.SPAN_KIND_SERVER), attributes


@lru_cache(ALIKE)
def _outcome(code: str, reason: str, key: Key | None, rows: int) -> tuple[bytes, bool]:
    """What became of a request, and what it was; and whether that is the server's fault."""
    attributes = attribute(names.RPC_STATUS, code)
    if code != names.OK:
        attributes += _error(reason or code)
    if key is not None:
        attributes += _about(key) + attribute(names.ROWS, rows)
    return attributes, code in names.SERVER_ERRORS


@lru_cache(ALIKE)
def _run(key: Key, instance: int, rows: int, padded: int, requests: int, reason: int) -> bytes:
    """What a batch was."""
    return b"".join(
        (
            _about(key),
            attribute(names.INSTANCE, instance),
            attribute(names.BATCH_ROWS, rows),
            attribute(names.BATCH_PADDED_ROWS, padded),
            attribute(names.BATCH_REQUESTS, requests),
            attribute(names.BATCH_REASON, REASONS.get(reason, names.UNKNOWN)),
        )
    )


def _about(key: Key) -> bytes:
    """The model."""
    return attribute(names.MODEL, key[0]) + attribute(names.VERSION, key[1])


def _error(error: str) -> bytes:
    return attribute(names.ERROR_TYPE, error) if error else b""


def _spent(trace: Trace, began: float, ended: float) -> bytes:
    """Where the time of a request went."""
    decoded = _DECODED.pack(_DECODE, trace.decoded - began) if trace.decoded else b""
    if trace.stamps is None:
        return decoded
    dispatched, collated, finished = trace.stamps
    return decoded + _SPENT.pack(
        _QUEUE, dispatched - began, _COLLATE, collated - dispatched, _COMPUTE, finished - collated, _ENCODE,
        ended - finished,
    )  # fmt: skip
