"""Runs a model before callers do: for its lazy initialisation, and to measure what batches of each size cost.

A ladder of sizes per bucket, several timings per size, the median of them. It is bounded in time and memory, because a
large model on a slow machine must still start. Called by the loader, on the instance's loading thread.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from forebay_server.engines.base import EngineBatch, EngineDead, Instance, ModelLoadError, OutOfMemory, OutputMismatch
from forebay_server.models.samples import USUAL, Kind, batch_of, bytes_of
from forebay_server.tensors import FREE, Array, Bucket, ModelSpec

Measurement = tuple[Bucket, int, float]
"""(bucket, rows, seconds in the engine)."""

SLOW: Final = 2.0  # seconds; a batch that takes longer ends its ladder
RUNG_TIME: Final = 0.02  # seconds; after this no more timings of one size ...
TIMINGS: Final = 7  # ... or after so many
LEAST_TIMINGS: Final = 3
ENOUGH: Final = 0.1  # seconds; of what takes longer each time, two timings say enough
TOTAL_TIME: Final = 20.0  # seconds; after this only the smallest size of the buckets that are left
MAX_BYTES: Final = 256 << 20  # of one batch's inputs
FALLING: Final = 0.8  # a rung with less than this part of the best throughput ends the ladder
NEAR_BEST: Final = 0.96  # of the highest throughput, as the scheduler has it
GUESSES: Final = (16, 1, 64, 224)
"""Lengths tried for free dimensions when there are no buckets."""


def ladder(cap: int, batch_sizes: Sequence[int] = ()) -> list[int]:
    """The sizes to measure: 1, 2, 4, ... and the cap; or just the sizes that batches are padded to."""
    if batch_sizes:
        return sorted(size for size in batch_sizes if size <= cap) or [min(batch_sizes)]
    sizes = {cap}
    size = 1
    while size < cap:
        sizes.add(size)
        size *= 2
    return sorted(sizes)


def guesses(spec: ModelSpec) -> list[Bucket]:
    """Buckets to try for a model with free dimensions and no buckets."""
    lead = 1 if spec.batched else 0
    return [
        tuple(
            tuple(length if dimension == FREE else dimension for dimension in tensor.shape[lead:])
            for tensor in spec.inputs
        )
        for length in GUESSES
    ]


def usable_kind(
    instance: Instance, spec: ModelSpec, bucket: Bucket, rows: int, rng: np.random.Generator
) -> tuple[Kind | None, str]:
    """The first kind of made-up input that the model takes, or None and what it said to the last one.

    Raises:
        ModelLoadError: The model can't work at all: it breaks its own specification, dies, or has no memory.
    """
    if (size := bytes_of(spec, bucket, rows)) > MAX_BYTES:
        raise ModelLoadError(f"the inputs of a batch of {rows} rows take {size >> 20} MiB, more than can be served")
    said = ""
    for kind in USUAL:
        try:
            run(instance, batch_of(spec, bucket, rows, kind, rng), rows)
        except OutOfMemory as error:
            raise ModelLoadError(f"no memory for a batch of {rows} rows") from error
        except EngineDead as error:
            raise ModelLoadError(f"its engine died in the first batch: {error}") from error
        except OutputMismatch as error:
            raise ModelLoadError(str(error)) from error
        except Exception as error:  # noqa: BLE001  # made-up values need not suit the model
            said = f"{type(error).__name__}: {error}"
        else:
            return kind, ""
    return None, said


def run(instance: Instance, inputs: Sequence[Array], rows: int) -> Sequence[Array]:
    """Runs made-up inputs, through the instance's staging buffers if it has some."""
    staged = instance.stage([array.shape for array in inputs])
    if staged is not None:
        for buffer, array in zip(staged, inputs, strict=True):
            buffer[...] = array
        inputs = staged
    return instance.infer(EngineBatch(inputs, rows))


def measure(
    instance: Instance,
    spec: ModelSpec,
    bucket: Bucket,
    sizes: Sequence[int],
    kind: Kind,
    rng: np.random.Generator,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[Measurement], bool]:
    """The cost of each size, from the smallest up, until it gets too slow, too large, or no better.

    Returns:
        The points, and whether the device had memory for all that were tried; if not, the last point is what fits.

    Raises:
        OutOfMemory: Not even the smallest size fits.
    """
    found: list[Measurement] = []
    best = 0.0
    for size in sizes:
        if bytes_of(spec, bucket, size) > MAX_BYTES and found:
            break
        inputs = batch_of(spec, bucket, size, kind, rng)
        try:
            seconds = median_time(instance, inputs, size, clock=clock)
        except OutOfMemory:
            if not found:
                raise
            return found, False
        found.append((bucket, size, seconds))
        throughput = size / seconds
        if seconds > SLOW or throughput < FALLING * best:
            break
        best = max(best, throughput)
    return found, True


def median_time(
    instance: Instance,
    inputs: Sequence[Array],
    rows: int,
    *,
    timings: int = TIMINGS,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds that one batch takes: a first run that does not count, then the median of several."""
    begin = clock()
    run(instance, inputs, rows)
    if clock() - begin > SLOW:
        return clock() - begin
    times: list[float] = []
    spent = 0.0
    while len(times) < timings and (len(times) < LEAST_TIMINGS or spent < RUNG_TIME):
        begin = clock()
        run(instance, inputs, rows)
        times.append(clock() - begin)
        spent += times[-1]
        if spent > SLOW or (len(times) > 1 and min(times) > ENOUGH):
            break
    return max(statistics.median(times), 1e-9)


def best_size(measurements: Sequence[Measurement]) -> tuple[int, float]:
    """The smallest size within 4 % of the best throughput of one bucket, and its seconds; (0, 0) of nothing."""
    if not measurements:
        return 0, 0.0
    most = max(rows / seconds for _, rows, seconds in measurements)
    return next((rows, seconds) for _, rows, seconds in sorted(measurements) if rows / seconds >= NEAR_BEST * most)
