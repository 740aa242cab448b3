"""How batches go through a GPU: up, through the computation and down, each step beside those of the neighbours.

An instance has three streams, for upload, compute and download, and as many sets of `_Buffers` as batches may be in
flight, its depth. A batch takes the next set in turn:

    stage      collate writes the requests' bytes into the set's pinned memory: our one copy on the host
    issue      enqueues the upload; behind it (an event) the computation, as a graph if one was captured; behind that
               (another event) the download into the set's pinned memory. Nothing is waited for
    collect    waits for the end of the download, without the GIL, and copies the rows out: they are the caller's, and
               the set is free for another batch

With a depth of 2, batch k+1 is staged and uploaded while k computes, and k computes while k-1 is downloaded and given
out. Within a set nothing overlaps, because it is taken again only after `collect`.

Outputs whose shapes are known only after the run lie in the computation's own memory until the next run. So `issue`
waits for the end of the run there, and the next run waits, on the device, for the download.

Memory is allocated and graphs are captured when the loader runs a batch of new shapes, for all sets: what `infer` runs
in the thread that made the instance is warm-up. What it runs in another one, or `issue` starts, is a request: nothing
is captured for it, and memory is only allocated if it is larger than all before.

Faults: what the device or the computation raises comes out of `issue` or `collect`, late as it may be. If a batch could
not be issued whole, what was enqueued of it is waited for before the error goes on, so that its set can be used again.
"""

import math
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np

from forebay_server.engines.base import EngineBatch, EngineDead
from forebay_server.engines.gpu.device import Computation, Device, DeviceError, Shape, Stream
from forebay_server.engines.gpu.graphs import MOST, Graphs, Launch
from forebay_server.engines.gpu.pool import Budget, Chain, placed
from forebay_server.tensors import NUMPY_DTYPES, Array, ModelSpec

PLANS: Final = 256
"""Combinations of shapes whose places are remembered for a set of buffers; beyond that, those without a graph go."""

_Dtypes = Sequence["np.dtype[np.generic]"]


class GpuInstance:
    """An `engines.base.OverlappingInstance` on one device.

    Args:
        device: Where. It stays the engine's, which closes it after its instances.
        computation: What is run. The instance closes it.
        spec: The model's. It has no BYTES tensors.
        depth: The most batches in flight; 1: one after the other.
        budget: What its device memory counts against.
        graphs: The most graphs, all sets of buffers together; 0: all runs are plain.
        stream: Where the computation is enqueued, if its library had to know that before; the instance closes it.
    """

    def __init__(
        self,
        device: Device,
        computation: Computation,
        spec: ModelSpec,
        *,
        depth: int = 2,
        budget: Budget | None = None,
        graphs: int = MOST,
        stream: Stream | None = None,
    ) -> None:
        self.depth = depth
        self.device = device.label
        self._device = device
        self._computation = computation
        self._batched = spec.batched
        self._dtypes = [NUMPY_DTYPES[tensor.data_type] for tensor in spec.inputs]
        self._result_dtypes = [NUMPY_DTYPES[tensor.data_type] for tensor in spec.outputs]
        self._maker = threading.get_ident()
        self._warmed: set[tuple[Shape, ...]] = set()
        device.use()
        self._upload = device.stream()
        self._compute = stream or device.stream()
        self._download = device.stream()
        self._graphs = Graphs(computation, self._compute, graphs)
        self._ring = [_Buffers(device, budget or Budget()) for _ in range(depth)]
        self._turn = 0

    @property
    def captured(self) -> int:
        """How many graphs it has: one for each set of buffers and combination of shapes that warm-up has captured."""
        return self._graphs.count

    def reserve(self, shapes: Sequence[Shape]) -> None:
        """Allocates what batches up to such a size need. At load, the largest first: then there is one piece of each.

        Raises:
            OutOfMemory: There is not so much.
        """
        self._device.use()
        for buffers in self._ring:
            self._plan(buffers, tuple(shapes))

    def stage(self, shapes: Sequence[Shape]) -> Sequence[Array]:
        """Gives out views on pinned memory.

        Raises:
            OutOfMemory: The batch is larger than all before, and there is no memory for it.
            RejectInput: The computation can't run such shapes.
        """
        buffers = self._free_buffers()
        plan = buffers.plans.get(tuple(shapes))
        if plan is None:
            self._device.use()
            plan = self._plan(buffers, tuple(shapes))
        return plan.inputs

    def infer(self, batch: EngineBatch) -> Sequence[Array]:
        """Runs a batch from upload to download. In the loader's thread, captures graphs for new shapes before."""
        if threading.get_ident() == self._maker:
            self._warm(batch)
        return self.collect(self.issue(batch))

    def issue(self, batch: EngineBatch) -> "_Ticket":
        """Starts a batch."""
        self._device.use()
        buffers = self._free_buffers()
        shapes = tuple(array.shape for array in batch.inputs)
        plan = buffers.plans.get(shapes) or self._plan(buffers, shapes)
        for array, view in zip(batch.inputs, plan.inputs, strict=True):
            if array is not view:  # it was not put together where `stage` said
                view[...] = array
        try:
            results = self._enqueue(buffers, plan)
        except EngineDead:
            raise
        except BaseException:
            self._settle()
            raise
        buffers.taken = True
        self._turn = (self._turn + 1) % self.depth
        return _Ticket(buffers, results, shapes[0][0] if self._batched else 0, batch.rows)

    def collect(self, ticket: Any) -> Sequence[Array]:
        """Waits for a batch. Its outputs are copies, of a batched model without the rows that are padding."""
        buffers: _Buffers = ticket.buffers
        try:
            self._device.use()
            buffers.downloaded.synchronize()
            if not self._batched:
                return [view.copy() for view in ticket.results]
            padded, rows = ticket.padded, ticket.rows
            return [(view[:rows] if view.shape and view.shape[0] == padded else view).copy() for view in ticket.results]
        finally:
            buffers.taken = False

    def close(self) -> None:
        """Waits for what is enqueued, and lets go of everything."""
        with suppress(EngineDead, DeviceError):  # then nothing runs any more
            self._device.use()
            self._settle()
        self._graphs.close()
        self._computation.close()
        for buffers in self._ring:
            buffers.close()
        for stream in (self._upload, self._compute, self._download):
            stream.close()

    def _free_buffers(self) -> "_Buffers":
        buffers = self._ring[self._turn]
        if buffers.taken:
            raise RuntimeError(f"more than {self.depth} batches in flight")
        return buffers

    def _plan(self, buffers: "_Buffers", shapes: tuple[Shape, ...]) -> "_Plan":
        """Places batches of new shapes in a set."""
        results = self._computation.output_shapes(shapes)
        plan = _Plan(buffers, shapes, self._dtypes, results, self._result_dtypes)
        if len(buffers.plans) >= PLANS:
            buffers.plans = {key: kept for key, kept in buffers.plans.items() if kept.launch is not None}
        buffers.plans[shapes] = plan
        return plan

    def _enqueue(self, buffers: "_Buffers", plan: "_Plan") -> list[Array]:
        """Enqueues all of a batch; where its outputs will be."""
        upload, compute, download = self._upload, self._compute, self._download
        upload.upload(plan.upload_to, plan.upload_from, plan.upload_size)
        upload.record(buffers.uploaded)
        compute.wait(buffers.uploaded)
        if plan.launch is not None:
            plan.launch()
        else:
            self._computation.enqueue(plan.input_addresses, plan.shapes, plan.result_addresses, compute)
        if plan.results is None:
            return self._enqueue_late(buffers)
        compute.record(buffers.computed)
        download.wait(buffers.computed)
        download.download(plan.download_to, plan.download_from, plan.download_size)
        download.record(buffers.downloaded)
        return plan.results

    def _enqueue_late(self, buffers: "_Buffers") -> list[Array]:
        """The download of outputs whose shapes are known after the run."""
        compute, download = self._compute, self._download
        compute.synchronize()
        found = self._computation.results()
        sizes = [
            dtype.itemsize * math.prod(shape) for dtype, (_, shape) in zip(self._result_dtypes, found, strict=True)
        ]
        offsets, size = placed(sizes)
        pinned = buffers.pinned_results.fit(size)
        for (address, _), offset, length in zip(found, offsets, sizes, strict=True):
            download.download(pinned.address + offset, address, length)
        download.record(buffers.downloaded)
        compute.wait(buffers.downloaded)
        return _views(pinned.view, offsets, [shape for _, shape in found], self._result_dtypes)

    def _warm(self, batch: EngineBatch) -> None:
        """Makes room for new shapes in each set, runs them there, for what libraries do at first, and captures that."""
        shapes = tuple(array.shape for array in batch.inputs)
        if shapes in self._warmed:
            return
        for buffers in self._ring:
            if shapes not in buffers.plans:
                self._plan(buffers, shapes)
        if self._graphs.wanted:
            inputs = [array.copy() for array in batch.inputs]  # they may be views on the memory of a set
            for _ in self._ring:  # the last one leaves the turn where it was
                buffers = self._free_buffers()
                self.collect(self.issue(EngineBatch(inputs, batch.rows, batch.parameters)))
                plan = buffers.plans[shapes]
                if plan.results is not None:
                    plan.launch = self._graphs.capture(plan.input_addresses, shapes, plan.result_addresses)
        self._warmed.add(shapes)

    def _settle(self) -> None:
        """Waits until nothing is enqueued."""
        for stream in (self._upload, self._compute, self._download):
            stream.synchronize()


class _Buffers:
    """The memory of one batch in flight, and the marks of its steps."""

    def __init__(self, device: Device, budget: Budget) -> None:
        self.pinned_inputs = Chain(device.pinned)
        self.inputs = Chain(device.memory, budget)
        self.results = Chain(device.memory, budget)
        self.pinned_results = Chain(device.pinned)
        self.uploaded = device.event()
        self.computed = device.event()
        self.downloaded = device.event()
        self.plans: dict[tuple[Shape, ...], _Plan] = {}
        self.taken = False
        """Whether a batch is between `issue` and the end of `collect`. Set by one of their threads, reset by the other,
        never both at a time."""

    def close(self) -> None:
        self.plans.clear()
        for chain in (self.inputs, self.results, self.pinned_inputs, self.pinned_results):
            chain.close()
        for event in (self.uploaded, self.computed, self.downloaded):
            event.close()


class _Plan:
    """Where batches of some shapes lie in a set of buffers.

    Inputs are side by side in one piece, and outputs in another, so each way is one copy.
    """

    __slots__ = (
        "download_from",
        "download_size",
        "download_to",
        "input_addresses",
        "inputs",
        "launch",
        "result_addresses",
        "results",
        "shapes",
        "upload_from",
        "upload_size",
        "upload_to",
    )

    def __init__(
        self,
        buffers: _Buffers,
        shapes: tuple[Shape, ...],
        dtypes: _Dtypes,
        result_shapes: Sequence[Shape] | None,
        result_dtypes: _Dtypes,
    ) -> None:
        self.shapes = shapes
        offsets, self.upload_size = _placed(shapes, dtypes)
        host, device = buffers.pinned_inputs.fit(self.upload_size), buffers.inputs.fit(self.upload_size)
        self.upload_from, self.upload_to = host.address, device.address
        self.input_addresses = [device.address + offset for offset in offsets]
        self.inputs = _views(host.view, offsets, shapes, dtypes)
        self.results: list[Array] | None = None
        """Views on pinned memory; None if the shapes are known only after each run."""
        self.result_addresses: list[int] = []
        self.launch: Launch | None = None
        """Enqueues the captured run."""
        if result_shapes is None:
            return
        offsets, self.download_size = _placed(result_shapes, result_dtypes)
        host, device = buffers.pinned_results.fit(self.download_size), buffers.results.fit(self.download_size)
        self.download_from, self.download_to = device.address, host.address
        self.result_addresses = [device.address + offset for offset in offsets]
        self.results = _views(host.view, offsets, result_shapes, result_dtypes)


class _Ticket:
    """A batch in flight."""

    __slots__ = ("buffers", "padded", "results", "rows")

    def __init__(self, buffers: _Buffers, results: list[Array], padded: int, rows: int) -> None:
        self.buffers = buffers
        self.results = results
        self.padded = padded
        self.rows = rows


def _placed(shapes: Sequence[Shape], dtypes: _Dtypes) -> tuple[list[int], int]:
    return placed([dtype.itemsize * math.prod(shape) for dtype, shape in zip(dtypes, shapes, strict=True)])


def _views(memory: Array, offsets: Sequence[int], shapes: Sequence[Shape], dtypes: _Dtypes) -> list[Array]:
    return [
        np.ndarray(shape, dtype, memory.data, offset)
        for offset, shape, dtype in zip(offsets, shapes, dtypes, strict=True)
    ]
