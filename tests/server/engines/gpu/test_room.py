"""Room for the largest batches, made at once."""

import numpy as np
import pytest
import structlog

from forebay_server.engines.gpu import room
from forebay_server.engines.gpu.pool import GRAIN, Budget
from forebay_server.engines.gpu.preparation import Preparer
from forebay_server.tensors import FREE, DataType, ModelSpec, TensorSpec
from tests.server.engines.gpu.computations import spec_of
from tests.server.engines.gpu.conftest import ROW, put


def spec(*shapes, batched=True):
    """Inputs a, b, ... of these shapes."""
    inputs = tuple(
        TensorSpec(name=name, data_type=DataType.FP32, shape=shape) for name, shape in zip("abcd", shapes, strict=False)
    )
    return ModelSpec(inputs=inputs, outputs=(), batched=batched)


def test_the_largest_batch():
    """In bytes, not in elements; none if shapes are open."""
    assert room.largest(spec((FREE, FREE)), {"a": [[4], [9]]}, 8) == ((8, 9),)
    assert room.largest(spec((FREE, 4), (FREE, 2)), {}, 3) == ((3, 4), (3, 2))
    assert room.largest(spec((FREE, 4), batched=False), {"a": [[2, 4]]}, 1) == ((2, 4),)
    assert room.largest(spec((FREE, FREE)), {}, 8) is None


@pytest.mark.parametrize(("made", "grains"), [(True, 64), (False, 64 + 32 + 16)])
def test_growing_takes_more_memory(make, made, grains):
    """With room made before, all sizes lie in one piece; without, in several (the positive control)."""
    world = make(depth=1)
    model = spec_of(ROW)
    if made:
        room.make(world.instance, Preparer(world.device, Budget()), model, {}, 64 * GRAIN // (4 * ROW))
    for rows in (16, 32, 64):
        world.instance.infer(put(world.instance, np.zeros(rows * GRAIN // (4 * ROW))))

    assert world.device.used >= 2 * grains * GRAIN
    assert (world.device.used == 2 * 64 * GRAIN) is made


def test_room_that_is_not_there(make):
    """It is said, and warm-up finds what there is. More than warm-up would run is not asked for."""
    world = make(depth=1, total=2 * GRAIN)
    with structlog.testing.capture_logs() as logs:
        room.make(world.instance, Preparer(world.device, Budget()), spec_of(ROW), {}, 1024)
        room.make(world.instance, Preparer(world.device, Budget()), spec_of(ROW), {}, 1 << 20)
    assert [log["rows"] for log in logs] == [1024]
    world.instance.infer(put(world.instance, [1]))
