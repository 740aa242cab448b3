"""The torch engine: a compiled package (`.pt2`), or a module that a factory makes (`torch:module:factory`).

A package is native code and a factory is Python code: both come from the operator's own files only.

Options (`[engine.options]`):

* `graphs`: on a GPU, whether batches run as CUDA graphs, one for each of some sizes that they are padded to; true.
* `path`: of a factory, the folder in which its module is looked for.
* all others are the factory's keywords.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from forebay_server.engines.base import EngineOptions, Instance, ModelLoadError, ParameterValue
from forebay_server.engines.cpu import cpu_quota, threads_per_instance
from forebay_server.engines.gpu import room
from forebay_server.engines.gpu.cuda import open_device
from forebay_server.engines.gpu.device import Device
from forebay_server.engines.gpu.graphs import MOST, ladder
from forebay_server.engines.gpu.pipeline import GpuInstance
from forebay_server.engines.gpu.pool import Budget
from forebay_server.engines.gpu.preparation import Preparer
from forebay_server.engines.options import Options
from forebay_server.engines.preparation import Preparation
from forebay_server.engines.torch import archive, library, target
from forebay_server.engines.torch.cpu import CpuInstance, Run
from forebay_server.engines.torch.cuda import TorchComputation
from forebay_server.engines.torch.module import Factory, runner
from forebay_server.engines.torch.profile import Profile
from forebay_server.engines.torch.target import Target
from forebay_server.tensors import ModelSpec

DEFAULT_MAX_BATCH: Final = 128
"""Of a module on a GPU, whose sizes have to be known beforehand; settings may say more."""


class TorchEngine:
    """A package or a factory."""

    suffixes: ClassVar[Sequence[str]] = (".pt2",)
    devices: ClassVar[Sequence[str]] = ("cpu", "cuda")

    name = "torch"

    def __init__(self, path: Path | str, options: EngineOptions) -> None:
        self._path = path
        self._options = options
        self._torch: Any = None
        self._graphs = True
        self._profile: Profile | None = None
        self._spec = ModelSpec(inputs=(), outputs=(), batched=False)
        self._make: Callable[[], Run] | None = None
        self._first: Run | None = None
        self._gpu: Device | None = None
        self._preparer: Preparer | None = None
        self._budget = Budget(options.memory)
        self.version = ""
        self.device = options.device or "cpu"
        self.always_worker = self.device != "cpu"
        self.batch_sizes: Sequence[int] = ()
        self.holds_gil = False
        self.gives_way = False
        self.max_batch_size = 0

    def load(self) -> ModelSpec:
        """Checks a package without touching its code, then loads it; or calls a factory for the first time."""
        options = Options(self.name, self._options.options)
        self._graphs = options.take("graphs", default=True)
        if isinstance(self._path, Path):
            options.done()
            self._load_package(self._path)
        else:
            folder = options.take("path", "")
            self._load_factory(Factory(self._path, folder), options.rest())
        return self._spec

    def prepare(self, inputs: Sequence[Preparation | None]) -> bool:
        """On a GPU, if the kernels for that can be compiled."""
        return self._preparer is not None and self._preparer.prepare(inputs)

    def instance(self, index: int) -> Instance:
        """Makes an instance. On the CPU all instances of a package share it; else each has weights of its own."""
        if self._make is None or self._first is None:
            raise RuntimeError("the engine is not loaded")
        shared = self._gpu is None and self._profile is not None
        run = self._first if index == 0 or shared else self._make()
        if self._gpu is not None and self._preparer is not None:
            computation, sent = self._preparer.around(
                TorchComputation(self._torch, run, self._spec, self._profile, self._gpu), self._spec
            )
            graphs = MOST if self._graphs else 0
            instance = GpuInstance(self._gpu, computation, sent, budget=self._budget, graphs=graphs)
            most = self.batch_sizes[-1] if self.batch_sizes else self._options.batching.max_batch_size
            room.make(instance, self._preparer, self._spec, self._options.buckets.shapes, most or 1)
            return instance
        threads = threads_per_instance(self._options.threads, self._options.instances, cpu_quota())
        if self.holds_gil:  # then the loader makes one instance, whatever was asked for
            threads *= self._options.instances
        return CpuInstance(self._torch, run, self._spec, self._profile, threads)

    def close(self) -> None:
        """Forgets package and modules. Code that was loaded stays: a process can't take that back."""
        self._make = self._first = None
        if self._gpu is not None:
            self._gpu.close()
            self._gpu = None

    def _load_package(self, path: Path) -> None:
        package = archive.read(path)
        profile = package.profile
        _, here = self._open()
        if complaint := target.complaint(package.metadata, profile.torch, profile.instructions, here):
            raise ModelLoadError(f"{path}: {complaint}")

        def make() -> Run:
            run: Run = library.open_package(path, self.device, single_threaded=self.device != "cpu")
            return run

        self._profile = profile
        self._spec = profile.spec()
        self.holds_gil = self._gpu is None  # see `cpu`
        self.max_batch_size = profile.max_batch_size
        self.batch_sizes = self._padded_to(profile.max_batch_size)
        self._make = make
        self._first = make()

    def _open(self) -> tuple[Any, Target]:
        """The library, and what it has to run on."""
        if self.device != "cpu":  # before torch touches it: it says best what is wrong
            self._gpu = open_device(int(self.device.partition(":")[2] or 0))
            self._preparer = Preparer(self._gpu, self._budget)
        self._torch = torch = library.imported()
        self.version = str(torch.__version__)
        return torch, library.here(torch, self.device)

    def _padded_to(self, most: int) -> Sequence[int]:
        """The sizes for which graphs are captured, up to this; none on the CPU or without a batch."""
        if self._gpu is None or not self._graphs or not most:
            return ()
        wanted = self._options.batching.max_batch_size or most
        return ladder(min(wanted, most) if self._profile is not None else wanted)

    def _load_factory(self, factory: Factory, arguments: Mapping[str, ParameterValue]) -> None:
        torch, _ = self._open()
        self.batch_sizes = self._padded_to(DEFAULT_MAX_BATCH if factory.spec.batched else 0)

        def make() -> Run:
            return runner(torch, factory.module(torch, self.device, arguments), factory.spec)

        self._spec = factory.spec
        self._make = make
        self._first = make()
