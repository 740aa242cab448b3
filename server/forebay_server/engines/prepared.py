"""An instance that prepares its inputs on the CPU, in front of one that can't do it itself: any engine's.

See `engines.preparation` for what is done. Called by the loader.
"""

import math
from collections.abc import Sequence

import numpy as np

from forebay_server.engines.base import EngineBatch, Instance
from forebay_server.engines.preparation import Preparation
from forebay_server.tensors import NUMPY_DTYPES, Array


class PreparedInstance:
    """An instance that is given what callers send, and gives an inner one what the model takes.

    Args:
        inner: Runs the model; closed with this one.
        preparations: One per input; None where the model takes what callers send.
    """

    def __init__(self, inner: Instance, preparations: Sequence[Preparation | None]) -> None:
        self._inner = inner
        self._preparations = tuple(preparations)
        self._memory: list[Array] = [np.empty(0, np.uint8) for _ in preparations]

    def stage(self, shapes: Sequence[tuple[int, ...]]) -> None:  # the port's name
        """Any memory will do: it is read once more."""

    def infer(self, batch: EngineBatch) -> Sequence[Array]:
        """Prepares the inputs, into the inner instance's staging buffers if it has some, and runs the batch."""
        pairs = list(zip(self._preparations, batch.inputs, strict=True))
        shapes = [array.shape if made is None else made.target_shape(array.shape) for made, array in pairs]
        staged = self._inner.stage(shapes)
        inputs: list[Array] = []
        for index, (made, array) in enumerate(pairs):
            if made is not None:
                target = self._room(index, made, shapes[index]) if staged is None else staged[index]
                made.apply(array, target)
                inputs.append(target)
            elif staged is not None:
                staged[index][...] = array
                inputs.append(staged[index])
            else:
                inputs.append(array)
        return self._inner.infer(EngineBatch(inputs, batch.rows, batch.parameters))

    def close(self) -> None:
        """Closes the inner instance."""
        self._inner.close()
        self._memory.clear()

    def _room(self, index: int, made: Preparation, shape: tuple[int, ...]) -> Array:
        """Memory for an input, kept from batch to batch: fresh pages would cost more than filling them."""
        dtype = NUMPY_DTYPES[made.target.data_type]
        size = dtype.itemsize * math.prod(shape)
        if self._memory[index].nbytes < size:
            self._memory[index] = np.empty(size, np.uint8)
        return self._memory[index][:size].view(dtype).reshape(shape)
