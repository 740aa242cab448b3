"""Runs one batch on one instance, and says what came of it in the core's words. Called by workers and by the runner.

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
    ParameterValue,
    RejectInput,
)
from forebay_server.errors import Internal
from forebay_server.scheduling.bisection import Died, Faulted, NoMemory, Outcome, Rejected, Succeeded
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
    except RejectInput as error:
        outcome: Outcome = Rejected(str(error.message), _row_numbers(error.rows))
    except (OutOfMemory, MemoryError):
        log.warning("out of memory", model=lane.key, rows=batch.padded_rows)
        outcome = NoMemory()
    except EngineDead:
        log.exception("engine is dead", model=lane.key, instance=batch.instance)
        outcome = Died()
    except Exception:  # noqa: BLE001  the engine is foreign code
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
