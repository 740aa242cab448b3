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
import structlog

from forebay_server.config.tree import BatchingConfig, BucketsConfig, EngineConfig, ModelConfig
from forebay_server.engines import preparation, registry
from forebay_server.engines.base import Engine, Instance, ModelLoadError, ParameterValue, Preparing
from forebay_server.engines.cpu import cpu_quota, threads_per_instance
from forebay_server.engines.gpu import cuda
from forebay_server.engines.gpu.memory import free_memory
from forebay_server.engines.preparation import Preparation
from forebay_server.engines.prepared import PreparedInstance
from forebay_server.errors import ConfigError
from forebay_server.models import batch_rule, measuring, names, placement, settings
from forebay_server.models.costs import CostCache, CostKey, digest_of
from forebay_server.models.loaded import Loaded
from forebay_server.models.served import Buckets, ModelState
from forebay_server.tensors import MAX_RANK, ModelSpec

DEFAULT_MAX_BATCH: Final = 128

Progress = Callable[[ModelState, str], None]
"""Told about each step, in the loading thread: LOADING or WARMING, and a few words."""

_log = structlog.get_logger(__name__)


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
    for_jobs: bool = False,
) -> Loaded:
    """Loads a model, warms it up and measures it.

    Args:
        config: The server's settings for it; those of the TOML beside its file fill in what they leave open.
        cache_dir: Where measured costs are kept, and what engines make; None: nowhere.
        progress: Told about each step.
        stopping: Whether nobody wants the model any more; what takes long may then end with ModelLoadError. It is asked
            by any thread.
        for_jobs: Whether it is to run jobs beside requests, for which it may have instances of their own.

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
    for_jobs_alone: list[Instance] | None = [] if for_jobs else None
    try:
        loaded = _prepare(config, name, found, engines, instances, CostCache(cache_dir), tell, for_jobs_alone)
    except BaseException as error:
        for instance in (*instances, *(for_jobs_alone or ())):
            instance.close()
        for engine in engines:
            engine.close()
        if isinstance(error, SystemExit):  # a module that is a script: the server goes on, or would wait for ever
            raise ModelLoadError(f"{config.path}: it wants to end the process (SystemExit: {error})") from error
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
    job_instances: list[Instance] | None,
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
    count = _instances(config, engines[0], name)
    left = [_left_to_prepare(engine, preparations) for engine in engines]
    for engine, these in zip(engines, left, strict=True):
        _make_instances(engine, range(count), these, instances)
    tell(ModelState.WARMING, "running first batches")
    measuring.warm(loaded, cache)
    measuring.choose(loaded)
    if job_instances is not None and not loaded.inline:
        for engine, these in zip(engines, left, strict=True):
            if getattr(engine, "gives_way", False):  # others' engines need not have it
                _make_instances(engine, range(count, 2 * count), these, job_instances)
        loaded.job_instances = job_instances
    return loaded


def _loaded_spec(config: ModelConfig, engines: Sequence[Engine]) -> ModelSpec:
    """Loads all engines of a model; they must agree on what it is."""
    specs = [engine.load() for engine in engines]
    for engine, spec in zip(engines, specs, strict=True):
        if spec != specs[0] or tuple(engine.batch_sizes) != tuple(engines[0].batch_sizes):
            raise ModelLoadError(
                f"{config.path}: it is not the same model on {engine.device} as on {engines[0].device}"
            )
    for tensor in specs[0].inputs:
        if len(tensor.shape) > MAX_RANK:  # it would load, and every request be refused
            raise ModelLoadError(
                f"{config.path}: the input {tensor.name!r} has {len(tensor.shape)} dimensions, "
                f"and a tensor that is sent may have {MAX_RANK}"
            )
    return specs[0]


def _instances(config: ModelConfig, engine: Engine, name: str) -> int:
    """How many instances an engine makes: as set, but one of what keeps the GIL while it runs.

    Others of these would wait for it. Worse, each would need a thread of its own, in which a batch stops the dispatcher
    as well, but the watchdog would not know for how long it may.
    """
    wanted = config.engine.instances
    if wanted == 1 or not getattr(engine, "holds_gil", False):  # others' engines need not have it
        return wanted
    _log.warning(
        "one instance is made of several",
        model=name,
        instances=wanted,
        because="its batches hold Python's lock, so no two of them run at the same time",
    )
    return 1


def _left_to_prepare(engine: Engine, preparations: Sequence[Preparation | None]) -> Sequence[Preparation | None]:
    """What an engine does not prepare itself; empty: nothing. Asked once, before its first instance."""
    wanted = any(made is not None for made in preparations)
    if not wanted or (isinstance(engine, Preparing) and engine.prepare(preparations)):
        return ()
    return preparations


def _make_instances(
    engine: Engine, numbers: range, preparations: Sequence[Preparation | None], instances: list[Instance]
) -> None:
    """Instances of one engine that take what callers send."""
    for number in numbers:
        instance = engine.instance(number)
        instances.append(PreparedInstance(instance, preparations) if preparations else instance)


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
