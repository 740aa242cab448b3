"""Memory of an instance: made once, used again and again, never allocated for a request.

A `Chain` is memory of one kind that serves one batch at a time, whatever its size: it has a few pieces, each at least
half as large again as the one before, and a batch always gets the first one that holds it. So a size has one address
for good (captured graphs rely on it), all pieces together are no more than three times the largest, and once the
largest size has been seen nothing is allocated any more.

A `Budget` is what all instances of a model on one device may take there together.

Threads: a chain is used by one thread at a time; a budget by all.
"""

import threading
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from forebay_server.engines.base import OutOfMemory

GRAIN: Final = 65_536
"""Bytes; sizes are rounded up to multiples of this."""

ALIGNMENT: Final = 256
"""Bytes; where tensors begin inside a piece. What the runtime gives out is aligned to no less, and kernels count on
it."""


class Memory(Protocol):
    """`device.DeviceMemory` or `device.PinnedMemory`."""

    @property
    def size(self) -> int:
        """Bytes."""

    def close(self) -> None:
        """Frees it."""


Piece = TypeVar("Piece", bound=Memory)


class Budget:
    """A limit on device memory.

    Args:
        most: Bytes; 0: no limit but the device's own.
    """

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self._taken = 0
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """Bytes that are in use."""
        return self._taken

    def take(self, size: int) -> None:
        """Counts bytes that are about to be allocated.

        Raises:
            OutOfMemory: They would be over the limit.
        """
        with self._lock:
            if self._most and self._taken + size > self._most:
                raise OutOfMemory(
                    f"{size} bytes more than the {self._taken} in use would be over the model's budget of {self._most}"
                )
            self._taken += size

    def give_back(self, size: int) -> None:
        """Counts bytes that are free again."""
        with self._lock:
            self._taken -= size


class Chain(Generic[Piece]):
    """Memory for one batch at a time.

    Args:
        allocate: Makes a piece of at least so many bytes, or raises OutOfMemory.
        budget: What it counts against; None for memory of the host.
    """

    def __init__(self, allocate: Callable[[int], Piece], budget: Budget | None = None) -> None:
        self._allocate = allocate
        self._budget = budget
        self._pieces: list[Piece] = []

    def fit(self, size: int) -> Piece:
        """The piece for a batch of so many bytes; for equal sizes always the same.

        Raises:
            OutOfMemory: A new one would be needed, and there is no memory for it.
        """
        for piece in self._pieces:
            if piece.size >= size:
                return piece
        wanted = _rounded(size)
        roomy = max(wanted, _rounded(self._pieces[-1].size * 3 // 2)) if self._pieces else wanted
        try:
            piece = self._make(roomy)
        except OutOfMemory:
            if roomy == wanted:
                raise
            piece = self._make(wanted)
        self._pieces.append(piece)
        return piece

    def close(self) -> None:
        """Frees all. Nothing uses it any more."""
        while self._pieces:
            piece = self._pieces.pop()
            size = piece.size
            piece.close()
            if self._budget is not None:
                self._budget.give_back(size)

    def _make(self, size: int) -> Piece:
        if self._budget is None:
            return self._allocate(size)
        self._budget.take(size)
        try:
            return self._allocate(size)
        except BaseException:
            self._budget.give_back(size)
            raise


def placed(sizes: list[int]) -> tuple[list[int], int]:
    """Where tensors of such sizes begin in one piece, one after the other, and how many bytes they need in all."""
    offsets = []
    end = 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end


def _rounded(size: int) -> int:
    return max(1, -(-size // GRAIN)) * GRAIN
