"""Runs batches on the CPU, through a compiled package or a module.

AOTInductor's Python binding holds the GIL while a package runs (https://github.com/pytorch/pytorch/issues/197516), so
two instances of one process do not run at the same time, and the dispatcher waits wherever a batch runs: by default
inline, where the watchdog knows how long that may take. Torch's own threads work inside a batch all the same. Modules
release the GIL in each of their operations.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from forebay_server.engines.base import EngineBatch, OutOfMemory, RejectInput
from forebay_server.engines.torch.profile import Profile, Shape
from forebay_server.engines.torch.staging import Arrays, Layout, Staging
from forebay_server.tensors import Array, ModelSpec

Run = Callable[[list[Any]], Sequence[Any]]
"""Computes the outputs of a batch, tensors of tensors, in the order of the specification. It may empty the list."""


class CpuInstance:
    """One runner of batches.

    Args:
        torch: The library.
        run: Computes.
        spec: The model's.
        profile: A package's; None of a module.
        threads: That torch may use in a batch.
    """

    def __init__(self, torch: Any, run: Run, spec: ModelSpec, profile: Profile | None, threads: int) -> None:
        self._torch = torch
        self._run: Run | None = run
        self._staging = Staging(torch, spec, profile)
        self._arrays = Arrays(torch, spec, checked=profile is None)
        self._threads = threads
        self._thread = 0
        self._layout: Layout | None = None

    def stage(self, shapes: Sequence[Shape]) -> Sequence[Array]:
        """Gives out memory that torch reads in place."""
        self._layout = layout = self._staging.layout(shapes)
        return layout.arrays

    def infer(self, batch: EngineBatch) -> Sequence[Array]:
        """Runs a batch. The outputs are torch's memory, which the arrays keep alive.

        Raises:
            RejectInput: It doesn't fit the package's profile.
            OutOfMemory: The machine has no memory for it.
            OutputMismatch: A module returned something else than its specification promises.
        """
        run, layout = self._run, self._layout
        if run is None:
            raise RuntimeError("the instance is closed")
        if layout is None or any(array is not place for array, place in zip(batch.inputs, layout.arrays, strict=True)):
            layout = self._staging.filled(batch.inputs)
        if layout.refusal:
            raise RejectInput(layout.refusal)
        if self._thread != (thread := threading.get_ident()):  # OpenMP counts by the thread that asks
            self._torch.set_num_threads(self._threads)
            self._thread = thread
        try:
            outputs = run(list(layout.tensors))
        except RuntimeError as error:
            if "can't allocate memory" in str(error):
                raise OutOfMemory from error
            raise
        return self._arrays.of(outputs, layout.memory)

    def close(self) -> None:
        """Lets go of the package or module."""
        self._run = self._layout = None
