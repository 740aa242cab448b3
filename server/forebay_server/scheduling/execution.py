"""Runs one batch on one instance, in one go or in two halves, and says what came of it in the core's words.

Called by workers and by the runner.

The engine is foreign code: whatever it raises ends here. No exception's text goes on to callers but that of
`RejectInput`, which is meant for them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import structlog

from forebay_server.engines.base import (
    NO_PARAMETERS,
    EngineBatch,
    EngineDead,
    Instance,
    OutOfMemory,
    OverlappingInstance,
    ParameterValue,
    RejectInput,
)
from forebay_server.errors import Internal
from forebay_server.scheduling.outcomes import Died, Faulted, NoMemory, Outcome, Rejected, Succeeded
from forebay_server.scheduling.policy import Bucket
from forebay_server.scheduling.request import Batch, Part
from forebay_server.tensors import Array

Log = structlog.typing.FilteringBoundLogger
Clock = Callable[[], float]


class Collator(Protocol):
    """What the runner needs of `engines.collate.Collator`.

    `collate` and `outputs` are called by the thread that runs the instance, `join` by the dispatcher.
    """

    def collate(
        self,
        parts: Sequence[Part],
        bucket: Bucket,
        padded_rows: int,
        instance: Instance,
        parameters: Mapping[str, ParameterValue],
    ) -> EngineBatch:
        """Stacks the parts' inputs, pads rows to the bucket and the batch to `padded_rows`."""

    def outputs(self, arrays: Sequence[Array], rows: int) -> Any:
        """Makes `BatchOutputs` of what the engine has answered, for so many rows of requests."""

    def join(self, pieces: Sequence[tuple[Any, int, int]]) -> Any:
        """Makes the outputs of one request of pieces (outputs, first row, rows), in order."""


def execute(batch: Batch, instance: Instance, collator: Collator, clock: Clock, log: Log) -> Outcome:
    """Runs a batch and stamps when its engine was called and when that had answered."""
    lane = batch.lane
    batch.collated = 0.0
    try:
        stacked = collator.collate(
            batch.parts, lane.bucket, batch.padded_rows, instance, lane.parameters or NO_PARAMETERS
        )
        batch.collated = clock()
        arrays = instance.infer(stacked)
        batch.finished = clock()
        return Succeeded(collator.outputs(arrays, batch.rows))
    except Exception as error:  # noqa: BLE001  # the engine is foreign code
        return _failed(batch, error, clock, log)


class Ticket:
    """A batch that was issued: what its instance has given for it."""

    __slots__ = ("ticket",)

    def __init__(self, ticket: object) -> None:
        self.ticket = ticket


def issue(batch: Batch, instance: OverlappingInstance, collator: Collator, clock: Clock, log: Log) -> Ticket | Outcome:
    """The first half of `execute`: what is to be collected, or what came of it if it could not be begun."""
    lane = batch.lane
    batch.collated = 0.0
    try:
        stacked = collator.collate(
            batch.parts, lane.bucket, batch.padded_rows, instance, lane.parameters or NO_PARAMETERS
        )
        batch.collated = clock()
        return Ticket(instance.issue(stacked))
    except Exception as error:  # noqa: BLE001  # the engine is foreign code
        return _failed(batch, error, clock, log)


def collect(
    batch: Batch, issued: Ticket, instance: OverlappingInstance, collator: Collator, clock: Clock, log: Log
) -> Outcome:
    """The second half of `execute`, in another thread."""
    try:
        arrays = instance.collect(issued.ticket)
        batch.finished = clock()
        return Succeeded(collator.outputs(arrays, batch.rows))
    except Exception as error:  # noqa: BLE001  # the engine is foreign code
        return _failed(batch, error, clock, log)


def _failed(batch: Batch, error: Exception, clock: Clock, log: Log) -> Outcome:
    """What an exception of an engine means; stamps the batch. Called while the exception is handled."""
    model = batch.lane.key
    outcome: Outcome
    match error:
        case RejectInput():
            outcome = Rejected(str(error.message), _row_numbers(error.rows))
        case OutOfMemory() | MemoryError():
            log.warning("out of memory", model=model, rows=batch.padded_rows)
            outcome = NoMemory()
        case EngineDead():
            log.error("engine is dead", model=model, instance=batch.instance, device=error.device, exc_info=error)
            outcome = Died(error.device)
        case _:
            outcome = Faulted(_fault(batch, log))
    batch.finished = clock()
    batch.collated = batch.collated or batch.finished
    return outcome


def _fault(batch: Batch, log: Log) -> Internal:
    """Logs a fault under an id of its own; in full only once the culprit is alone."""
    error = Internal()
    log.error(
        "batch failed",
        model=batch.lane.key,
        instance=batch.instance,
        requests=len(batch.parts),
        error_id=error.error_id,
        exc_info=len(batch.parts) == 1,
    )
    return error


def _row_numbers(rows: Sequence[int] | None) -> list[int] | None:
    """The refused rows as plain integers; None if they make no sense."""
    try:
        return None if rows is None else [int(row) for row in rows]
    except (TypeError, ValueError):
        return None
