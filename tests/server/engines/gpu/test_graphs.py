"""The sizes that are worth a graph. (How graphs are made and used is the pipeline's tests'.)"""

import pytest

from forebay_server.engines.gpu.graphs import ladder


@pytest.mark.parametrize(
    ("cap", "sizes"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (4, (1, 2, 3, 4)),
        (10, (1, 2, 3, 4, 6, 8, 10)),
        (12, (1, 2, 3, 4, 6, 8, 12)),
        (64, (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)),
    ],
)
def test_ladder(cap, sizes):
    """Two sizes for each doubling, and the cap."""
    assert ladder(cap) == sizes


def test_little_is_padded():
    """Less than half as many rows again, and less than a fifth on average over all sizes of a doubling."""
    sizes = ladder(512)
    ratios = [next(size for size in sizes if size >= rows) / rows for rows in range(1, 513)]
    assert max(ratios) < 1.5
    octave = [next(size for size in sizes if size >= rows) / rows for rows in range(257, 513)]
    assert sum(octave) / len(octave) < 1.2
