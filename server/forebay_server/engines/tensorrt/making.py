"""From an ONNX file to a plan and its sidecar: out of the cache, or built. For the engine and `forebay build-plan`."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from forebay_server.config.tree import BatchingConfig, BucketsConfig
from forebay_server.engines import onnx_file
from forebay_server.engines.gpu.device import Device
from forebay_server.engines.tensorrt import profiles
from forebay_server.engines.tensorrt.builder import Network
from forebay_server.engines.tensorrt.cache import PlanCache, PlanKey, key_of
from forebay_server.engines.tensorrt.library import library
from forebay_server.engines.tensorrt.progress import Watcher
from forebay_server.engines.tensorrt.settings import BuildSettings
from forebay_server.engines.tensorrt.sidecar import Sidecar


def _never() -> bool:
    return False


def make(
    path: Path,
    device: Device,
    batching: BatchingConfig,
    shapes: BucketsConfig,
    build: BuildSettings,
    cache: PlanCache,
    *,
    watcher: Watcher | None = None,
    waiting: Callable[[], None] = lambda: None,
    cancelled: Callable[[], bool] = _never,
) -> tuple[Path, bytes, Sidecar]:
    """The plan for an ONNX file on a device.

    Args:
        path: The file.
        device: Which GPU.
        batching: What the owner has set of batches.
        shapes: And of shapes.
        build: How to build.
        cache: Where plans are kept.
        watcher: Told of the progress, if it is built.
        waiting: Called if another process is building the same plan.
        cancelled: Whether the watcher was told to end the build.

    Returns:
        A path for sentences (the kept plan's, else the ONNX file's), the plan, and its sidecar.

    Raises:
        ModelLoadError: TensorRT is not there, can't build it, or was told to end; or the file is not to be read.
        OSError: A file can't be read.
    """
    found = library(device)
    onnx_file.check_external(path, allowed=build.external_data)
    key = key_of(path, found.version, device, batching, shapes, build)
    with cache.locked(key, waiting, cancelled):
        kept = cache.find(key, device)
        if kept is not None:
            return kept
        network = Network(path, found, device)
        spec = profiles.served(network.spec, batching.batch_dimension)
        wanted = profiles.derive(
            spec, shapes.shapes, most_rows=batching.max_batch_size, best_rows=build.best_rows, spread=build.spread
        )
        built = network.build(wanted, build, timings=cache.timings(key), watcher=watcher, cancelled=cancelled)
        cache.keep_timings(key, built.timings)
        said = _sidecar(built.plan, key, batched=spec.batched)
        cache.keep(key, built.plan, said)
        return path, built.plan, said


def _sidecar(plan: bytes, key: PlanKey, *, batched: bool) -> Sidecar:
    return Sidecar(
        sha256=hashlib.sha256(plan).hexdigest(),
        size=len(plan),
        tensorrt=key.tensorrt,
        compute_capability=key.compute_capability,
        hardware=key.build.hardware,
        version_compatible=key.build.version_compatible,
        batched=batched,
        gpu=key.gpu,
        onnx_sha256=key.onnx_sha256,
        built=datetime.now(UTC).isoformat(timespec="seconds"),
    )
