"""The ladder of batch sizes and what is measured on it."""

import numpy as np
import pytest

from forebay_server.engines.base import EngineDead, ModelLoadError, OutOfMemory, RejectInput
from forebay_server.models import samples, warm_up
from forebay_server.models.samples import Kind
from forebay_server.tensors import FREE, NUMPY_DTYPES, DataType, ModelSpec, TensorSpec

SPEC = ModelSpec(
    inputs=(TensorSpec(name="x", data_type=DataType.FP32, shape=(FREE, 2)),),
    outputs=(TensorSpec(name="y", data_type=DataType.FP32, shape=(FREE, 2)),),
    batched=True,
)
BUCKET = ((2,),)


class Clocked:
    """An instance whose batches take a time on a clock that it moves itself."""

    def __init__(self, cost, most=10**9):
        self.now = 0.0
        self.cost = cost
        self.most = most
        self.sizes = []

    def stage(self, shapes):
        return None

    def infer(self, batch):
        if batch.rows > self.most:
            raise OutOfMemory
        self.sizes.append(batch.rows)
        self.now += self.cost(batch.rows)
        return batch.inputs


def measure(instance, sizes):
    rng = np.random.default_rng(0)
    points, fits = warm_up.measure(instance, SPEC, BUCKET, sizes, Kind.RANDOM, rng, clock=lambda: instance.now)
    assert fits is (instance.most >= max(sizes))
    return [(rows, pytest.approx(seconds)) for _, rows, seconds in points]


@pytest.mark.parametrize(
    ("cap", "sizes", "expected"),
    [(1, (), [1]), (6, (), [1, 2, 4, 6]), (8, (), [1, 2, 4, 8]), (8, (16, 4), [4]), (2, (4,), [4])],
)
def test_ladder(cap, sizes, expected):
    """Powers of two and the cap; or just the sizes that batches are padded to."""
    assert warm_up.ladder(cap, sizes) == expected


def test_medians_of_each_size():
    """Each rung is the median, so that one slow run doesn't count; the first run never does."""
    instance = Clocked(lambda rows: 0.001 + rows * 0.0001)
    instance.cost = lambda rows: 1.0 if len(instance.sizes) in (1, 3) else 0.001 + rows * 0.0001
    assert measure(instance, [1, 2, 4]) == [(1, 0.0011), (2, 0.0012), (4, 0.0014)]
    assert instance.sizes == [1] * 4 + [2] * 8 + [4] * 8


def test_the_ladder_ends_when_batches_get_slow():
    """A batch over two seconds is timed once, and is the last one."""
    instance = Clocked(lambda rows: rows * 0.7)
    assert measure(instance, [1, 2, 4, 8]) == [(1, 0.7), (2, 1.4), (4, 2.8)]
    assert instance.sizes.count(4) == 1


def test_the_ladder_ends_when_throughput_falls():
    """Larger batches that are served slower per row are not worth measuring further."""
    instance = Clocked(lambda rows: 0.001 * rows**2)
    assert [rows for rows, _ in measure(instance, [1, 2, 4, 8])] == [1, 2]


def test_the_ladder_ends_where_memory_does():
    """Sizes that don't fit are missing."""
    assert [rows for rows, _ in measure(Clocked(lambda _rows: 0.001, most=4), [1, 2, 4, 8, 16])] == [1, 2, 4]


def test_best_size_is_the_smallest_within_five_percent():
    """The smallest size that gives nearly the best throughput."""
    points = [(BUCKET, 1, 0.010), (BUCKET, 2, 0.0115), (BUCKET, 4, 0.0210), (BUCKET, 8, 0.0430)]
    assert warm_up.best_size(points) == (4, 0.0210)
    assert warm_up.best_size([]) == (0, 0.0)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("data_type", list(DataType))
def test_made_up_inputs_are_valid(data_type, kind):
    """Every kind exists for every type, with the right type and shape, and integers that are small."""
    spec = ModelSpec(inputs=(TensorSpec(name="x", data_type=data_type, shape=(FREE, FREE)),), outputs=(), batched=True)
    (array,) = samples.batch_of(spec, ((3,),), 2, kind, np.random.default_rng(0))
    assert (array.dtype, array.shape) == (NUMPY_DTYPES[data_type], (2, 3))
    if data_type is DataType.BYTES:
        assert all(isinstance(element, bytes) for element in array.reshape(-1))
    elif array.dtype.kind in "iub":
        assert set(array.reshape(-1).tolist()) <= {0, 1}
    elif kind is Kind.NAN:
        assert np.isnan(array.astype(float)).all()
    else:
        assert np.isfinite(array.astype(float)).all()


class Picky:
    """Takes only zeros, or raises something."""

    def __init__(self, error):
        self.error = error

    def stage(self, shapes):
        return None

    def infer(self, batch):
        if batch.inputs[0].any() or isinstance(self.error, OutOfMemory | EngineDead):
            raise self.error
        return batch.inputs


def test_the_first_kind_that_the_model_takes_is_used():
    """Random values first, zeros last."""
    rng = np.random.default_rng(0)
    assert warm_up.usable_kind(Picky(RejectInput("no")), SPEC, BUCKET, 1, rng) == (Kind.ZEROS, "")
    for error in (OutOfMemory(), EngineDead("gone")):
        with pytest.raises(ModelLoadError):
            warm_up.usable_kind(Picky(error), SPEC, BUCKET, 1, rng)
