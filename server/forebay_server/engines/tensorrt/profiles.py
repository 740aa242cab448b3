"""Optimization profiles: the shapes that a plan is built for, and which of them a batch belongs to.

A profile has, for each input, the least and the most of each dimension, and the shape for which TensorRT looks for the
fastest kernels. Pure: it knows neither TensorRT nor a device.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal, NamedTuple

from forebay_server.engines import buckets
from forebay_server.engines.base import ModelLoadError
from forebay_server.engines.gpu.device import Shape
from forebay_server.engines.gpu.graphs import ladder
from forebay_server.tensors import FREE, ModelSpec

DEFAULT_BATCH: Final = 128
Spread = Literal["bucket", "one"]
"""Whether each bucket gets a profile of its own, or one profile holds them all."""


class Range(NamedTuple):
    """What a profile holds of one input."""

    least: Shape
    best: Shape
    most: Shape

    def holds(self, shape: Shape) -> bool:
        """Whether a shape lies in it."""
        return len(shape) == len(self.most) and all(
            low <= length <= high for low, length, high in zip(self.least, shape, self.most, strict=True)
        )

    def distance(self, shape: Shape) -> int:
        """How far a shape is from the best one."""
        return sum(abs(length - best) for length, best in zip(shape, self.best, strict=True))


Profile = tuple[Range, ...]
"""One range for each input, in the order of the specification."""


def derive(
    spec: ModelSpec,
    ladders: Mapping[str, Sequence[Sequence[int]]],
    *,
    most_rows: int = 0,
    best_rows: int = 0,
    spread: Spread = "bucket",
) -> list[Profile]:
    """The profiles to build for a model.

    Args:
        spec: The model's, as it will be served; of a model that is not batched, the ladders are of whole shapes.
        ladders: Per input name the shapes that its requests are padded up to: `config.tree.BucketsConfig.shapes`.
        most_rows: The most rows in a batch; 0: 128.
        best_rows: The rows to be fastest at; 0: the most.
        spread: Which profiles.

    Returns:
        The profiles; none if the model has no free dimension, because TensorRT then wants none.

    Raises:
        ModelLoadError: A shape is open, or does not fit.
    """
    _check_ladders(spec, ladders)
    if all(FREE not in tensor.shape for tensor in spec.inputs):
        return []
    lead = 1 if spec.batched else 0
    row_shapes = [tensor.shape[lead:] for tensor in spec.inputs]
    known = buckets.named(row_shapes, _ladders(spec, ladders))
    if not known:
        first = next(tensor for tensor in spec.inputs if FREE in tensor.shape[lead:] and not ladders.get(tensor.name))
        raise ModelLoadError(
            f"the input {first.name!r} has free dimensions, {list(first.shape)}, and a plan is built for known ones: "
            f"set buckets.shapes.{first.name}"
        )
    most = most_rows or DEFAULT_BATCH
    best = min(best_rows or most, most)

    def rows(count: int, shape: Shape) -> Shape:
        return (count, *shape) if spec.batched else shape

    if spread == "one":
        per_input = list(zip(*known, strict=True))
        lowest = [tuple(map(min, zip(*shapes, strict=True))) for shapes in per_input]
        highest = [tuple(map(max, zip(*shapes, strict=True))) for shapes in per_input]
        ends = zip(lowest, highest, strict=True)
        return [tuple(Range(rows(1, low), rows(best, high), rows(most, high)) for low, high in ends)]
    return [tuple(Range(rows(1, shape), rows(best, shape), rows(most, shape)) for shape in bucket) for bucket in known]


def choose(profiles: Sequence[Profile], shapes: Sequence[Shape]) -> int | None:
    """The profile for a batch: of those that hold its shapes the one whose best is nearest; None if none does."""
    found, nearest = None, math.inf
    for number, profile in enumerate(profiles):
        if all(held.holds(shape) for held, shape in zip(profile, shapes, strict=True)):
            distance = sum(held.distance(shape) for held, shape in zip(profile, shapes, strict=True))
            if distance < nearest:
                found, nearest = number, distance
    return found


def free_first(spec: ModelSpec) -> bool:
    """Whether dimension 0 is free in all inputs and outputs."""
    return all(tensor.shape and tensor.shape[0] == FREE for tensor in (*spec.inputs, *spec.outputs))


def batched(spec: ModelSpec, profiles: Sequence[Profile]) -> bool:
    """Whether dimension 0 of a plan is the batch: free, of one range in all inputs, and of more than one length."""
    rows = [{(held.least[0], held.best[0], held.most[0]) for held in profile if held.most} for profile in profiles]
    varies = any(least < most for ranges in rows for least, _, most in ranges)
    return free_first(spec) and all(len(ranges) == 1 for ranges in rows) and varies


def served(spec: ModelSpec, dimension: Literal["auto", "first", "none"]) -> ModelSpec:
    """The specification after its owner's word on the batch dimension: `config.tree.BatchingConfig.batch_dimension`.

    Whether that can be so, the loader says.
    """
    if dimension == "auto":
        return spec
    possible = all(tensor.shape for tensor in (*spec.inputs, *spec.outputs))
    return replace(spec, batched=dimension == "first" and possible)


def settled(spec: ModelSpec, profiles: Sequence[Profile], ladders: Mapping[str, Sequence[Sequence[int]]]) -> ModelSpec:
    """The specification with the lengths that are free in the plan, but the same in all its profiles.

    Args:
        spec: As it is served. Its batch dimension stays free.
        profiles: Of the plan.
        ladders: As for `derive`. Inputs with one stay as they are, because shorter requests are padded.
    """
    lead = 1 if spec.batched else 0
    inputs = []
    for index, tensor in enumerate(spec.inputs):
        shape = list(tensor.shape)
        for position in range(lead, len(shape) if tensor.name not in ladders else 0):
            lengths = {profile[index][end][position] for profile in profiles for end in range(3)}
            if len(lengths) == 1:
                shape[position] = lengths.pop()
        inputs.append(replace(tensor, shape=tuple(shape)))
    return replace(spec, inputs=tuple(inputs))


def fitting(
    spec: ModelSpec, profiles: Sequence[Profile], ladders: Mapping[str, Sequence[Sequence[int]]], most_rows: int
) -> list[int]:
    """The batch sizes to pad up to, each of which has a profile in every bucket.

    Args:
        spec: As it will be served.
        profiles: Of the plan.
        ladders: As for `derive`.
        most_rows: The most rows in a batch, as the owner has set it; 0: what the plan takes.

    Returns:
        The sizes, ascending; none if the model is not batched.

    Raises:
        ModelLoadError: A bucket, or the owner's most rows, has no profile; or the plan is for certain shapes, and no
            bucket is set.
    """
    _check_ladders(spec, ladders)
    lead = 1 if spec.batched else 0
    known = buckets.named([tensor.shape[lead:] for tensor in spec.inputs], _ladders(spec, ladders))
    if not known and all(held.least[lead:] == held.most[lead:] for profile in profiles for held in profile):
        raise ModelLoadError(f"it is built for certain shapes, {said(spec, profiles)}: set them in buckets.shapes")
    if not spec.batched:
        for bucket in known:
            if choose(profiles, bucket) is None:
                raise ModelLoadError(_misfit(spec, profiles, bucket))
        return []
    most = max(profile[0].most[0] for profile in profiles)
    if most_rows > most:
        raise ModelLoadError(f"batching.max_batch_size is {most_rows}, but the plan takes at most {most} rows")
    cap = most_rows or most
    found = sizes(min(profile[0].least[0] for profile in profiles), cap)
    found = sorted({*found, *(profile[0].least[0] for profile in profiles if profile[0].least[0] <= cap)})
    for bucket in known:
        held = [size for size in found if choose(profiles, [(size, *shape) for shape in bucket]) is not None]
        if not held or (most_rows and held[-1] != most_rows):
            raise ModelLoadError(_misfit(spec, profiles, [(most_rows or found[-1], *shape) for shape in bucket]))
        found = held
    if not known:
        found = [size for size in found if any(_holds_rows(profile, size) for profile in profiles)]
    return found


def sizes(least: int, most: int) -> list[int]:
    """Batch sizes from `least` to `most`, the two and those of `engines.gpu.graphs.ladder` between them."""
    return sorted({least, most} | {size for size in ladder(most) if size > least})


def said(spec: ModelSpec, profiles: Sequence[Profile]) -> str:
    """The profiles in a few words: `x [1, 3] to [8, 3] and x [1, 6] to [8, 6]`; at most four of them."""
    texts = [
        ", ".join(
            f"{tensor.name} {list(held.least)} to {list(held.most)}"
            for tensor, held in zip(spec.inputs, profile, strict=True)
        )
        for profile in profiles
    ]
    more = f" and {len(texts) - 4} more" if len(texts) > 4 else ""
    return " and ".join(texts[:4]) + more


def _holds_rows(profile: Profile, rows: int) -> bool:
    return profile[0].least[0] <= rows <= profile[0].most[0]


def _misfit(spec: ModelSpec, profiles: Sequence[Profile], shapes: Sequence[Shape]) -> str:
    wanted = ", ".join(f"{tensor.name} {list(shape)}" for tensor, shape in zip(spec.inputs, shapes, strict=True))
    return (
        f"no profile of the plan holds {wanted}; it has {said(spec, profiles)}: change buckets.shapes or "
        "batching.max_batch_size, or build it again"
    )


def _ladders(spec: ModelSpec, ladders: Mapping[str, Sequence[Sequence[int]]]) -> list[Sequence[Sequence[int]] | None]:
    return [ladders.get(tensor.name) for tensor in spec.inputs]


def _check_ladders(spec: ModelSpec, ladders: Mapping[str, Sequence[Sequence[int]]]) -> None:
    lead = 1 if spec.batched else 0
    buckets.check({tensor.name: tensor.shape[lead:] for tensor in spec.inputs}, ladders)
