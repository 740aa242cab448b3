"""Spans as bytes: exactly what the SDK's encoder writes of the same spans, read by protobuf."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from forebay_server.scheduling.events import REASONS
from forebay_server.telemetry.tracing import records
from forebay_server.telemetry.tracing.message import Frame
from forebay_server.telemetry.tracing.records import Trace
from forebay_server.telemetry.tracing.spans import ALIKE, Spans
from tests.server.telemetry.tracing import reference
from tests.server.telemetry.tracing.reference import RESOURCE, SCOPE, span_of

EPOCH = 1_800_000_000_000_000_000
FRAME = Frame(RESOURCE, SCOPE)


def written(record, *, most_links=128):
    """The message of one record, as we write it."""
    return FRAME.message([Spans(most_links).make(record, EPOCH)])


def expected(record, *, most_links=128):
    """The message of one record, as the SDK writes it."""
    return encode_spans([span_of(record, EPOCH, most_links)]).SerializeToString()


seconds = st.floats(0.0, 1e7)
words = st.text(st.characters(codec="utf-8"), max_size=200)
numbers = st.integers(0, (1 << 63) - 1)


@st.composite
def traces(draw, *, linked=True):
    """Spans that will be."""
    parent = draw(st.integers(0, (1 << 64) - 1))
    remote = bool(parent) and draw(st.booleans())
    ids = draw(st.integers(1, (1 << 128) - 1)), draw(st.integers(1, (1 << 64) - 1))
    trace = Trace(*ids, parent, remote=remote, by=draw(st.sampled_from(["", "slow", "error"])))
    trace.decoded = draw(seconds)
    trace.stamps = draw(st.none() | st.tuples(seconds, seconds, seconds))
    if linked:
        trace.batches = draw(st.lists(traces(linked=False), max_size=3))
    return trace


keys = st.tuples(words, numbers)
codes = st.sampled_from(["OK", "CANCELLED", "UNKNOWN", "INTERNAL", "NOT_FOUND", "RESOURCE_EXHAUSTED"])
ends = st.tuples(codes, words, st.none() | keys, numbers)
requests = st.one_of(
    st.tuples(st.just(records.CALL), traces(), seconds, seconds, words).flatmap(lambda r: ends.map(lambda e: r + e)),
    st.tuples(st.just(records.ITEM), traces(), seconds, seconds, st.integers(0, (1 << 64) - 1)).flatmap(
        lambda r: ends.map(lambda e: r + e)
    ),
    st.tuples(st.just(records.JOB), traces(), seconds, seconds, st.tuples(words, numbers, seconds)).flatmap(
        lambda r: ends.map(lambda e: r + e)
    ),
)
others = st.one_of(
    st.tuples(
        st.just(records.BATCH), traces(), seconds, seconds, keys, numbers, numbers, numbers, numbers,
        st.integers(0, 9), st.none() | seconds, st.tuples(seconds, seconds, seconds), words,
        st.lists(traces(linked=False), max_size=5),
    ),
    st.tuples(st.just(records.WEBHOOK), traces(), seconds, seconds, words, numbers, numbers, words),
    st.tuples(st.just(records.MODEL), traces(), seconds, seconds, words, words, numbers, words),
)  # fmt: skip


@given(requests | others)
def test_a_span_is_what_the_sdk_would_write(record):
    """Of any kind, with whatever in it, byte by byte."""
    assert written(record) == expected(record)


@given(st.lists(requests | others, max_size=5))
def test_a_message_holds_its_spans(several):
    """In their order, around them who has made them; protobuf reads it."""
    message = FRAME.message([Spans(128).make(record, EPOCH) for record in several])
    found = ExportTraceServiceRequest.FromString(message)
    (outer,) = found.resource_spans
    (inner,) = outer.scope_spans
    wanted = [encode_spans([span_of(each, EPOCH, 128)]).resource_spans[0].scope_spans[0].spans[0] for each in several]

    assert list(inner.spans) == wanted
    assert {pair.key for pair in outer.resource.attributes} == {"service.name", "a", "b", "c"}
    assert (inner.scope.name, inner.scope.version) == ("forebay_server", "1.2.3")
    assert outer.schema_url == "https://example.org/schema"


@pytest.mark.parametrize("most", [0, 1, 3, 4])
def test_links_beyond_the_limit_are_counted(most):
    """The first are linked; the number of the others is said only if there are some."""
    links = [Trace(number, number) for number in (1, 2, 3)]
    stamps = (0.5, 0.75, 1.0)
    record = (records.BATCH, Trace(9, 9), 0.5, 1.0, ("m", 1), 0, 3, 4, 3, 1, None, stamps, "", links)
    span = (
        ExportTraceServiceRequest.FromString(written(record, most_links=most)).resource_spans[0].scope_spans[0].spans[0]
    )

    assert written(record, most_links=most) == expected(record, most_links=most)
    assert [link.trace_id[-1] for link in span.links] == [1, 2, 3][:most]
    assert span.dropped_links_count == max(0, 3 - most)


def test_spans_that_differ_stay_different():
    """What is remembered is not mixed up, nor grows, when more different spans come than are remembered."""
    spans = Spans(128)
    for number in (*range(2 * ALIKE), *range(10)):
        record = (records.CALL, Trace(1, 2), 0.0, 1.0, f"method{number}", "OK", "", ("m", number), number + 1)
        assert FRAME.message([spans.make(record, EPOCH)]) == expected(record)


def test_a_frame_without_schemas():
    """Texts that are empty are left out, as protobuf does."""
    frame = Frame(Resource({}), InstrumentationScope("x"))
    record = (records.MODEL, Trace(1, 2), 0.0, 1.0, "load", "m", 1, "")
    message = frame.message([Spans(1).make(record, EPOCH)])

    assert ExportTraceServiceRequest.FromString(message).SerializeToString() == message


def test_the_reference_knows_the_dispatch_reasons():
    """Positive control of the comparison: it has the same reasons, by its own list."""
    assert dict(REASONS) == reference.REASONS
