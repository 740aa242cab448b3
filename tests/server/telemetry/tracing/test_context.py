"""Trace contexts: the examples of the W3C recommendation, and what must be treated as if it were not there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay_server.telemetry.tracing import context
from forebay_server.telemetry.tracing.context import Parent

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("text", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"00-{TRACE}-{SPAN}-02", False),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", True),
    ],
)
def test_what_is_valid(text, sampled):
    """The last bit says whether the caller is sampled; a later version may say more."""
    assert context.parse(text) == Parent(int(TRACE, 16), int(SPAN, 16), sampled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01\n",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01-{'x' * 1000}",
        f"00-{TRACE}-{SPAN}-01".encode(),
    ],
)
def test_what_is_not(text):
    """Anything else is no context."""
    assert context.parse(text) is None


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_what_is_written_is_read(trace_id, span_id, sampled):
    """Both directions agree."""
    text = context.write(trace_id, span_id, sampled=sampled)

    assert len(text) == 55
    assert context.parse(text) == Parent(trace_id, span_id, sampled)


@given(st.text(max_size=80))
def test_anything_may_come(text):
    """No text raises."""
    context.parse(text)
