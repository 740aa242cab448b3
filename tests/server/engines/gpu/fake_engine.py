"""An engine on make-believe devices, for servers: `fakegpu`, found by an entry point that tests put on the path.

| option | what it means | default |
|---|---|---|
| `devices` | instances are spread over so many | 1 |
| `depth` | batches in flight | 2 |
| `base_ms` | what a batch takes | 0 |
| `sizes` | batches that are captured, such as `1x2x4`; empty: any size, nothing captured | none |
| `poison` | a batch with such a row can't be issued | none |
"""

import math
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np

from forebay_server.engines.gpu.pipeline import GpuInstance
from forebay_server.engines.options import Options
from tests.server.engines.gpu.computations import Doubling, spec_of
from tests.server.engines.gpu.fake import FakeDevice, RealTime

DEVICES = {}
"""By number; one for all engines of the process."""
COMPUTATIONS = []
"""All, in the order of their making."""


def install(folder: Path) -> None:
    """Puts a distribution with the entry point into a folder that is, or will be, on the path."""
    info = folder / "fakegpu-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fakegpu\nVersion: 1\n")
    point = EntryPoint("fakegpu", f"{__name__}:FakeGpuEngine", "forebay.engines")
    (info / "entry_points.txt").write_text(f"[{point.group}]\n{point.name} = {point.value}\n")


class FakeGpuEngine:
    """y = 2 x, rows of four."""

    suffixes = ()
    name = "fakegpu"
    version = "1"
    device = "cuda:0"
    always_worker = True

    def __init__(self, path, options):
        given = Options(self.name, options.options)
        self._devices = given.take("devices", 1)
        self._depth = given.take("depth", 2)
        self._base = given.take("base_ms", 0.0) / 1e3
        self.batch_sizes = [int(size) for size in given.take("sizes", "").split("x") if size]
        self._poison = given.take("poison", math.nan)
        given.done()

    def load(self):
        return spec_of()

    def instance(self, index):
        number = index % self._devices
        device = DEVICES.setdefault(number, FakeDevice(number, clock=RealTime()))
        computation = Doubling(device, base=self._base)
        COMPUTATIONS.append(computation)
        return PickyInstance(
            device,
            computation,
            spec_of(),
            depth=self._depth,
            graphs=100 if self.batch_sizes else 0,
            poison=self._poison,
        )

    def close(self):
        pass


class PickyInstance(GpuInstance):
    """One that can't issue batches with a poisonous row."""

    def __init__(self, *arguments, poison, **rest):
        super().__init__(*arguments, **rest)
        self._poison = poison

    def issue(self, batch):
        if np.any(batch.inputs[0][:, 0] == self._poison):
            raise ValueError("a poisonous row")
        return super().issue(batch)
