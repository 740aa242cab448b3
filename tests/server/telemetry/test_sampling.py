"""Few lines of many, at exact instants, and none uncounted."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay_server.telemetry.sampling import MOST_KINDS, OTHER, QUIET, Sampler


def test_a_burst_is_written_and_then_a_line_a_second():
    """The line after a pause says how many were left out before it."""
    sampler = Sampler(burst=3, rate=1.0)

    assert [sampler.admit("full", 10.0) for _ in range(5)] == [0, 0, 0, None, None]
    assert sampler.admit("full", 10.5) is None
    assert sampler.admit("full", 11.0) == 3
    assert sampler.admit("full", 11.0) is None
    assert [sampler.admit("full", 99.0) for _ in range(4)] == [1, 0, 0, None]


def test_kinds_do_not_disturb_each_other():
    """A storm of one leaves the others their lines."""
    sampler = Sampler(burst=1, rate=1.0)

    assert (sampler.admit("a", 0.0), sampler.admit("a", 0.0), sampler.admit("b", 0.0)) == (0, None, 0)


def test_what_no_line_tells_is_settled():
    """After `QUIET` seconds, or at once at the end; each count once."""
    sampler = Sampler(burst=1, rate=1.0)
    sampler.admit("a", 1.0)
    assert sampler.due == inf
    sampler.admit("a", 1.5)
    sampler.admit("a", 1.5)
    sampler.admit("b", 3.0)
    sampler.admit("b", 3.5)

    assert sampler.due == 1.5 + QUIET
    assert sampler.settle(1.4 + QUIET) == []
    assert sampler.settle(1.5 + QUIET) == [("a", 2)]
    assert sampler.due == 3.5 + QUIET
    assert sampler.settle(7.0, at_once=True) == [("b", 1)]
    assert (sampler.settle(100.0), sampler.due) == ([], inf)


def test_the_number_of_kinds_is_bounded():
    """Those beyond share one."""
    sampler = Sampler(burst=1, rate=1.0)
    for number in range(MOST_KINDS):
        sampler.admit(str(number), 0.0)

    assert [sampler.admit(f"new {number}", 0.0) for number in range(3)] == [0, None, None]
    assert sampler.settle(0.0, at_once=True) == [(OTHER, 2)]
    assert len(sampler._kinds) == MOST_KINDS + 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 2)), max_size=300), st.integers(1, 5))
def test_lines_and_what_they_say_add_up(storm, burst):
    """Written lines, what they say was left out, and what is settled at the end are all that there was."""
    sampler = Sampler(burst=burst, rate=1.0)
    now = 0.0
    told = dict.fromkeys("abc", 0)
    written = dict.fromkeys("abc", 0)
    for kind, pause in storm:
        now += pause
        suppressed = sampler.admit(kind, now)
        if suppressed is not None:
            written[kind] += 1
            told[kind] += 1 + suppressed
    for kind, count in sampler.settle(now, at_once=True):
        told[kind] += count

    assert told == {kind: sum(other == kind for other, _ in storm) for kind in "abc"}
    assert max(written.values()) <= burst + now + 1


@pytest.mark.parametrize("lines", [10_000])
def test_a_storm_writes_few_lines(lines):
    """10,000 in two seconds: the burst, and one more a second."""
    sampler = Sampler()
    found = [sampler.admit("full", 2.0 * place / lines) for place in range(lines)]
    written = [count for count in found if count is not None]

    assert len(written) == 11
    assert len(written) + sum(written) + sampler.settle(2.0, at_once=True)[0][1] == lines
