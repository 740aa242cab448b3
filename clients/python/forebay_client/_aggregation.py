"""What an aggregator decides: which requests go together, when they go, and what each of them gets back.

Pure: no thread, no loop, no clock. `_sync_aggregator` and `_async_aggregator` act on it.

Over a link whose round trip is long, or on which each message is dear, many small requests cost more than one of many
rows. The server makes batches of them anyhow; so this is for the way there, not for the engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from forebay_client._core import Inputs
from forebay_client._exceptions import BadResponse, ForebayError, InternalError, InvalidRequest, MessageTooLarge
from forebay_client._results import Prediction
from forebay_client._tensors import Array, as_array

ROWS = 64  # rows
DELAY = 0.005  # seconds

Key = tuple[tuple[str, str, tuple[int, ...]], ...]
Ticket = TypeVar("Ticket")


class Sample:
    """The inputs of one caller.

    Raises:
        TypeError: An input can't be sent.
        ValueError: They have no rows in common.
    """

    __slots__ = ("arrays", "key", "named", "rows")

    def __init__(self, inputs: Inputs) -> None:
        self.named = isinstance(inputs, Mapping)
        """Whether the inputs have names; else it is the model's only one."""
        given: Mapping[str, Any] = inputs if isinstance(inputs, Mapping) else {"": inputs}
        self.arrays: dict[str, Array] = {name: _with_rows(name, value) for name, value in given.items()}
        counts = {array.shape[0] for array in self.arrays.values()}
        if len(counts) != 1:
            raise ValueError(f"the inputs of one request must have the same number of rows, not {sorted(counts)}")
        (self.rows,) = counts
        self.key: Key = tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in self.arrays.items()))
        """Only inputs of the same names, types and shapes, but for the rows, go together."""


def _with_rows(name: str, value: Any) -> Array:
    array = as_array(name, value)
    if not array.ndim:
        raise ValueError(f"input {name!r} has no dimension for rows")
    return array.astype(np.object_) if array.dtype.kind in "SUT" else array


@dataclass(slots=True)
class Batch(Generic[Ticket]):
    """Requests that go together."""

    due: float
    """The monotonic instant at which it goes, full or not."""
    samples: list[Sample] = field(default_factory=list)
    tickets: list[Ticket] = field(default_factory=list)
    """What the callers wait on."""
    rows: int = 0
    full: bool = False

    def merged(self) -> Inputs:
        """The inputs of all, one after the other."""
        first = self.samples[0]
        arrays = {
            name: np.concatenate([sample.arrays[name] for sample in self.samples]) if len(self.samples) > 1 else array
            for name, array in first.arrays.items()
        }
        return arrays if first.named else arrays[""]

    def split(self, prediction: Prediction) -> list[Prediction]:
        """Each caller's own part of the outputs, as views.

        Raises:
            BadResponse: An output has other rows than the inputs.
        """
        for name, array in prediction.items():
            if array.shape[:1] != (self.rows,):
                raise BadResponse(f"output {name!r} has the shape {array.shape} for {self.rows} rows")
        parts: list[Prediction] = []
        start = 0
        for sample in self.samples:
            end = start + sample.rows
            outputs = {name: array[start:end] for name, array in prediction.items()}
            parts.append(
                Prediction(outputs, model=prediction.model, version=prediction.version, timings=prediction.timings)
            )
            start = end
        return parts


class AggregationCore(Generic[Ticket]):
    """The batches that are being filled.

    Args:
        rows: A batch goes as soon as it has so many; a request with more goes at once.
        delay: Seconds after its first request at which a batch goes anyhow.

    Raises:
        ValueError: An argument is out of range.
    """

    __slots__ = ("_delay", "_open", "_rows")

    def __init__(self, *, rows: int, delay: float) -> None:
        if rows < 1:
            raise ValueError(f"a batch has at least one row, not {rows}")
        if not 0 <= delay < float("inf"):
            raise ValueError(f"delay is a number of seconds from 0 on, not {delay}")
        self._rows = rows
        self._delay = delay
        self._open: dict[Key, Batch[Ticket]] = {}

    def add(self, sample: Sample, ticket: Ticket, *, now: float) -> tuple[Batch[Ticket], bool]:
        """Adds a request; its batch, and whether it is the first in it, whose caller sees to it that the batch goes."""
        batch = self._open.get(sample.key)
        first = batch is None
        if batch is None:
            batch = self._open[sample.key] = Batch(now + self._delay)
        batch.samples.append(sample)
        batch.tickets.append(ticket)
        batch.rows += sample.rows
        if batch.rows >= self._rows:
            self.close(batch)
        return batch, first

    def close(self, batch: Batch[Ticket]) -> None:
        """The batch goes: nothing is added to it any more."""
        batch.full = True
        key = batch.samples[0].key
        if self._open.get(key) is batch:
            del self._open[key]


def separable(error: ForebayError) -> bool:
    """Whether one request may be to blame for the error of a batch, so that each is to be sent alone."""
    return isinstance(error, (InvalidRequest, InternalError, MessageTooLarge))
