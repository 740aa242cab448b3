"""`forebay build-plan`: builds a TensorRT plan from an ONNX file beforehand, or vouches for a plan of others."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forebay_server.cli.stages import Stop, interruptible, stages
from forebay_server.errors import ConfigError

if TYPE_CHECKING:
    from forebay_server.config.tree import ModelConfig
    from forebay_server.engines.tensorrt.settings import BuildSettings
    from forebay_server.engines.tensorrt.sidecar import Sidecar


@click.command("build-plan")
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The plan. [MODEL.plan]")
@click.option(
    "--device", default=0, show_default=True, type=click.IntRange(0), metavar="N", help="The GPU to build on, and for."
)
@click.option(
    "--max-batch-size", type=click.IntRange(1), metavar="ROWS", help="The most in a batch. [the model's, else 128]"
)
@click.option(
    "--bucket",
    "buckets",
    multiple=True,
    metavar="INPUT=SHAPE",
    help="A shape that requests are padded up to, without the batch: ids=128, image=3x224x224. Repeatable.",
)
@click.option("--best-rows", type=click.IntRange(1), metavar="ROWS", help="The batch to be fastest at. [the largest]")
@click.option("--profiles", type=click.Choice(["bucket", "one"]), help="One for each bucket, or one in all. [bucket]")
@click.option(
    "--optimization-level", type=click.IntRange(0, 5), metavar="0..5", help="How long to search for fast kernels. [3]"
)
@click.option(
    "--workspace-mib", type=click.IntRange(1), metavar="MIB", help="Memory of a layer beside its tensors. [all]"
)
@click.option("--version-compatible", is_flag=True, default=None, help="For TensorRT's lean runtime.")
@click.option("--hardware", type=click.Choice(["same", "ampere+"]), help="Which GPUs can run it. [same]")
@click.option("--tf32", is_flag=True, default=None, help="FP32 products may be rounded to TF32: faster, less exact.")
@click.option("--external-data", is_flag=True, default=None, help="Weights may lie in other files beside the model.")
@click.option("--cache-dir", default="", metavar="DIR", help="Where plans and timings are kept. [as the server's]")
def build_plan(model: Path, output: Path | None, device: int, cache_dir: str, **flags: Any) -> None:
    """Build a TensorRT plan, on the GPU that is to run it.

    MODEL is an ONNX file; the TOML beside it (model.toml) says what the options leave open: buckets, the largest batch,
    the engine's options. The plan and its sidecar, model.plan and model.plan.json, are then served.

    \b
      forebay build-plan model.onnx --max-batch-size 64
      forebay serve model.plan

    MODEL may also be a plan that was built otherwise, with trtexec for example: it is loaded once on the GPU here, and
    gets a sidecar if that works. A plan is executable: do so only with plans that you trust. Say --version-compatible
    and --hardware if it was built so.
    """
    from forebay_server.engines.base import ModelLoadError

    try:
        if model.suffix.lower() == ".onnx":
            _build(model, output or model.with_suffix(".plan"), device, cache_dir, flags)
        else:
            _vouch(model, output, device, flags)
    except ModelLoadError as error:
        raise ConfigError(str(error)) from error


def _build(model: Path, output: Path, number: int, cache_dir: str, flags: dict[str, Any]) -> None:
    from forebay_server.app.hosting import cache_directory
    from forebay_server.engines import files
    from forebay_server.engines.gpu import cuda
    from forebay_server.engines.tensorrt import making, sidecar
    from forebay_server.engines.tensorrt.cache import PlanCache

    config, build = _settings(model, flags)
    cache = PlanCache(cache_directory(cache_dir))
    device = cuda.open_device(number)
    stop = Stop()
    try:
        with stages(stop) as watcher:
            _, plan, said = interruptible(
                lambda: making.make(
                    model, device, config.batching, config.buckets, build, cache, watcher=watcher, cancelled=stop
                ),
                stop,
            )
        files.replace(output, plan)
        sidecar.write(output, said)
    finally:
        device.close()
    click.echo(f"{output}: {_described(said)}")


def _vouch(plan: Path, output: Path | None, number: int, flags: dict[str, Any]) -> None:
    """Writes a sidecar for a plan that loads here; only its builder knows for which runtime and GPUs it is."""
    from forebay_server.engines.gpu import cuda
    from forebay_server.engines.tensorrt import sidecar
    from forebay_server.engines.tensorrt.cache import capability
    from forebay_server.engines.tensorrt.library import library
    from forebay_server.engines.tensorrt.plan import LoadedPlan

    lean = bool(flags.pop("version_compatible"))
    hardware: sidecar.Hardware = "ampere+" if flags.pop("hardware") == "ampere+" else "same"
    if output is not None or any(flags.values()):
        raise ConfigError(
            f"{plan}: it is built already; only --device, --version-compatible and --hardware say something of it"
        )
    data = plan.read_bytes()
    device = cuda.open_device(number)
    try:
        found = library(device, lean=lean)
        LoadedPlan(plan, found, device, data).close()
        said = sidecar.Sidecar(
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
            tensorrt=found.version,
            compute_capability=capability(device),
            hardware=hardware,
            version_compatible=lean,
            gpu=device.name,
        )
        sidecar.write(plan, said)
    finally:
        device.close()
    click.echo(f"{sidecar.path_of(plan)}: {_described(said)}")


def _settings(model: Path, flags: dict[str, Any]) -> "tuple[ModelConfig, BuildSettings]":
    """The model's settings: of the options, and of the TOML beside it where they leave something open."""
    from forebay_server.config.tree import (
        BatchingConfig,
        BucketsConfig,
        EngineConfig,
        ModelConfig,
    )
    from forebay_server.engines.options import Options
    from forebay_server.engines.tensorrt.settings import read
    from forebay_server.models import settings

    rows = flags.pop("max_batch_size")
    shapes = _shapes(flags.pop("buckets"))
    config = settings.complete(
        ModelConfig(
            path=str(model),
            engine=EngineConfig(name="tensorrt", options={k: v for k, v in flags.items() if v is not None}),
            batching=BatchingConfig(max_batch_size=rows or 0),
            buckets=BucketsConfig(shapes=shapes),
        )
    )
    # Options that are not about building may be those of another engine: the TOML may be written for both.
    return config, read(Options("tensorrt", config.engine.options))


def _shapes(texts: Sequence[str]) -> dict[str, list[list[int]]]:
    """`ids=128`, `ids=256` as `{"ids": [[128], [256]]}`, smallest first."""
    shapes: dict[str, list[list[int]]] = {}
    for text in texts:
        name, equals, numbers = text.rpartition("=")
        lengths = numbers.split("x")
        if not equals or not name or not all(length.isascii() and length.isdigit() for length in lengths):
            raise ConfigError(f"--bucket {text}: write it as INPUT=SHAPE, such as ids=128 or image=3x224x224")
        shapes.setdefault(name, []).append([int(length) for length in lengths])
    return {name: sorted(ladder) for name, ladder in shapes.items()}


def _described(said: "Sidecar") -> str:
    where = "any GPU from Ampere on" if said.hardware == "ampere+" else f"compute capability {said.compute_capability}"
    lean = ", also for the lean runtime" if said.version_compatible else ""
    return f"{said.size / (1 << 20):.1f} MiB, for TensorRT {said.tensorrt}{lean}, {where}"
