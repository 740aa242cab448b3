"""The message that carries spans, `ExportTraceServiceRequest` of OTLP, put together as bytes.

The SDK makes objects of a span, and messages of protobuf of these, one by one: 48 us for a span, with the GIL kept, so
that callers wait. Here pieces are joined, most of which are the same from one span to the next and remembered (by
`spans`): 3 us. The tests have the SDK write the same spans and compare every byte.

Fields are written in the order of their numbers, which are those of the generated code.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Final

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, SpanFlags, Status
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext

from forebay_server.telemetry.tracing.records import Trace
from forebay_server.varint import piece, tag, varint

_INTEGER, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
"""How a field is written; part of its tag."""
_MASK: Final = (1 << 64) - 1
"""Integers below zero are written as the unsigned ones of the same 64 bits."""
_FLOAT: Final = Struct("<d")
_FLAGS: Final = Struct("<I")


def _text(field: int, value: str) -> bytes:
    """A text; one that is empty is left out."""
    return piece(field, value.encode()) if value else b""


def attribute(key: str, value: str | float) -> bytes:
    """An attribute of a span. An integer that is one stays one."""
    if isinstance(value, str):
        content = piece(AnyValue.STRING_VALUE_FIELD_NUMBER, value.encode())
    elif isinstance(value, int):
        content = tag(AnyValue.INT_VALUE_FIELD_NUMBER, _INTEGER) + varint(value & _MASK)
    else:
        content = tag(AnyValue.DOUBLE_VALUE_FIELD_NUMBER, _EIGHT_BYTES) + _FLOAT.pack(value)
    pair = _text(KeyValue.KEY_FIELD_NUMBER, key) + piece(KeyValue.VALUE_FIELD_NUMBER, content)
    return piece(Span.ATTRIBUTES_FIELD_NUMBER, pair)


def before(key: str) -> bytes:
    """An attribute that is a float, without the float, which comes last."""
    return attribute(key, 0.0)[: -_FLOAT.size]


def layout(*befores: bytes) -> Struct:
    """Packs some attributes that are floats at once: before, float, before, float, ..."""
    return Struct("<" + "".join(f"{len(each)}sd" for each in befores))


def named(name: str, kind: int) -> bytes:
    """The name and the kind of a span; kinds are those of `Span.SpanKind`."""
    return _text(Span.NAME_FIELD_NUMBER, name) + tag(Span.KIND_FIELD_NUMBER, _INTEGER) + varint(kind)


# A span and a link begin alike: trace id, span id. (Their fields have the same numbers.)
_IDENTITY: Final = Struct("<2s16s2s8s")
_TRACE_ID: Final = tag(Span.TRACE_ID_FIELD_NUMBER, _LENGTH) + varint(16)
_SPAN_ID: Final = tag(Span.SPAN_ID_FIELD_NUMBER, _LENGTH) + varint(8)
_PARENT: Final = tag(Span.PARENT_SPAN_ID_FIELD_NUMBER, _LENGTH) + varint(8)

_TIMES: Final = Struct("<cQcQ")
_START: Final = tag(Span.START_TIME_UNIX_NANO_FIELD_NUMBER, _EIGHT_BYTES)
_END: Final = tag(Span.END_TIME_UNIX_NANO_FIELD_NUMBER, _EIGHT_BYTES)

_KNOWN: Final = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
"""That the flag of a remote parent can be believed."""
_AFTER_LINK: Final = tag(Span.Link.FLAGS_FIELD_NUMBER, _FOUR_BYTES) + _FLAGS.pack(_KNOWN)
_LINK: Final = tag(Span.LINKS_FIELD_NUMBER, _LENGTH) + varint(_IDENTITY.size + len(_AFTER_LINK))
_DROPPED_LINKS: Final = tag(Span.DROPPED_LINKS_COUNT_FIELD_NUMBER, _INTEGER)

_SPAN: Final = tag(ScopeSpans.SPANS_FIELD_NUMBER, _LENGTH)


def _ending(*, failed: bool, remote: bool) -> bytes:
    error = tag(Status.CODE_FIELD_NUMBER, _INTEGER) + varint(Status.STATUS_CODE_ERROR) if failed else b""
    flags = _KNOWN | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK if remote else _KNOWN
    status = piece(Span.STATUS_FIELD_NUMBER, error)
    return status + tag(Span.FLAGS_FIELD_NUMBER, _FOUR_BYTES) + _FLAGS.pack(flags)


_ENDINGS: Final = {
    (failed, remote): _ending(failed=failed, remote=remote) for failed in (False, True) for remote in (False, True)
}


def _identity(trace: Trace) -> bytes:
    return _IDENTITY.pack(_TRACE_ID, trace.trace_id.to_bytes(16, "big"), _SPAN_ID, trace.span_id.to_bytes(8, "big"))


def links(traces: Sequence[Trace], most: int) -> bytes:
    """The links of a span: the first so many, and how many are left out."""
    written = b"".join([_LINK + _identity(trace) + _AFTER_LINK for trace in traces[:most]])
    return written if len(traces) <= most else written + _DROPPED_LINKS + varint(len(traces) - most)


def span(
    trace: Trace, name: bytes, start: int, end: int, attributes: bytes, linked: bytes, *, failed: bool = False
) -> bytes:
    """A span, as a part of `Frame.message`.

    Args:
        trace: Who it is.
        name: What `named` gives.
        start: Nanoseconds since 1970, like `end`.
        end: When it ended.
        attributes: Joined.
        linked: What `links` gives.
        failed: Whether its status is ERROR; else it is UNSET.
    """
    parent = trace.parent_id
    body = b"".join(
        (
            _identity(trace),
            _PARENT + parent.to_bytes(8, "big") if parent else b"",
            name,
            _TIMES.pack(_START, start, _END, end),
            attributes,
            linked,
            _ENDINGS[failed, trace.remote],
        )
    )
    return _SPAN + varint(len(body)) + body


class Frame:
    """What is around the spans of every message. Written by the SDK, once.

    Args:
        resource: What they are about.
        scope: Who has made them.
    """

    def __init__(self, resource: Resource, scope: InstrumentationScope) -> None:
        anybody = SpanContext(1, 1, is_remote=False)
        sample = encode_spans([ReadableSpan("", context=anybody, resource=resource, instrumentation_scope=scope)])
        (outer,) = sample.resource_spans
        (inner,) = outer.scope_spans
        self._resource = piece(ResourceSpans.RESOURCE_FIELD_NUMBER, outer.resource.SerializeToString())
        self._resource_schema = _text(ResourceSpans.SCHEMA_URL_FIELD_NUMBER, outer.schema_url)
        self._scope = piece(ScopeSpans.SCOPE_FIELD_NUMBER, inner.scope.SerializeToString())
        self._scope_schema = _text(ScopeSpans.SCHEMA_URL_FIELD_NUMBER, inner.schema_url)

    def message(self, spans: Sequence[bytes]) -> bytes:
        """A message of some spans."""
        inner = len(self._scope) + sum(map(len, spans)) + len(self._scope_schema)
        head = tag(ResourceSpans.SCOPE_SPANS_FIELD_NUMBER, _LENGTH) + varint(inner)
        outer = len(self._resource) + len(head) + inner + len(self._resource_schema)
        top = tag(ExportTraceServiceRequest.RESOURCE_SPANS_FIELD_NUMBER, _LENGTH) + varint(outer)
        return b"".join(
            (top, self._resource, head, self._scope, *spans, self._scope_schema, self._resource_schema),
        )
