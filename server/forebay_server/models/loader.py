"""From settings to a model that is ready to run: engine, instances, warm-up, measured costs, and how to batch.

`load` runs in a thread of its own and blocks for as long as the model takes; it touches nothing that others see. What
it gives back is handed to the dispatcher, which alone makes it visible. It knows no requests and no gRPC.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import structlog

from forebay_server.config.tree import BatchingConfig, BucketsConfig, EngineConfig, ModelConfig
from forebay_server.engines import preparation, registry
from forebay_server.engines.base import Engine, Instance, ModelLoadError, ParameterValue, Preparing
from forebay_server.engines.collate import Collator
from forebay_server.engines.cpu import cpu_quota, threads_per_instance
from forebay_server.engines.gpu import cuda
from forebay_server.engines.gpu.memory import free_memory
from forebay_server.engines.preparation import Preparation
from forebay_server.engines.prepared import PreparedInstance
from forebay_server.errors import ConfigError
from forebay_server.models import batch_rule, isolation, names, placement, settings, warm_up
from forebay_server.models.costs import CostCache, CostKey, agrees, digest_of
from forebay_server.models.samples import Kind, batch_of
from forebay_server.models.served import Bucket, Buckets, ModelState
from forebay_server.models.warm_up import Measurement
from forebay_server.tensors import ModelSpec

DEFAULT_MAX_BATCH: Final = 128
INLINE_BELOW: Final = 1e-3  # seconds; a faster batch costs less than handing it to another thread
CHECKED_ROWS: Final = 4  # rows in a batch of the isolation check

Progress = Callable[[ModelState, str], None]
"""Told about each step, in the loading thread: LOADING or WARMING, and a few words."""

_log = structlog.get_logger(__name__)


@dataclass(kw_only=True)
class Loaded:
    """A model that is ready to run."""

    name: str
    version: int
    config: ModelConfig
    """With the settings of the TOML beside the file."""
    engines: list[Engine]
    """One for each device that it runs on."""
    engine_name: str
    instances: list[Instance]
    """Of all engines."""
    spec: ModelSpec
    """What callers see of it."""
    buckets: Buckets
    batch_sizes: tuple[int, ...]
    """Sizes that batches are padded up to; empty: any."""
    max_batch_size: int
    best_batch_size: int
    """Rows at which throughput is within 5 % of its best, or as set; 0 if not measured."""
    measurements: list[Measurement] = field(default_factory=list)
    inline: bool = False
    """Whether batches run in the dispatcher's thread."""
    unbatched_because: str = ""
    cost_key: CostKey | None = None
    """Under which `CostCache` keeps its costs."""
    load_seconds: float = 0.0

    @property
    def engine(self) -> Engine:
        """The first engine: all are alike but for their device."""
        return self.engines[0]

    @property
    def device(self) -> str:
        """Where it runs: `cpu`, or `cuda:0,cuda:1`."""
        return ",".join(engine.device for engine in self.engines)

    def collator(self) -> Collator:
        """Makes the collator for this model."""
        return Collator(self.spec, self.config.buckets.pad_value, self.config.buckets.outputs)

    def close(self) -> None:
        """Closes the instances and the engines. Nothing runs any more."""
        for instance in self.instances:
            try:
                instance.close()
            except Exception:  # noqa: BLE001  # the others are closed all the same
                _log.exception("instance not closed", model=self.name)
        self.instances.clear()
        self.close_engines()

    def close_engines(self) -> None:
        """Closes the engines alone. All instances are closed before."""
        for engine in self.engines:
            engine.close()


def _unheard(_words: str) -> None:
    """Nobody wants to know."""


def _never() -> bool:
    return False


def load(
    config: ModelConfig,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    stopping: Callable[[], bool] = _never,
) -> Loaded:
    """Loads a model, warms it up and measures it.

    Args:
        config: The server's settings for it; those of the TOML beside its file fill in what they leave open.
        cache_dir: Where measured costs are kept, and what engines make; None: nowhere.
        progress: Told about each step.
        stopping: Whether nobody wants the model any more; what takes long may then end with ModelLoadError. It is asked
            by any thread.

    Raises:
        ConfigError: The settings are wrong.
        ModelLoadError: The model can't be served; the text is one sentence for the operator.
    """
    tell = progress or (lambda _state, _words: None)
    begin = time.monotonic()
    tell(ModelState.LOADING, f"reading {config.path}")
    config = settings.complete(config)
    name = names.check_name(config.name) if config.name else names.name_of(config.path)
    for label in config.labels:
        names.check_label(label)
    found = registry.find(config.engine.name, config.path)
    if isinstance(found.path, Path):
        _check_file(found.path)
    told = EngineSettings(
        instances=config.engine.instances,
        threads=config.engine.threads,
        options=config.engine.options,
        memory=int(config.engine.device_memory_mib * (1 << 20)),
        batching=config.batching,
        buckets=preparation.buckets_of_model(config.buckets, config.inputs),
        cache_dir=cache_dir,
        progress=lambda words: tell(ModelState.LOADING, words),
        stopping=stopping,
    )
    engines = _placed(config.engine, found, told)
    instances: list[Instance] = []
    try:
        loaded = _prepare(config, name, found, engines, instances, CostCache(cache_dir), tell)
    except BaseException as error:
        for instance in instances:
            instance.close()
        for engine in engines:
            engine.close()
        if isinstance(error, Exception) and not isinstance(error, ModelLoadError | ConfigError):
            raise ModelLoadError(f"{config.path}: {type(error).__name__}: {error}") from error
        raise
    loaded.load_seconds = time.monotonic() - begin
    return loaded


@dataclass(slots=True)
class EngineSettings:
    """What a factory is told: `engines.base.EngineOptions`."""

    instances: int
    threads: int
    options: Mapping[str, ParameterValue]
    device: str = "cpu"
    memory: int = 0
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    buckets: BucketsConfig = field(default_factory=BucketsConfig)
    cache_dir: Path | None = None
    progress: Callable[[str], None] = _unheard
    stopping: Callable[[], bool] = _never


def _placed(config: EngineConfig, found: registry.Found, told: EngineSettings) -> list[Engine]:
    """An engine for each device, not yet loaded."""
    kinds = getattr(found.factory, "devices", ("cpu",))  # engines of others need not know of devices
    devices = placement.place(config.devices, kinds, cuda.devices, free_memory)
    # Instances of several engines share the CPU as those of one do.
    threads = threads_per_instance(config.threads, config.instances * len(devices), cpu_quota())
    return [found.factory(found.path, replace(told, threads=threads, device=device)) for device in devices]


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise ModelLoadError(f"{path}: the file is empty")
    except IsADirectoryError as error:
        raise ModelLoadError(f"{path}: a folder, not a model file") from error
    except FileNotFoundError as error:
        raise ModelLoadError(f"{path}: no such file") from error
    except OSError as error:
        raise ModelLoadError(f"{path}: can't be read: {error.strerror or error}") from error


def _prepare(
    config: ModelConfig,
    name: str,
    found: registry.Found,
    engines: list[Engine],
    instances: list[Instance],
    cache: CostCache,
    tell: Progress,
) -> Loaded:
    spec, fixed_sizes, because = batch_rule.apply(_loaded_spec(config, engines), config.batching)
    spec, preparations = preparation.plan(spec, config.inputs)
    sizes = tuple(engines[0].batch_sizes) or fixed_sizes
    most = getattr(engines[0], "max_batch_size", 0) if spec.batched else 0  # others' engines need not have it
    limit = config.batching.max_batch_size or (max(sizes) if sizes else most or DEFAULT_MAX_BATCH)
    if most and limit > most:
        raise ConfigError(f"batching.max_batch_size: {limit} is above {most}, the largest batch of {config.path}")
    if sizes and limit < min(sizes):
        raise ConfigError(
            f"batching.max_batch_size: {limit} is below {min(sizes)}, the smallest batch of {config.path}"
        )
    loaded = Loaded(
        name=name,
        version=config.version,
        config=config,
        engines=engines,
        engine_name=found.name,
        instances=instances,
        spec=spec,
        buckets=Buckets(spec, config.buckets),
        batch_sizes=tuple(sorted(size for size in sizes if size <= limit)),
        max_batch_size=limit if spec.batched else 1,
        best_batch_size=0,
        unbatched_because=because,
    )
    loaded.cost_key = _cost_key(loaded, found)
    for engine in engines:
        _make_instances(engine, config.engine.instances, preparations, instances)
    tell(ModelState.WARMING, "running first batches")
    _warm(loaded, cache)
    _choose(loaded)
    return loaded


def _loaded_spec(config: ModelConfig, engines: Sequence[Engine]) -> ModelSpec:
    """Loads all engines of a model; they must agree on what it is."""
    specs = [engine.load() for engine in engines]
    for engine, spec in zip(engines, specs, strict=True):
        if spec != specs[0] or tuple(engine.batch_sizes) != tuple(engines[0].batch_sizes):
            raise ModelLoadError(
                f"{config.path}: it is not the same model on {engine.device} as on {engines[0].device}"
            )
    return specs[0]


def _make_instances(
    engine: Engine, count: int, preparations: Sequence[Preparation | None], instances: list[Instance]
) -> None:
    """Instances of one engine that take what callers send."""
    prepare = any(made is not None for made in preparations)
    if prepare and isinstance(engine, Preparing) and engine.prepare(preparations):
        prepare = False
    for index in range(count):
        instance = engine.instance(index)
        instances.append(PreparedInstance(instance, preparations) if prepare else instance)


def _cost_key(loaded: Loaded, found: registry.Found) -> CostKey:
    config = loaded.config
    instances = len(loaded.engines) * config.engine.instances
    threads = threads_per_instance(config.engine.threads, instances, cpu_quota())
    matter = (threads, instances, sorted(config.engine.options.items()), config.buckets.shapes, config.inputs)
    return CostKey(
        digest=digest_of(found.path) if isinstance(found.path, Path) else found.path,
        device=loaded.device,
        engine=loaded.engine_name,
        version=loaded.engine.version,
        settings=msgspec.json.encode((*matter, config.batching.max_batch_size, loaded.batch_sizes)).decode(),
    )


def _warm(loaded: Loaded, cache: CostCache) -> None:
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
    rows = smallest if loaded.batch_sizes else min(CHECKED_ROWS, loaded.max_batch_size)
    if not loaded.config.batching.check_rows or rows < 2:
        return
    try:
        reason = isolation.check_rows(first, loaded.spec, bucket, rows, kind, rng, alone=smallest)
    except Exception as error:  # noqa: BLE001  # a batch of made-up rows can fail where one row did not
        reason = f"a batch of {rows} rows failed at warm-up ({type(error).__name__})"
        _log.warning("a batch failed at warm-up", model=loaded.name, rows=rows, error=str(error))
    if reason:
        _unbatch(loaded, reason)


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


def _choose(loaded: Loaded) -> None:
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
