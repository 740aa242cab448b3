"""What the fake device computes: twice its input, with rows that do as tests wish."""

import math

import numpy as np

from forebay_server.engines.base import OutOfMemory
from forebay_server.engines.gpu.device import CaptureFailed
from forebay_server.tensors import FREE, DataType, ModelSpec, TensorSpec
from tests.server.engines.gpu.fake import IllegalAccess

ILLEGAL = -700.0
"""A row that begins so makes the device read where nothing is."""
ENDLESS = -702.0
"""A row that begins so is computed until `FakeDevice.release`."""
FLOAT = 4  # bytes


def spec_of(width=4):
    """x of (rows, width) and y like it."""
    shape = (FREE, width)
    return ModelSpec(
        inputs=(TensorSpec(name="x", data_type=DataType.FP32, shape=shape),),
        outputs=(TensorSpec(name="y", data_type=DataType.FP32, shape=shape),),
        batched=True,
    )


class Doubling:
    """y = 2 x on a fake device.

    Args:
        device: Whose memory the addresses mean.
        base, row: Seconds of a batch: base + row x its rows.
        memory_rows: A batch of more rows has no memory; 0: all have.
        known: Whether the outputs' shapes are known before the run; if not, y has only the rows that are not all zero.
    """

    def __init__(self, device, *, base=0.004, row=0.0, memory_rows=0, known=True, capturable=True):
        self.device = device
        self.base, self.row = base, row
        self.memory_rows = memory_rows
        self.known = known
        self.capturable = capturable
        self.enqueued = []  # rows of each plain run
        self.fault = None  # raised by the next run
        self.closed = False
        self._own = None

    def output_shapes(self, shapes):
        return [shapes[0]] if self.known else None

    def enqueue(self, inputs, shapes, outputs, stream):
        rows = shapes[0][0]
        self.enqueued.append(rows)
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        if self.memory_rows and rows > self.memory_rows:
            raise OutOfMemory("no workspace")
        size = FLOAT * math.prod(shapes[0])
        (source,) = inputs
        if self.known:
            (to,) = outputs
        else:
            assert not outputs
            self._own = self._own or self.device.memory(1 << 16)
            to = self._own.address

        def read():
            return self.device.view(source, size, pinned=False).view(np.float32).reshape(shapes[0])

        def double():
            x = read()
            if (x[:, 0] == ILLEGAL).any():
                raise IllegalAccess("cudaErrorIllegalAddress (700)")
            if not self.known:
                x = x[x.any(axis=1)]
                self._found = x.shape
            y = self.device.view(to, FLOAT * x.size, pinned=False).view(np.float32).reshape(x.shape)
            np.multiply(x, 2.0, out=y)

        def endless():
            return (read()[:, 0] == ENDLESS).any()

        stream.compute(self.base + self.row * rows, double, reads=[(source, size)], writes=[(to, size)], stalls=endless)

    def results(self):
        return [(self._own.address, self._found)]

    def close(self):
        assert not self.closed
        self.closed = True
        if self._own is not None:
            self._own.close()


class SelfRecording(Doubling):
    """One whose library captures by itself."""

    def __init__(self, device, **rest):
        super().__init__(device, capturable=False, **rest)
        self.recorded = []
        self.replayed = []
        self.refuses = False

    def record_run(self, inputs, shapes, outputs, stream):
        if self.refuses:
            raise CaptureFailed("no")
        self.recorded.append(shapes[0][0])

        def replay():
            self.replayed.append(shapes[0][0])
            Doubling.enqueue(self, inputs, shapes, outputs, stream)

        return replay
