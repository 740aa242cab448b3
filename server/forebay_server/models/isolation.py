"""Whether the rows of a batch see each other. If they do, batching would mix callers.

A row is run alone, then again inside batches whose other rows are random, of the largest values, and NaN. The answers
must be equal but for rounding: other batch sizes take other code paths, so the last bits may differ. Called by the
loader after the first warm-up run.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from forebay_server.engines.base import Instance
from forebay_server.models.samples import Kind, batch_of, has_floats, stack
from forebay_server.models.warm_up import run
from forebay_server.tensors import Array, Bucket, DataType, ModelSpec, TensorSpec

_TOLERANCE: Final = {
    DataType.FP16: 2e-2,
    DataType.BF16: 6e-2,
    DataType.FP32: 1e-4,
    DataType.FP64: 1e-7,
}
"""Relative to the largest element of the row's answer; other types must be equal."""

_PATIENCE: Final = 3  # rows that are tried; one pair of unlucky values proves nothing


def follows_batch(spec: ModelSpec, outputs: Sequence[Array], rows: int) -> str:
    """Why the outputs can't be cut into rows, or nothing."""
    for tensor, array in zip(spec.outputs, outputs, strict=True):
        if not array.shape or array.shape[0] != rows:
            return f"the output {tensor.name!r} has the shape {list(array.shape)} for a batch of {rows} rows"
    return ""


def check_rows(
    instance: Instance,
    spec: ModelSpec,
    bucket: Bucket,
    rows: int,
    kind: Kind,
    rng: np.random.Generator,
    *,
    alone: int = 1,
) -> str:
    """Compares rows alone with the same rows in a batch.

    Args:
        instance: Runs them.
        spec: The model's; it is batched.
        bucket: The shape of a row of each input.
        rows: The size of the batch, at least 2.
        kind: Made-up input that the model takes.
        rng: Makes it.
        alone: The size of the smallest batch that the model takes; if it is not 1, a row "alone" has rows of zeros
            beside it.

    Returns:
        Why rows must not share a batch, or nothing.
    """
    for attempt in range(_PATIENCE):
        probe = batch_of(spec, bucket, 1, kind, rng)
        lonely = _padded(spec, bucket, probe, alone, rng)
        expected = [array[:1] for array in run(instance, lonely, 1)]
        again = [array[:1] for array in run(instance, lonely, 1)]
        if differing := _difference(spec.outputs, expected, again):
            return f"its answers to the same row differ by chance (output {differing!r}), so rows can't be compared"
        neighbours = [kind, Kind.MAXIMUM, *([Kind.NAN] if has_floats(spec) else [])]
        for neighbour in neighbours:
            position = 0 if attempt % 2 else rows - 1
            others = batch_of(spec, bucket, rows - 1, neighbour, rng)
            parts = [[array[:position] for array in others], probe, [array[position:] for array in others]]
            try:
                outputs = run(instance, stack(parts), rows)
            except Exception:
                if neighbour is kind:
                    raise
                continue  # it refuses such values, so they can't be neighbours
            if complaint := follows_batch(spec, outputs, rows):
                return complaint
            found = [array[position : position + 1] for array in outputs]
            if differing := _difference(spec.outputs, expected, found):
                return f"a row's output {differing!r} changes with the other rows of its batch ({neighbour.value} ones)"
    return ""


def _padded(spec: ModelSpec, bucket: Bucket, probe: list[Array], size: int, rng: np.random.Generator) -> list[Array]:
    return probe if size == 1 else stack([probe, batch_of(spec, bucket, size - 1, Kind.ZEROS, rng)])


def _difference(specs: Sequence[TensorSpec], ones: Sequence[Array], others: Sequence[Array]) -> str:
    """The name of the first output that differs, or nothing."""
    for tensor, one, other in zip(specs, ones, others, strict=True):
        if one.shape != other.shape or not _equal(one, other, _TOLERANCE.get(tensor.data_type)):
            return tensor.name
    return ""


def _equal(one: Array, other: Array, tolerance: float | None) -> bool:
    if tolerance is None:
        return bool(np.array_equal(one, other))
    first, second = one.astype(np.float64), other.astype(np.float64)
    finite = np.abs(first[np.isfinite(first)])
    scale = float(finite.max()) if finite.size else 0.0
    return bool(np.allclose(first, second, rtol=tolerance, atol=tolerance * scale, equal_nan=True))
