"""The decisions: every sampler of the specification, and the allowance of the tail rule."""

from math import inf

import pytest

from forebay_server.errors import ConfigError
from forebay_server.telemetry.tracing.context import Parent
from forebay_server.telemetry.tracing.sampling import NAMES, Tail, sampler

LOW, HIGH = Parent(1, 1, sampled=False), Parent((1 << 64) - 1, 1, sampled=False)


@pytest.mark.parametrize(
    ("name", "ratio", "sampled_parent", "low", "high"),
    [
        ("always_on", 1.0, True, True, True),
        ("always_off", 0.0, False, False, False),
        ("traceidratio", 0.5, True, True, False),
        ("parentbased_always_on", 1.0, True, False, False),
        ("parentbased_always_off", 0.0, True, False, False),
        ("parentbased_traceidratio", 0.5, True, False, False),
    ],
)
def test_every_sampler(name, ratio, sampled_parent, low, high):
    """The part of those without a parent, and what becomes of a sampled parent and of two unsampled ones."""
    made = sampler(name, 0.5)

    assert made.ratio == ratio
    assert made.wants(Parent(1, 1, sampled=True)) is sampled_parent
    assert (made.wants(LOW), made.wants(HIGH)) == (low, high)


def test_the_table_is_total():
    """Each name of the specification makes a sampler; others don't."""
    for name in NAMES:
        sampler(name, 1.0)
    with pytest.raises(ConfigError, match="jaeger_remote"):
        sampler("jaeger_remote", 1.0)


def test_the_allowance_of_the_tail():
    """Two seconds' worth at first, then so many a second, never more than two seconds' worth; the rest is counted."""
    tail = Tail(1.0, 5.0)

    assert [tail.take(0.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert tail.suppressed == 2
    assert [tail.take(0.2), tail.take(0.2)] == [True, False]
    assert sum(tail.take(1000.0) for _ in range(100)) == 10


def test_a_rare_tail_still_takes_one():
    """Less than one a second is one now and then."""
    tail = Tail(1.0, 0.1)

    assert [tail.take(now) for now in (0.0, 5.0, 10.0, 15.0)] == [True, False, True, False]


def test_no_tail():
    """0 a second: nothing is kept, and nothing is slow."""
    tail = Tail(1.0, 0.0)

    assert tail.slow == inf
    assert not tail.take(0.0)
