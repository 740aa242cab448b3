"""The data path on a real device: overlap by event times, graphs against plain launches, memory over many batches."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu.engine import Work, spec_of
from bench.gpu.outcome import Notes
from forebay_server.engines.base import EngineBatch
from forebay_server.engines.gpu import cuda
from forebay_server.engines.gpu.cuda import CudaDevice
from forebay_server.engines.gpu.device import Computation, Event, Shape, Stream
from forebay_server.engines.gpu.pipeline import GpuInstance

WIDTH = 1 << 18  # floats: 1 MiB a row
ROWS = 16
BATCHES = 60
LEAK_BATCHES = 100_000
LEAST_OVERLAP = 0.8  # of the batches
COMPUTING = 1.5  # of what else a batch takes

Span = tuple[str, float, float]


class TimedStream:
    """A stream that marks the begin and the end of each copy."""

    def __init__(self, stream: Stream, device: "TimedDevice") -> None:
        self._stream = stream
        self._device = device

    def upload(self, to: int, source: int, size: int) -> None:
        self._device.timed("upload", self._stream, lambda: self._stream.upload(to, source, size))

    def download(self, to: int, source: int, size: int) -> None:
        self._device.timed("download", self._stream, lambda: self._stream.download(to, source, size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class TimedDevice:
    """A device whose streams do so, if `watching`."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self.marks: list[tuple[str, Event, Event]] = []
        self.watching = False
        self.origin = device.event(timed=True)

    def stream(self) -> Any:
        return TimedStream(self._device.stream(), self)

    def timed(self, kind: str, stream: Stream, enqueue: Callable[[], None]) -> None:
        if not self.watching:
            enqueue()
            return
        begin, end = self._device.event(timed=True), self._device.event(timed=True)
        stream.record(begin)
        enqueue()
        stream.record(end)
        self.marks.append((kind, begin, end))

    def spans(self, kind: str) -> list[Span]:
        """Begin and end of each operation of a kind, in seconds; all are done."""
        found = [mark for mark in self.marks if mark[0] == kind]
        return [(kind, begin.seconds_since(self.origin), end.seconds_since(self.origin)) for _, begin, end in found]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)


class TimedComputation:
    """A computation whose runs are marked."""

    def __init__(self, computation: Computation, timed: TimedDevice) -> None:
        self._computation = computation
        self._timed = timed

    def enqueue(self, inputs: Sequence[int], shapes: Sequence[Shape], outputs: Sequence[int], stream: Stream) -> None:
        inner = self._computation.enqueue
        self._timed.timed("compute", stream, lambda: inner(inputs, shapes, outputs, stream))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._computation, name)


def overlap(notes: Notes) -> None:
    """Batches that compute for longer than all else of them takes, three in flight: all else hides behind that.

    On the host all else includes writing and reading the batches, which takes many times as long as to copy them to the
    device and back.
    """
    device = cuda.open_device(0)
    rest = _seconds_without_computing(device)
    timed: Any = TimedDevice(device)
    stream = device.stream()
    stream.record(timed.origin)
    stream.synchronize()
    stream.close()
    computation: Any = TimedComputation(Work(device, nanoseconds=int(COMPUTING * rest * 1e9)), timed)
    instance = GpuInstance(timed, computation, spec_of(WIDTH), depth=3, graphs=0)
    _stream_through(instance, 6, WIDTH, ROWS)
    timed.watching = True
    wrong = _stream_through(instance, BATCHES, WIDTH, ROWS)
    uploads, runs, downloads = (timed.spans(kind) for kind in ("upload", "compute", "download"))
    notes.check("every answer is right", not wrong)
    notes.check(
        "each batch computes after its upload and before its download",
        all(up[2] <= run[1] and run[2] <= down[1] for up, run, down in zip(uploads, runs, downloads, strict=True)),
    )
    # Of the first one's upload and the last one's download there is nothing beside.
    for name, copies in (("uploads", uploads[1:]), ("downloads", downloads[:-1])):
        share = statistics.mean(any(_meets(copy, run) for run in runs) for copy in copies)
        notes.figure(f"{name} that ran beside the computing of another batch", share, least=LEAST_OVERLAP)
    steps = [statistics.median(end - begin for _, begin, end in spans) for spans in (uploads, runs, downloads)]
    whole = (downloads[-1][2] - uploads[0][1]) / BATCHES
    for name, seconds in zip(("upload", "compute", "download"), steps, strict=True):
        notes.figure(f"median {name} of {ROWS} MiB", seconds * 1e3, "ms")
    notes.figure("a batch without computing", rest * 1e3, "ms")
    notes.figure("time per batch over its longest step", whole / max(steps), most=1.25)
    instance.close()
    device.close()


def _seconds_without_computing(device: CudaDevice) -> float:
    """What a batch takes of which all but the computing is as it will be."""
    instance = GpuInstance(device, Work(device), spec_of(WIDTH), depth=3, graphs=0)
    _stream_through(instance, 6, WIDTH, ROWS)
    began = time.perf_counter()
    _stream_through(instance, 20, WIDTH, ROWS)
    seconds = (time.perf_counter() - began) / 20
    instance.close()
    return seconds


def _meets(one: Span, other: Span) -> bool:
    return one[1] < other[2] and other[1] < one[2]


def _stream_through(instance: GpuInstance, batches: int, width: int, rows: int) -> int:
    """Runs batches with as many in flight as may be; how many answers were wrong."""
    flying: list[tuple[object, int]] = []
    wrong = 0
    for number in range(batches + instance.depth):
        if number >= instance.depth:
            ticket, value = flying.pop(0)
            (y,) = instance.collect(ticket)
            wrong += not (y.shape == (rows, width) and y[0, 0] == 2 * value and y[-1, -1] == 2 * value)
        if number < batches:
            (x,) = instance.stage([(rows, width)])
            x[...] = number
            flying.append((instance.issue(EngineBatch([x], rows)), number))
    return wrong


def graphs(notes: Notes) -> None:
    """Runs of 100 short kernels, where launching costs more than computing."""
    device = cuda.open_device(0)
    seconds = {}
    for form, most in (("plain launches", 0), ("graph", 64)):
        instance = GpuInstance(device, Work(device, launches=100), spec_of(256), depth=1, graphs=most)
        for rows in (1, 8):
            (x,) = instance.stage([(rows, 256)])
            x[...] = np.arange(rows, dtype=np.float32)[:, None]
            (y,) = instance.infer(EngineBatch([x], rows))
            notes.check(f"{form}, {rows} rows: the answer is right", bool((y[:, 0] == 2 * np.arange(rows)).all()))
        times = []
        for number in range(300):
            begin = time.perf_counter()
            (x,) = instance.stage([(8, 256)])
            x[...] = number
            (y,) = instance.collect(instance.issue(EngineBatch([x], 8)))
            times.append(time.perf_counter() - begin)
            if not (y == 2 * number).all():
                notes.check(f"{form}: batch {number} is right", good=False)
        seconds[form] = statistics.median(times)
        notes.figure(f"a batch of 100 kernels, {form}", seconds[form] * 1e6, "us")
        instance.close()
    notes.figure("plain launches over graph", seconds["plain launches"] / seconds["graph"], least=1.0)
    device.close()


def leaks(notes: Notes) -> None:
    """Many batches of changing sizes, graphs and plain runs: memory of device and host stays as it is."""
    device = cuda.open_device(0)
    instance = GpuInstance(device, Work(device), spec_of(1024), depth=2)
    for rows in (8, 4, 2, 1):  # with graphs; 3, 5, 6 and 7 run plainly
        (x,) = instance.stage([(rows, 1024)])
        x[...] = 1
        instance.infer(EngineBatch([x], rows))
    wrong = sum(_stream_through(instance, 50, 1024, rows) for rows in range(1, 9))
    free, resident = device.free_memory()[0], _resident()
    for turn in range(LEAK_BATCHES // 800):
        wrong += sum(_stream_through(instance, 100, 1024, rows) for rows in range(1, 9))
        if turn % 25 == 0:
            notes.write()
    notes.check(f"{LEAK_BATCHES:,} batches: every answer is right", not wrong, f"{wrong} wrong")
    notes.figure("device memory that is gone", (free - device.free_memory()[0]) / 2**20, "MiB", most=8)
    notes.figure("memory of the process that is gone", (_resident() - resident) / 2**20, "MiB", most=32)
    instance.close()
    device.close()


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
