"""Rows that see each other are found out."""

import numpy as np
import pytest

from forebay_server.engines.base import EngineBatch
from forebay_server.models.isolation import check_rows
from forebay_server.models.samples import Kind
from forebay_server.tensors import FREE, DataType, ModelSpec, TensorSpec

SPEC = ModelSpec(
    inputs=(TensorSpec(name="x", data_type=DataType.FP32, shape=(FREE, 8)),),
    outputs=(TensorSpec(name="y", data_type=DataType.FP32, shape=(FREE, 8)),),
    batched=True,
)


class Model:
    """An instance made of a function."""

    def __init__(self, function):
        self.function = function

    def stage(self, shapes):
        return None

    def infer(self, batch: EngineBatch):
        with np.errstate(all="ignore"):
            return [self.function(batch.inputs[0])]


def check(function):
    return check_rows(Model(function), SPEC, ((8,),), 4, Kind.RANDOM, np.random.default_rng(3))


def quantised(x):
    """Dynamic quantisation with one scale for the whole batch."""
    scale = np.abs(x).max() / np.float32(127)
    return (np.round(x / scale) * scale).astype(np.float32)


def noisy_rounding(x):
    """Another order of summation for larger batches: only the last bits differ."""
    return x * np.float32(1 + len(x) * 1e-7)


@pytest.mark.parametrize("function", [np.copy, np.sin, noisy_rounding, lambda x: x - x.mean(axis=1, keepdims=True)])
def test_models_that_keep_rows_apart_pass(function):
    """Nothing is said of row-wise models, even if rounding differs with the batch size."""
    assert check(function) == ""


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x - x.mean(axis=0),
        lambda x: np.cumsum(x, axis=0),
        lambda x: x[::-1].copy(),
        lambda x: x * np.float32(len(x)),
        lambda x: np.where(np.isnan(x).any(), np.float32(np.nan), x).astype(np.float32),
        quantised,
    ],
)
def test_models_that_mix_rows_are_named(function):
    """Means, running sums, shuffles, batch sizes, NaN that spreads and a shared scale all show."""
    assert "output 'y' changes with the other rows of its batch" in check(function)


def test_models_that_roll_dice_can_not_be_checked():
    """If the same row has two answers, nothing can be compared."""
    rng = np.random.default_rng(0)
    assert "differ by chance" in check(lambda x: x + rng.standard_normal(x.shape).astype(np.float32))


def test_outputs_that_do_not_follow_the_batch_are_named():
    """An output with another number of rows can't be cut up."""
    assert "has the shape [1, 8] for a batch of 4 rows" in check(lambda x: x[:1].copy())


def test_neighbours_that_a_model_refuses_are_left_out():
    """A model that raises on NaN is checked with the others."""

    def strict(x):
        if np.isnan(x).any():
            raise ValueError("NaN")
        return x.copy()

    assert check(strict) == ""
