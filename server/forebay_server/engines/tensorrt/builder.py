"""Builds a plan from an ONNX file: parse, profiles, build. Strongly typed always: the types are those in the file.

Only the GPU that the plan is for can build it, because TensorRT times kernels on it; that takes seconds to many
minutes. The GIL is released meanwhile. A builder is used by one thread.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog

from forebay_server.engines.base import ModelLoadError
from forebay_server.engines.gpu.device import Device
from forebay_server.engines.tensorrt import profiles
from forebay_server.engines.tensorrt.library import Library
from forebay_server.engines.tensorrt.logger import Errors, make_recorder, sentence
from forebay_server.engines.tensorrt.plan import data_type_of
from forebay_server.engines.tensorrt.profiles import Profile
from forebay_server.engines.tensorrt.progress import Watcher, make_monitor
from forebay_server.engines.tensorrt.settings import BuildSettings
from forebay_server.tensors import ModelSpec, TensorSpec

SHOWN: Final = 3
"""Of the parser's errors so many are shown."""

_log = structlog.get_logger(__name__)


class Built(NamedTuple):
    """What a build gives."""

    plan: bytes
    timings: bytes
    """The timing cache, with what was in it before; empty if TensorRT gives none."""


class Network:
    """A parsed ONNX file, from which a plan can be built.

    Args:
        path: The ONNX file; other files that it names lie beside it.
        library: The full one.
        device: On which it is built, and for which.

    Raises:
        ModelLoadError: The parser refuses the file, or it has tensors that can't be served.
    """

    def __init__(self, path: Path, library: Library, device: Device) -> None:
        self._path = path
        self._trt = trt = library.trt
        self._errors = Errors()
        self._recorder = make_recorder(trt, self._errors)
        device.use()
        try:
            self._builder = trt.Builder(library.logger)
        except TypeError as error:  # what the bindings make of a null pointer
            raise ModelLoadError(f"{path}: TensorRT {library.version} can't build on {device.label}") from error
        self._builder.error_recorder = self._recorder
        # On 10 the flag makes it so, on 11 it is always so and the flag is ignored.
        self._network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self._parser = trt.OnnxParser(self._network, library.logger)
        if not self._parser.parse_from_file(str(path)):
            raise ModelLoadError(f"{path}: TensorRT's parser refuses it: {self._complaints()}")
        self.spec = self._spec()

    def build(
        self,
        wanted: list[Profile],
        settings: BuildSettings,
        *,
        timings: bytes = b"",
        watcher: Watcher | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Built:
        """Builds it.

        Args:
            wanted: The profiles; none for a network without free dimensions.
            settings: How.
            timings: A timing cache of the same GPU and version; a foreign or damaged one is left aside.
            watcher: Told of the progress.
            cancelled: Whether the watcher was told to end the build.

        Raises:
            ModelLoadError: TensorRT can't build it, or was told to end.
        """
        config = self._configured(settings, watcher)
        for profile in wanted:
            self._add(config, profile)
        self._use_timings(config, timings)
        plan = self._builder.build_serialized_network(self._network, config)
        if plan is None:
            if cancelled():
                raise ModelLoadError(f"{self._path}: the build of its plan was ended")
            if self._errors.no_memory():
                raise ModelLoadError(f"{self._path}: no memory to build its plan: {self._errors.take()}")
            raise ModelLoadError(f"{self._path}: TensorRT can't build its plan: {self._errors.take()}")
        cache = config.get_timing_cache()
        return Built(bytes(plan), bytes(cache.serialize()) if cache is not None else b"")

    def _configured(self, settings: BuildSettings, watcher: Watcher | None) -> Any:
        trt = self._trt
        config = self._builder.create_builder_config()
        config.builder_optimization_level = settings.optimization_level
        config.max_aux_streams = 0  # batches overlap already; further streams would take the GPU from other instances
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names of layers, for profilers; costs no time
        if settings.workspace_mib:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib << 20)
        if not settings.tf32:
            config.clear_flag(trt.BuilderFlag.TF32)  # it is on by itself
        if settings.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
            config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)  # else the plan would bring code for the host
        if settings.hardware == "ampere+":
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if watcher is not None:
            config.progress_monitor = make_monitor(trt, watcher)
        return config

    def _add(self, config: Any, wanted: Profile) -> None:
        profile = self._builder.create_optimization_profile()
        try:
            for tensor, held in zip(self.spec.inputs, wanted, strict=True):
                profile.set_shape(tensor.name, held.least, held.best, held.most)
        except RuntimeError as error:  # what the bindings make of a False here
            raise ModelLoadError(f"{self._path}: {sentence(str(error))}") from error
        if config.add_optimization_profile(profile) < 0:
            said = profiles.said(self.spec, [wanted])
            raise ModelLoadError(f"{self._path}: TensorRT takes no profile of {said}: {self._errors.take()}")

    def _use_timings(self, config: Any, timings: bytes) -> None:
        cache = config.create_timing_cache(timings)
        if cache is None or not config.set_timing_cache(cache, False):
            if timings:
                _log.warning("timing cache not used", why=self._errors.take())
            cache = config.create_timing_cache(b"")
            if cache is None or not config.set_timing_cache(cache, False):
                self._errors.clear()

    def _complaints(self) -> str:
        count = self._parser.num_errors
        texts = []
        for index in range(min(count, SHOWN)):
            error = self._parser.get_error(index)
            node = f"node {error.node()}: " if error.node() >= 0 else ""
            texts.append(f"{node}{sentence(error.desc())}")
        more = f" (and {count - SHOWN} more)" if count > SHOWN else ""
        return ("; ".join(texts) or "it does not say why") + more

    def _spec(self) -> ModelSpec:
        network = self._network
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for kind, count, get, found in (
            ("input", network.num_inputs, network.get_input, inputs),
            ("output", network.num_outputs, network.get_output, outputs),
        ):
            for index in range(count):
                tensor = get(index)
                if tensor.is_shape_tensor:
                    raise ModelLoadError(
                        f"{self._path}: the {kind} {tensor.name!r} is a shape, which TensorRT wants in host memory; "
                        "that can't be served"
                    )
                data_type = data_type_of(tensor.dtype, kind, tensor.name, self._path)
                found.append(TensorSpec(name=tensor.name, data_type=data_type, shape=tuple(tensor.shape)))
        if not inputs:
            raise ModelLoadError(f"{self._path}: it has no inputs")
        spec = ModelSpec(inputs=tuple(inputs), outputs=tuple(outputs), batched=False)
        names = {network.get_input(index).get_dimension_name(0) for index in range(len(inputs)) if inputs[index].shape}
        same = len(names - {None, ""}) <= 1
        return replace(spec, batched=same and profiles.free_first(spec))
