"""An instance on a fake device, whose time stands still but for waiting."""

from types import SimpleNamespace

import numpy as np
import pytest

from forebay_server.engines.base import EngineBatch
from forebay_server.engines.gpu.pipeline import GpuInstance
from tests.server.engines.gpu.computations import Doubling, spec_of
from tests.server.engines.gpu.fake import FakeDevice

ROW = 1024  # floats
BANDWIDTH = 4096e3  # bytes/s: a row takes a millisecond each way


@pytest.fixture
def make():
    """Makes instances; at the end no operation has met another on the same memory, and nothing is left open."""
    made = []

    def make_instance(*, device=None, computation=None, width=ROW, graphs=0, total=1 << 30, **options):
        device = device or FakeDevice(bandwidth=BANDWIDTH, total=total)
        computation = computation(device) if computation else Doubling(device)
        instance = GpuInstance(device, computation, spec_of(width), graphs=graphs, **options)
        made.append((device, instance))
        return SimpleNamespace(device=device, computation=computation, instance=instance)

    yield make_instance
    for _, instance in made:
        instance.close()
    for device, _ in made:
        assert device.hazards == []
        assert device.lost or device.open == 0
        assert device.used == 0


def put(instance, values, width=ROW):
    """Stages rows of equal numbers, as collate does; the batch."""
    (x,) = instance.stage([(len(values), width)])
    x[...] = np.asarray(values, np.float32)[:, None]
    return EngineBatch([x], len(values))


def doubled(outputs):
    """The rows that an answer stands for."""
    (y,) = outputs
    assert (y == y[:, :1]).all() or np.isnan(y).any()
    return [value / 2 for value in y[:, 0].tolist()]
