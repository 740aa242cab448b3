"""The W3C trace context (https://www.w3.org/TR/trace-context/): who called, and whether they want a span of it.

Only `traceparent` is read. `tracestate` is for systems that add to it on the way; nobody is behind us on the way.
"""

import re
from typing import Final, NamedTuple

KEY: Final = "traceparent"
"""The name in metadata and headers."""

MAX_LENGTH: Final = 512
"""Characters; a longer text is not looked at."""

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class Parent(NamedTuple):
    """What a `traceparent` says."""

    trace_id: int
    span_id: int
    sampled: bool


def parse(text: str | bytes) -> Parent | None:
    """Reads a `traceparent`; None for one that is not valid, which is to be treated as if it were not there."""
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        return None
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    version, trace, span, flags, rest = found.groups()
    trace_id, span_id = int(trace, 16), int(span, 16)
    # A later version may have more behind it; the first has not, and ff is none.
    if version == "ff" or (rest is not None and version == "00") or not trace_id or not span_id:
        return None
    return Parent(trace_id, span_id, bool(int(flags, 16) & 1))


def write(trace_id: int, span_id: int, *, sampled: bool) -> str:
    """A `traceparent`."""
    return f"00-{trace_id:032x}-{span_id:016x}-{sampled:02d}"
