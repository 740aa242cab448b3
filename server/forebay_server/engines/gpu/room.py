"""Makes room for a model's largest batches when an instance is made, in one piece of each kind of memory.

Warm-up goes from small batches to large ones. Each that is larger than all before it would get a piece of its own, and
the pieces stay, because graphs know their addresses: in all up to three times what the largest batch takes (`pool`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from forebay_server.engines import buckets
from forebay_server.engines.base import OutOfMemory
from forebay_server.engines.gpu.device import Shape
from forebay_server.engines.gpu.pipeline import GpuInstance
from forebay_server.engines.gpu.preparation import Preparer
from forebay_server.tensors import NUMPY_DTYPES, ModelSpec

MOST_BYTES: Final = 256 << 20
"""Of a batch's inputs; warm-up does not run larger ones either, so they may be larger than any that comes."""

_log = structlog.get_logger(__name__)


def largest(spec: ModelSpec, ladders: Mapping[str, Sequence[Sequence[int]]], rows: int) -> tuple[Shape, ...] | None:
    """The whole shapes of the batch that takes the most memory; None if shapes are open.

    Args:
        spec: As the engine is given batches.
        ladders: Per input name the shapes that its requests are padded up to; of a model that is not batched, whole
            ones.
        rows: The most rows in a batch.
    """
    lead = 1 if spec.batched else 0
    steps = [ladders.get(tensor.name) for tensor in spec.inputs]
    known = buckets.named([tensor.shape[lead:] for tensor in spec.inputs], steps)
    if not known:
        return None
    most = max(known, key=lambda bucket: _bytes(spec, bucket))
    return tuple((rows, *shape) if spec.batched else shape for shape in most)


def make(
    instance: GpuInstance,
    preparer: Preparer,
    spec: ModelSpec,
    ladders: Mapping[str, Sequence[Sequence[int]]],
    rows: int,
) -> None:
    """Makes it, if the shapes are known. If there is not so much memory, warm-up finds what there is.

    Args:
        instance: New.
        preparer: Knows what callers send instead.
        spec: What the model takes.
        ladders: As of `largest`.
        rows: As of `largest`.
    """
    shapes = largest(spec, ladders, rows)
    if shapes is None or _bytes(spec, shapes) > MOST_BYTES:
        return
    try:
        instance.reserve(preparer.sent(shapes))
    except OutOfMemory as error:
        _log.warning("no memory for the largest batches", device=instance.device, rows=rows, error=str(error))


def _bytes(spec: ModelSpec, shapes: Sequence[Shape]) -> int:
    return sum(
        NUMPY_DTYPES[tensor.data_type].itemsize * math.prod(shape)
        for tensor, shape in zip(spec.inputs, shapes, strict=True)
    )
