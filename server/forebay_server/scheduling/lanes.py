"""Which lane a request waits in: one for each bucket and set of parameters of a model, as many as its policy allows.

A lane is made at its first request. When there are as many as there may be, one in which nothing waits gives way; who
still has it finds its successor here.
"""

from collections.abc import Mapping
from typing import Any

from forebay_server.errors import ForebayError, ModelNotFound, VersionNotFound
from forebay_server.scheduling.admission import shed_error
from forebay_server.scheduling.policy import Bucket, ModelKey
from forebay_server.scheduling.queue import Lane
from forebay_server.scheduling.state import Books, Model, reckon

_APART = "apart"


def find(books: Books, key: ModelKey, bucket: Bucket, parameters: Mapping[str, Any] | None) -> Lane | ForebayError:
    """The lane for requests of a shape, or why there is none."""
    model = books.models.get(key)
    if model is None:
        return no_model(books, key)
    place = (bucket, _comparable(parameters) if parameters else None)
    lane = model.lanes.get(place)
    if lane is None:
        if len(model.lanes) >= model.policy.max_lanes and not _drop_one(model):
            return shed_error(books, next(iter(model.lanes.values())), 1)
        lane = _make(model, place, bucket, parameters)
    return lane


def apart(lane: Lane) -> Lane:
    """The lane beside another one, for what must not share a batch with its requests."""
    model = lane.model
    place = (_APART, lane.bucket, _comparable(lane.parameters) if lane.parameters else None)
    found = model.lanes.get(place)
    if found is None:
        if len(model.lanes) >= model.policy.max_lanes:
            _drop_one(model)
        found = _make(model, place, lane.bucket, lane.parameters)
    return found


def no_model(books: Books, key: ModelKey) -> ForebayError:
    """What to say of a model that is not served."""
    name, version = key
    if any(other == name for other, _ in books.models):
        return VersionNotFound(f"the model {name!r} has no version {version}")
    return ModelNotFound(f"no model is called {name!r}")


def _make(model: Model, place: Any, bucket: Bucket, parameters: Mapping[str, Any] | None) -> Lane:
    lane = model.lanes[place] = Lane(model, model.key, bucket, parameters)
    reckon(lane)
    return lane


def _drop_one(model: Model) -> bool:
    """Forgets the oldest lane in which nothing waits; False if there is none."""
    for place, lane in model.lanes.items():
        if lane.tiers[0].rows == 0 and lane.tiers[1].rows == 0:
            lane.dropped = True
            for busy in model.busy:
                busy.pop(lane, None)
            del model.lanes[place]
            return True
    return False


def _comparable(parameters: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """A key under which only equal parameters of equal types meet (1, 1.0 and True are equal in Python)."""
    return tuple(sorted((name, type(value).__name__, repr(value)) for name, value in parameters.items()))
