"""A machine with a GPU that isn't there, for the GPU check: what its parts and the servers that they start are given.

`install` puts it into a process. The folder `rehearsal` on PYTHONPATH puts it into a process and all that it starts, so
that the whole command runs as it will on a GPU, with its children, its time limits and its report. What it finds here
says nothing of a GPU.

FOREBAY_REHEARSAL orders what parts do instead of their work: `device=hang,graphs=crash`. FOREBAY_REHEARSAL_TORCH puts
torch on that GPU, too.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.gpu import amounts, engine
from forebay_server.engines.gpu import cuda, nvrtc
from forebay_server.engines.gpu.device import NoDevice
from tests.server.engines.gpu.fake import FakeDevice, IllegalAccess, RealTime
from tests.server.engines.gpu.kernel import HostCompiler

BANDWIDTH = 10e9  # bytes/s
TOTAL = 64 << 20  # bytes of the device

_devices = {}


class HostWork(engine.Work):
    """What `work.cu` computes, as operations of a fake device."""

    def __init__(self, device, *, nanoseconds=0, launches=1):
        self._device = device
        self._nanoseconds = nanoseconds
        self._launches = launches
        self.wrong = 0

    def enqueue(self, inputs, shapes, outputs, stream):
        size = 4 * int(np.prod(shapes[0]))

        def read():
            return self._device.view(inputs[0], size).view("f4").reshape(shapes[0])

        def compute():
            x = read()
            if (x[:, 0] == engine.ILLEGAL).any():
                raise IllegalAccess("cudaErrorIllegalAddress (700)")
            self._device.view(outputs[0], size).view("f4").reshape(shapes[0])[...] = 2 * x + self.wrong

        def endless():
            return (read()[:, 0] == engine.ENDLESS).any()

        for _ in range(self._launches):
            spans = {"reads": [(inputs[0], size)], "writes": [(outputs[0], size)]}
            stream.compute(max(1e-6, self._nanoseconds / 1e9), compute, stalls=endless, **spans)

    def close(self):
        """It has no memory of its own."""


def open_device(index):
    """As of `engines.gpu.cuda`: one object for the process, and none that is lost."""
    device = _devices.setdefault(index, FakeDevice(index, clock=RealTime(), total=TOTAL, bandwidth=BANDWIDTH))
    if device.lost:
        raise NoDevice(f"the device cuda:{index} can't be used: {device.lost}")
    return device


def install():
    """Puts it into this process, before the parts of the check are imported."""
    cuda.devices = lambda: 1
    cuda.open_device = open_device
    engine.Work = HostWork
    kernels = HostCompiler(Path(tempfile.mkdtemp(prefix="forebay-rehearsal-")))
    nvrtc.NvrtcCompiler.__call__ = lambda _, macros: kernels(macros)
    if "FOREBAY_REHEARSAL_TORCH" in os.environ:
        from tests.torch import on_cuda  # noqa: PLC0415  # where torch is

        on_cuda.install(open_device(0))
    if "bench.gpu.faulty" in sys.orig_argv:
        _shrink_faults()
    if "bench.gpu.child" in sys.orig_argv:
        _shrink_parts()


def _shrink_faults():
    amounts.WIDTH, amounts.ROWS = 1 << 12, 512  # 8 MiB
    amounts.SPARE, amounts.PIECES = 4 << 20, (16 << 20, 1 << 20)


def _shrink_parts():
    from bench.gpu import part_device, part_faults, part_path  # noqa: PLC0415  # as above

    part_device.SIZE = 1 << 20
    part_path.WIDTH, part_path.ROWS, part_path.LEAK_BATCHES = 1024, 4, 1600
    part_faults.HANGS = 1.0
    orders = dict(order.split("=") for order in os.environ.get("FOREBAY_REHEARSAL", "").split(",") if order)
    for module, name, function in (
        (part_device, "device", "run"),
        (part_path, "graphs", "graphs"),
        (part_path, "leaks", "leaks"),
    ):
        if name in orders:
            setattr(module, function, _BREAKDOWNS[orders[name]])


def _hang(notes):
    notes.check("it has begun", good=True)
    time.sleep(10_000)  # until somebody ends it


def _crash(notes):
    notes.check("it has begun", good=True)
    os.abort()


_BREAKDOWNS = {"hang": _hang, "crash": _crash}
