"""Memory that is made once: what a batch gets, how much there is in all, and the budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay_server.engines.base import OutOfMemory
from forebay_server.engines.gpu.pool import ALIGNMENT, GRAIN, Budget, Chain, placed


class Piece:
    def __init__(self, size, closed):
        self.size = size
        self._closed = closed

    def close(self):
        self._closed.append(self.size)


def chain_of(most=1 << 40, budget=None):
    """A chain whose pieces may be up to some size, what was made, and what was closed."""
    made, closed = [], []

    def allocate(size):
        if size > most:
            raise OutOfMemory
        made.append(size)
        return Piece(size, closed)

    return Chain(allocate, budget), made, closed


@given(st.lists(st.integers(0, 1 << 30), min_size=1, max_size=60))
def test_a_chain_holds_every_size_at_one_place(sizes):
    """Each size keeps its piece for good; together they are at most three times the largest, and a little."""
    chain, made, _ = chain_of()
    pieces = {}
    for size in sizes + sizes:
        piece = chain.fit(size)
        assert piece.size >= size
        assert pieces.setdefault(size, piece) is piece
    assert sum(made) <= 4.5 * max(sizes) + 8 * GRAIN
    for size in sizes:
        assert chain.fit(size) is pieces[size]


def test_a_piece_is_half_as_large_again_as_the_one_before():
    """If there is room for that; else as large as it must be."""
    chain, made, closed = chain_of(most=12 * GRAIN)
    for size in (1, GRAIN, GRAIN + 1, 6 * GRAIN, 6 * GRAIN + 1, 11 * GRAIN):
        chain.fit(size)
    assert made == [GRAIN, 2 * GRAIN, 6 * GRAIN, 9 * GRAIN, 11 * GRAIN]
    with pytest.raises(OutOfMemory):
        chain.fit(12 * GRAIN + 1)
    chain.close()

    assert sorted(closed) == made


def test_a_budget_is_what_all_take_together():
    """What is refused or freed does not count."""
    budget = Budget(10 * GRAIN)
    one, _, _ = chain_of(budget=budget)
    two, _, _ = chain_of(most=GRAIN, budget=budget)
    one.fit(6 * GRAIN)
    with pytest.raises(OutOfMemory):  # the device has none
        two.fit(2 * GRAIN)
    two.fit(GRAIN)
    assert budget.taken == 7 * GRAIN
    with pytest.raises(OutOfMemory, match=f"budget of {10 * GRAIN}"):
        one.fit(7 * GRAIN)
    one.close()

    assert budget.taken == GRAIN


def test_tensors_are_placed_side_by_side():
    """Each aligned, in order; nothing needs nothing."""
    assert placed([]) == ([], 0)
    assert placed([1, 0, ALIGNMENT, ALIGNMENT + 1, 4]) == (
        [0, ALIGNMENT, ALIGNMENT, 2 * ALIGNMENT, 4 * ALIGNMENT],
        5 * ALIGNMENT,
    )
