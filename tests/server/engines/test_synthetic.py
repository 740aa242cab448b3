"""The synthetic engine: an echo that misbehaves as it is told."""

import threading
import time

import numpy as np
import pytest

from forebay_server.engines.base import EngineBatch, EngineDead, ModelLoadError, OutOfMemory, RejectInput
from forebay_server.engines.synthetic import SyntheticEngine, SyntheticFailure
from forebay_server.tensors import FREE, DataType

X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], "f4")


def test_it_echoes(opened):
    """The output is the input in other memory."""
    spec, infer = opened(SyntheticEngine, "")
    assert spec.inputs[0].shape == (FREE, 4)
    (y,) = infer(X)
    assert np.array_equal(y, X)
    assert not np.shares_memory(y, X)


def test_options_in_the_path_are_stronger(opened):
    """`synthetic:...` says the same as options, and wins."""
    spec, infer = opened(SyntheticEngine, "data_type=INT64,shape=2x?,scale=3", data_type="FP32", scale=2)
    assert (spec.inputs[0].data_type, spec.inputs[0].shape) == (DataType.INT64, (FREE, 2, FREE))
    assert infer(np.ones((1, 2, 1), "i8"))[0].tolist() == [[[3], [3]]]


@pytest.mark.parametrize("busy", [False, True])
def test_a_batch_takes_base_plus_rows(opened, busy):
    """Latency is what was asked for, at least, asleep or busy."""
    _, infer = opened(SyntheticEngine, "base_ms=10,row_ms=5", busy=busy)
    begin = time.perf_counter()
    infer(X)
    assert 0.020 <= time.perf_counter() - begin < 0.5


def test_rows_can_be_poison_refused_or_deadly(opened):
    """Special values make a row do something, wherever in the batch; padding rows don't count."""
    _, infer = opened(SyntheticEngine, "poison=5,reject=6,dies=7,worker=true")
    first = np.zeros((3, 4), "f4")
    for value, kind in ((5, SyntheticFailure), (6, RejectInput), (7, EngineDead)):
        first[2, 0] = value
        infer(first, rows=2)
        with pytest.raises(kind) as caught:
            infer(first)
        if kind is RejectInput:
            assert caught.value.rows == [2]
    with pytest.raises(EngineDead):
        infer(X)


def test_failures_by_chance_repeat_with_the_seed(opened):
    """The same seed gives the same failures."""

    def failures(seed):
        _, infer = opened(SyntheticEngine, "failure_rate=0.5,from_start=true", seed=seed)
        pattern = ""
        for _ in range(32):
            try:
                infer(X)
                pattern += "."
            except SyntheticFailure:
                pattern += "F"
        return pattern

    assert failures(1) == failures(1) != failures(2)
    assert 5 < failures(1).count("F") < 27


def test_misbehaviour_waits_until_the_loading_thread_is_left(opened):
    """What goes by count or size leaves warm-up alone, which runs in the thread that made the instance."""
    _, infer = opened(SyntheticEngine, "oom_above=1,dies_after=1")
    for _ in range(3):
        infer(X)
    seen = []

    def serve():
        for _ in range(3):
            try:
                infer(X[:1] if not seen else X)
                seen.append("fine")
            except (OutOfMemory, EngineDead) as error:
                seen.append(type(error).__name__)

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert seen == ["fine", "EngineDead", "EngineDead"]


def test_out_of_memory_above_a_size(opened):
    """Batches over the limit have no memory, those up to it pass."""
    _, infer = opened(SyntheticEngine, "oom_above=1,from_start=true")
    infer(X[:1])
    with pytest.raises(OutOfMemory):
        infer(X)


def test_a_hang_ends_with_release(settings):
    """A hanging batch goes on when the engine is released, and such engines always get a worker."""
    engine = SyntheticEngine("hang=5", settings())
    engine.load()
    assert engine.always_worker
    instance = engine.instance(0)
    done = threading.Event()
    thread = threading.Thread(target=lambda: (instance.infer(EngineBatch([X], 2)), done.set()))
    thread.start()
    assert not done.wait(0.05)
    engine.release()
    assert done.wait(5)
    thread.join()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("shape=3by3", "is not like 3x224x224"),
        ("data_type=FLOAT", "there is no 'FLOAT'"),
        ("speed=3", "no option speed"),
        ("base_ms", "is not like name=value"),
        ("base_ms=fast", "must be a float"),
        ("data_type=BYTES,poison=3", "can only be echoed"),
    ],
)
def test_wrong_options(opened, path, text):
    """A mistake in the options is one sentence."""
    with pytest.raises(ModelLoadError, match=text):
        opened(SyntheticEngine, path)
