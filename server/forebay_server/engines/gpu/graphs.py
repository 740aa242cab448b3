"""CUDA graphs of an instance: a batch whose shapes and addresses were captured at warm-up costs one launch.

Captured is only at warm-up (`pipeline.GpuInstance` sees to that), after a run with the same shapes and addresses was
waited for. What can't be captured runs plainly, for good: that is slower, not wrong. Batches are padded up to sizes
that are captured if the engine names these in `Engine.batch_sizes`, for which `ladder` is meant.

Threads: as of the instance.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import structlog

from forebay_server.engines.gpu.device import CaptureFailed, Computation, Graph, Recording, Shape, Stream

MOST: Final = 256
"""Graphs of an instance; each holds a few MiB of device memory and of the driver's."""

Launch = Callable[[], None]

_log = structlog.get_logger(__name__)


def ladder(cap: int) -> tuple[int, ...]:
    """Sizes for which graphs are worth their memory: 1, 2, 3, 4, 6, 8, 12, 16, ... and the cap.

    Two sizes for each doubling: padding adds less than half as many rows again, and less than a fifth on average.
    """
    sizes = {cap}
    size = 1
    while size < cap:
        sizes.add(size)
        if size >= 2 and size * 3 // 2 < cap:
            sizes.add(size * 3 // 2)
        size *= 2
    return tuple(sorted(sizes))


class Graphs:
    """The graphs of one computation on one stream."""

    def __init__(self, computation: Computation, stream: Stream, most: int = MOST) -> None:
        self._computation = computation
        self._stream = stream
        self._most = most
        self._graphs: list[Graph] = []
        self.count = 0
        """How many there are."""
        self._refused = 0

    @property
    def wanted(self) -> bool:
        """Whether there can be one more."""
        able = self._computation.capturable or isinstance(self._computation, Recording)
        return able and self.count < self._most

    def capture(self, inputs: Sequence[int], shapes: Sequence[Shape], outputs: Sequence[int]) -> Launch | None:
        """Makes a graph of one run; the arguments are those of `Computation.enqueue`.

        Returns:
            What enqueues it, or None if the run can't be captured. It is usable until `close`.
        """
        computation, stream = self._computation, self._stream
        launch: Launch
        try:
            if isinstance(computation, Recording):
                launch = computation.record_run(inputs, shapes, outputs, stream)
            else:
                graph = stream.capture(lambda: computation.enqueue(inputs, shapes, outputs, stream))
                self._graphs.append(graph)
                launch = partial(stream.launch, graph)
        except CaptureFailed as error:
            self._refused += 1
            if self._refused == 1:  # the others will fail alike
                _log.warning("graph not captured", shapes=shapes, because=str(error))
            return None
        self.count += 1
        return launch

    def close(self) -> None:
        """Lets go of all. The stream is empty."""
        while self._graphs:
            self._graphs.pop().close()
