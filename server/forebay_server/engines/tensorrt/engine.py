"""The tensorrt engine: plans, and ONNX files of which it builds plans, on an NVIDIA GPU.

A plan (`.plan`, `.engine`) is loaded if its sidecar says that it is for this TensorRT and this GPU. An ONNX file, with
`engine.name = "tensorrt"`, is built into a plan for the model's buckets and batch sizes, which takes seconds to many
minutes and is kept in the cache directory; `forebay build-plan` does it beforehand.

Each plan is deserialized once per device and shared by the instances there. TensorRT is imported when the first model
is loaded, after a device was found.

Options (`[engine.options]`):

* `graphs`: whether CUDA graphs are captured at warm-up, which spares the time to launch kernels one by one; true.
* `host_code`: whether a version-compatible plan may bring code for the host (its own lean runtime); false.

and for building:

* `optimization_level`: how long TensorRT searches for fast kernels, 0 to 5; 3.
* `workspace_mib`: the most memory that a layer may use beside its tensors; 0: all there is.
* `profiles`: `bucket`: a profile for each bucket; `one`: one that holds them all, smaller and slower.
* `best_rows`: the batch to be fastest at; 0: the largest.
* `version_compatible`: a plan for the lean runtime, somewhat slower; false.
* `hardware`: `same`: for this compute capability; `ampere+`: for any GPU from Ampere on, slower.
* `tf32`: whether FP32 products may be rounded to TF32, which is much faster and less exact; false.
* `external_data`: whether weights may lie in other files of the model's folder; false.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from forebay_server.engines.base import EngineOptions, Instance, ModelLoadError, OutOfMemory
from forebay_server.engines.gpu import cuda, room
from forebay_server.engines.gpu.device import Computation, Device
from forebay_server.engines.gpu.graphs import MOST
from forebay_server.engines.gpu.pipeline import GpuInstance
from forebay_server.engines.gpu.pool import Budget
from forebay_server.engines.gpu.preparation import Preparer
from forebay_server.engines.options import Options
from forebay_server.engines.preparation import Preparation
from forebay_server.engines.tensorrt import profiles, sidecar
from forebay_server.engines.tensorrt.cache import PlanCache
from forebay_server.engines.tensorrt.computation import TensorRtComputation
from forebay_server.engines.tensorrt.library import Library, library
from forebay_server.engines.tensorrt.making import make
from forebay_server.engines.tensorrt.plan import LoadedPlan
from forebay_server.engines.tensorrt.progress import Words
from forebay_server.engines.tensorrt.settings import BuildSettings, read
from forebay_server.engines.tensorrt.sidecar import Sidecar
from forebay_server.tensors import ModelSpec


class TensorRtEngine:
    """A plan, or an ONNX file."""

    suffixes: ClassVar[Sequence[str]] = (".plan", ".engine")
    devices: ClassVar[Sequence[str]] = ("cuda",)

    name = "tensorrt"

    def __init__(self, path: Path | str, options: EngineOptions) -> None:
        self._path = Path(path)
        self._options = options
        self._device: Device | None = None
        self._plan: LoadedPlan | None = None
        self._spec = ModelSpec(inputs=(), outputs=(), batched=False)
        self._budget = Budget(options.memory)
        self._preparer: Preparer | None = None
        self._graphs = True
        self.version = ""
        self.device = "cuda"
        self.always_worker = True
        self.batch_sizes: Sequence[int] = ()
        self.holds_gil = False
        self.max_batch_size = 0

    def load(self) -> ModelSpec:
        """Finds the device, then the plan, checks it, and loads it."""
        options = Options(self.name, self._options.options)
        host_code = options.take("host_code", default=False)
        self._graphs = options.take("graphs", default=True)
        build = read(options)
        options.done()
        self._device = device = cuda.open_device(int(self._options.device.partition(":")[2] or 0))
        self.device = device.label
        self._preparer = Preparer(device, self._budget)
        path, data, said = self._found(device, build)
        found = runtime_for(said, path, device, host_code=host_code)
        self.version = found.version
        try:
            self._plan = plan = LoadedPlan(path, found, device, data, host_code=host_code)
        except OutOfMemory as error:
            raise ModelLoadError(str(error)) from error
        batching, shapes = self._options.batching, self._options.buckets.shapes
        self._spec = profiles.served(plan.spec(batched=said.batched), batching.batch_dimension)
        self._spec = profiles.settled(self._spec, plan.profiles, shapes)
        try:
            self.batch_sizes = profiles.fitting(self._spec, plan.profiles, shapes, batching.max_batch_size)
        except ModelLoadError as error:
            raise ModelLoadError(f"{self._path}: {error}") from error
        return self._spec

    def prepare(self, inputs: Sequence[Preparation | None]) -> bool:
        """If the kernels for that can be compiled here."""
        return self._preparer is not None and self._preparer.prepare(inputs)

    def instance(self, index: int) -> Instance:
        """Makes an instance with contexts of its own."""
        plan, device, preparer = self._plan, self._device, self._preparer
        if plan is None or device is None or preparer is None:
            raise ModelLoadError(f"{self._path}: it is not loaded")
        try:
            computation: Computation = TensorRtComputation(plan, self._spec, self._budget)
        except OutOfMemory as error:
            raise ModelLoadError(f"{self._path}: no memory on {device.label} for instance {index}: {error}") from error
        try:
            computation, spec = preparer.around(computation, self._spec)
            instance = GpuInstance(device, computation, spec, budget=self._budget, graphs=MOST if self._graphs else 0)
        except BaseException:
            computation.close()
            raise
        rows = self.batch_sizes[-1] if self.batch_sizes else 1
        room.make(instance, preparer, self._spec, self._options.buckets.shapes, rows)
        return instance

    def close(self) -> None:
        """Lets go of the plan, then of the device."""
        if self._plan is not None:
            self._plan.close()
            self._plan = None
        if self._device is not None:
            self._device.close()
            self._device = None

    def _found(self, device: Device, build: BuildSettings) -> tuple[Path, bytes, Sidecar]:
        """The plan, of the operator or built, with its sidecar, whose word about the bytes has been checked."""
        if self._path.suffix.lower() == ".onnx":
            tell = self._options.progress
            return make(
                self._path,
                device,
                self._options.batching,
                self._options.buckets,
                build,
                PlanCache(self._options.cache_dir),
                watcher=Words(tell, self._options.stopping),
                waiting=lambda: tell("waiting for another process that builds its plan"),
                cancelled=self._options.stopping,
            )
        said = sidecar.read(self._path)
        data = self._path.read_bytes()
        sidecar.check_bytes(said, self._path, data)
        return self._path, data, said


def runtime_for(said: Sidecar, plan: Path, device: Device, *, host_code: bool) -> Library:
    """The library that runs a plan, after its sidecar.

    Raises:
        ModelLoadError: It is not installed, or not for this plan; or the plan is not for this device.
    """
    found = library(device, lean=said.version_compatible and not host_code)
    sidecar.check_place(said, plan, device, found.version)
    return found
