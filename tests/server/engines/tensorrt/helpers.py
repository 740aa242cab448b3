"""Small things that the tests of this folder share."""

import numpy as np
import pytest

from forebay_server.engines.base import EngineBatch, ModelLoadError

RANGE = {"x": [[1, 64], [8, 64], [8, 64]]}
"""A profile of `OnnxModels.make_linear_model`."""


def ones(rows):
    """Rows for that model."""
    return np.ones((rows, 64), np.float32)


def infer(instance, *arrays):
    """Runs a batch through the staging buffers, as collate does."""
    staged = instance.stage([array.shape for array in arrays])
    for buffer, array in zip(staged, arrays, strict=True):
        buffer[...] = array
    return instance.infer(EngineBatch(staged, len(arrays[0])))


def refusal(engine):
    """What `load` says."""
    with pytest.raises(ModelLoadError) as caught:
        engine.load()
    return str(caught.value)
