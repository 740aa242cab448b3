"""What running a loaded model shows: whether its rows may share a batch, what batches cost, and so how to batch.

Part of `loader.load`, in its thread: it fills in what is not known of a `Loaded` before its first batches.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import structlog

from forebay_server.engines.base import ModelLoadError
from forebay_server.errors import ConfigError
from forebay_server.models import isolation, warm_up
from forebay_server.models.costs import CostCache, agrees
from forebay_server.models.loaded import Loaded
from forebay_server.models.samples import Kind, batch_of
from forebay_server.models.served import Buckets
from forebay_server.models.warm_up import Measurement
from forebay_server.tensors import Bucket

INLINE_BELOW: Final = 1e-3  # seconds; a faster batch costs less than handing it to another thread
CHECKED_ROWS: Final = 4  # rows in a batch of the isolation check

_log = structlog.get_logger(__name__)


def warm(loaded: Loaded, cache: CostCache) -> None:
    """Runs first batches, checks the rows, and fills in the measurements and what follows for batching."""
    rng = np.random.default_rng(0)
    first = loaded.instances[0]
    buckets = loaded.buckets.known()
    smallest = warm_up.ladder(loaded.max_batch_size, loaded.batch_sizes)[0]
    kind: Kind | None = None
    said = ""
    for candidate in [buckets[:1]] if buckets else [[bucket] for bucket in warm_up.guesses(loaded.spec)]:
        kind, said = warm_up.usable_kind(first, loaded.spec, candidate[0], smallest, rng)
        if kind is not None:
            buckets = buckets or candidate
            break
    if kind is None:
        # Its values must mean something that can't be guessed. It can still be served, one row at a time.
        _log.warning("warm-up found no input that the model takes", model=loaded.name, said=said)
        if loaded.config.batching.check_rows:
            _unbatch(loaded, "warm-up found no input that it takes, so its rows could not be compared")
        return
    _check_batch(loaded, buckets[0], kind, rng)
    if not loaded.spec.batched:
        buckets = [_whole(loaded, buckets[0], smallest)]
    loaded.measurements = _measured(loaded, buckets, kind, rng, cache)
    # Costs that were kept from an earlier start have not run all sizes on the first instance; where sizes are named,
    # each needs a first run (to capture its graph, to choose its profile).
    for instance in loaded.instances if loaded.batch_sizes else loaded.instances[1:]:
        for bucket, rows, _ in loaded.measurements:
            warm_up.run(instance, batch_of(loaded.spec, bucket, rows, kind, rng), rows)


def _whole(loaded: Loaded, bucket: Bucket, rows: int) -> Bucket:
    """A bucket for a model that turned out not to be batched: dimension 0 is then like any other."""
    if all(len(shape) == len(tensor.shape) for shape, tensor in zip(bucket, loaded.spec.inputs, strict=True)):
        return bucket
    return tuple((rows, *shape) for shape in bucket)


def _check_batch(loaded: Loaded, bucket: Bucket, kind: Kind, rng: np.random.Generator) -> None:
    if not loaded.spec.batched:
        return
    first = loaded.instances[0]
    smallest = warm_up.ladder(loaded.max_batch_size, loaded.batch_sizes)[0]
    outputs = warm_up.run(first, batch_of(loaded.spec, bucket, smallest, kind, rng), smallest)
    if complaint := isolation.follows_batch(loaded.spec, outputs, smallest):
        # Not even one row comes out as one: dimension 0 is something else.
        loaded.spec = replace(loaded.spec, batched=False)
        loaded.buckets = Buckets(loaded.spec, loaded.config.buckets)
        _unbatch(loaded, complaint)
        return
    rows = _checked_rows(loaded)
    if not loaded.config.batching.check_rows or rows < 2:
        return
    try:
        reason = isolation.check_rows(first, loaded.spec, bucket, rows, kind, rng, alone=smallest)
    except Exception as error:  # noqa: BLE001  # a batch of made-up rows can fail where one row did not
        reason = f"a batch of {rows} rows failed at warm-up ({type(error).__name__})"
        _log.warning("a batch failed at warm-up", model=loaded.name, rows=rows, error=str(error))
    if reason:
        _unbatch(loaded, reason)


def _checked_rows(loaded: Loaded) -> int:
    """The size of the batch in which rows are compared: a small one, of those that the model takes."""
    if not loaded.batch_sizes:
        return min(CHECKED_ROWS, loaded.max_batch_size)
    return min((size for size in loaded.batch_sizes if size >= CHECKED_ROWS), default=max(loaded.batch_sizes))


def _unbatch(loaded: Loaded, reason: str) -> None:
    if loaded.spec.batched:
        _log.warning("the model runs with batches of one row", model=loaded.name, because=reason)
    loaded.unbatched_because = loaded.unbatched_because or reason
    loaded.max_batch_size = 1


def _measured(
    loaded: Loaded, buckets: Sequence[Bucket], kind: Kind, rng: np.random.Generator, cache: CostCache
) -> list[Measurement]:
    sizes = warm_up.ladder(loaded.max_batch_size, loaded.batch_sizes)
    first = loaded.instances[0]
    if loaded.cost_key is None:
        raise ModelLoadError("costs are measured before their key is known")
    kept = cache.load(loaded.cost_key)
    if kept and {bucket for bucket, _, _ in kept} == set(buckets) and max(rows for _, rows, _ in kept) <= sizes[-1]:
        ends = [min(kept, key=lambda point: point[1]), max(kept, key=lambda point: point[1])]
        pairs = []
        for bucket, rows, seconds in ends:
            inputs = batch_of(loaded.spec, bucket, rows, kind, rng)
            pairs.append((seconds, warm_up.median_time(first, inputs, rows, timings=warm_up.LEAST_TIMINGS)))
        if agrees(pairs):
            return kept
    measurements: list[Measurement] = []
    limit = loaded.max_batch_size
    begin = time.monotonic()
    for bucket in buckets:
        rungs = sizes if time.monotonic() - begin < warm_up.TOTAL_TIME else sizes[:1]
        points, fits = warm_up.measure(first, loaded.spec, bucket, rungs, kind, rng)
        measurements += points
        if not fits:
            _log.warning("no memory for larger batches", model=loaded.name, rows=points[-1][1], bucket=bucket)
            loaded.max_batch_size = min(loaded.max_batch_size, points[-1][1])
            sizes = warm_up.ladder(loaded.max_batch_size, loaded.batch_sizes)
    if loaded.max_batch_size == limit:  # what has no memory now may have it next time
        cache.save(loaded.cost_key, measurements)
    return [point for point in measurements if point[1] <= loaded.max_batch_size]


def choose(loaded: Loaded) -> None:
    """The best batch size, and where batches run."""
    by_bucket: dict[Bucket, list[Measurement]] = {}
    for point in loaded.measurements:
        by_bucket.setdefault(point[0], []).append(point)
    bests = [warm_up.best_size(points) for points in by_bucket.values()]
    engine = loaded.config.engine
    if bests:
        loaded.best_batch_size = loaded.config.batching.best_batch_size or max(rows for rows, _ in bests)
        loaded.best_batch_size = min(loaded.best_batch_size, loaded.max_batch_size)
    if engine.run != "auto" and not loaded.engine.always_worker:
        loaded.inline = engine.run == "inline"
        return
    if engine.run == "inline":
        raise ConfigError(f"engine.run: batches of {loaded.config.path} can't run inline")
    # Batches stop at the best size, so that is the slowest one. Of a model whose shapes are open it isn't known.
    known = bool(loaded.buckets.known())
    fast = bool(bests) and max(seconds for _, seconds in bests) < INLINE_BELOW
    alone = len(loaded.instances) == 1 and not loaded.engine.always_worker
    # What holds the GIL stops the dispatcher wherever it runs; inline, the watchdog knows of it.
    holds_gil = getattr(loaded.engine, "holds_gil", False)  # others' engines need not have it
    loaded.inline = alone and ((known and fast) or holds_gil)
