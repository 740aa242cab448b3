"""Which buckets can be named beforehand."""

import pytest

from forebay_server.engines import buckets
from forebay_server.errors import ConfigError
from forebay_server.tensors import FREE


def test_fixed_shapes_are_one_bucket():
    """And open ones none."""
    assert buckets.named([(3, 4), ()], [None, None]) == [((3, 4), ())]
    assert buckets.named([(3, FREE)], [None]) == []
    assert buckets.named([(3, FREE)], [[]]) == []


def test_equally_long_ladders_go_up_together():
    """Ids and their mask have one length."""
    assert buckets.named([(FREE,), (FREE,), (2,)], [[[4], [8]], [[4], [8]], None]) == [
        ((4,), (4,), (2,)),
        ((8,), (8,), (2,)),
    ]


def test_other_ladders_are_combined():
    """Every shape of one with every shape of the other, up to a limit."""
    every = buckets.named([(FREE,), (FREE,)], [[[1], [2]], [[3], [4], [5]]])
    assert every == [((a,), (b,)) for a in (1, 2) for b in (3, 4, 5)]
    assert buckets.named([(FREE,), (FREE,)], [[[1], [2]], [[3], [4], [5]]], 2) == every[:2]


@pytest.mark.parametrize("shape", [[3, 3], [0], [-1], []])
def test_shapes_that_a_model_can_not_have(shape):
    """Of another rank, or without length."""
    with pytest.raises(ConfigError, match="does not fit the input 'x'"):
        buckets.check({"x": (FREE,)}, {"x": [shape]})
    buckets.check({"x": (FREE,)}, {"x": [[3]]})
