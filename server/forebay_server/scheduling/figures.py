"""What a model holds and how fast it is, for telemetry and for those who claim jobs. Nothing is changed here."""

from typing import NamedTuple

from forebay_server.scheduling.policy import ModelKey
from forebay_server.scheduling.queue import Lane
from forebay_server.scheduling.state import Books, reckon


class ModelFigures(NamedTuple):
    """What a model holds now."""

    queued_rows: int
    held_bytes: int
    running_batches: int
    lanes: int
    instances: int
    usable_instances: int
    wait_margin: float
    running_since: tuple[float, ...]
    """When each instance that runs a batch was given it, or had done with the one before; monotonic seconds."""


class Pace(NamedTuple):
    """About how fast a model is."""

    rows: int
    """Of a full batch."""
    instances: int
    """Usable ones that run jobs."""
    row_seconds: float
    """Engine seconds per row of a full batch; positive."""
    inline: bool = False
    """Its batches run in the dispatcher."""


def figures_of(books: Books, key: ModelKey) -> ModelFigures:
    """What a model holds now. Raises KeyError if it is not served."""
    model = books.models[key]
    running = [slot for slot in (*model.slots, *model.job_slots) if slot.batch is not None]
    return ModelFigures(
        queued_rows=model.rows,
        held_bytes=model.held_bytes,
        running_batches=sum(1 + len(slot.behind) for slot in running),
        lanes=len(model.lanes),
        instances=len(model.slots),
        usable_instances=len(model.usable),
        wait_margin=model.margin,
        running_since=tuple(max(slot.batch.dispatched, slot.freed) for slot in running if slot.batch is not None),
    )


def pace_of(books: Books, name: str) -> Pace | None:
    """About how fast a model runs what has no deadline; None if nobody runs it now.

    Of the versions that have a usable instance the largest number counts, and there the lane that has had most
    batches; before the first batch, the bucket of which costs are known.
    """
    served = [model for (other, _), model in books.models.items() if other == name and model.usable]
    if not served:
        return None
    model = max(served, key=lambda model: model.key[1])
    if model.lanes:
        lane = max(model.lanes.values(), key=lambda lane: lane.batches)
    else:
        points = model.costs.points()
        lane = Lane(model, model.key, points[0].bucket if points else (), None)
        reckon(lane)
    instances = model.usable_for_jobs or model.usable
    return Pace(lane.backlog_cap, len(instances), lane.row_cost, instances[0].inline)
