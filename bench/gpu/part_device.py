"""The port on a real device: what each call promises (`engines.gpu.device`)."""

import numpy as np

from bench.gpu.outcome import Notes
from forebay_server.engines.base import OutOfMemory
from forebay_server.engines.gpu import cuda
from forebay_server.engines.gpu.device import CaptureFailed, Device, DeviceError

SIZE = 64 << 20  # bytes; long enough on its way for what follows to be enqueued meanwhile


def run(notes: Notes) -> None:
    """Every device that there is."""
    count = cuda.devices()
    notes.figure("GPUs", count)
    for index in range(count):
        device = cuda.open_device(index)
        free, total = device.free_memory()
        major, minor = device.compute_capability
        notes.figure(
            f"{device.label}, {device.name}, compute capability {major}.{minor}: free memory", free / 2**20, "MiB"
        )
        notes.check(f"{device.label}: no more memory is free than there is", 0 < free <= total)
        _copies(notes, device)
        _graphs(notes, device)
        _refusals(notes, device, total)
        after = device.free_memory()[0]
        notes.check(f"{device.label}: all memory was given back", free - after < 64 << 20, f"{free - after} bytes less")
        device.close()


def _copies(notes: Notes, device: Device) -> None:
    host, back = device.pinned(SIZE), device.pinned(SIZE)
    memory = device.memory(SIZE)
    up, down = device.stream(), device.stream()
    first, second, third = device.event(timed=True), device.event(timed=True), device.event(timed=True)
    host.view[:] = np.arange(SIZE, dtype=np.uint32).astype(np.uint8)
    up.record(first)
    up.upload(memory.address, host.address, SIZE)
    up.record(second)
    down.wait(second)
    down.download(back.address, memory.address, SIZE)
    down.record(third)
    notes.check(f"{device.label}: enqueuing does not wait", not third.done())
    third.synchronize()
    notes.check(f"{device.label}: bytes come back as they went", bool(np.array_equal(host.view, back.view)))
    seconds = second.seconds_since(first)
    notes.check(f"{device.label}: an event waited for in another stream comes first", third.seconds_since(second) > 0)
    notes.figure(f"{device.label}: upload from pinned memory", SIZE / seconds / 1e9, "GB/s")
    notes.figure(f"{device.label}: download to pinned memory", SIZE / third.seconds_since(second) / 1e9, "GB/s")
    for each in (first, second, third, up, down, memory, host, back):
        each.close()


def _graphs(notes: Notes, device: Device) -> None:
    stream = device.stream()
    memory, back = device.memory(1024), device.pinned(1024)

    def work() -> None:
        stream.fill(memory.address, 7, 1024)
        stream.download(back.address, memory.address, 1024)

    work()
    stream.synchronize()
    graph = stream.capture(work)
    back.view[:] = 0
    stream.synchronize()
    notes.check(f"{device.label}: what is captured does not run", not back.view.any())
    stream.launch(graph)
    stream.synchronize()
    notes.check(f"{device.label}: a graph does what was captured", bool((back.view == 7).all()))
    try:
        stream.capture(stream.synchronize)
    except CaptureFailed as error:
        work()
        stream.synchronize()
        notes.check(f"{device.label}: a capture that fails leaves the stream usable", good=True, detail=str(error))
    else:
        notes.check(f"{device.label}: waiting can't be captured", good=False)
    for each in (graph, memory, back, stream):
        each.close()


def _refusals(notes: Notes, device: Device, total: int) -> None:
    """What is refused before it does anything: a wrong address might not be refused but used, by host or device."""
    try:
        device.memory(2 * total).close()
    except OutOfMemory as error:
        notes.check(f"{device.label}: too much memory is OutOfMemory", good=True, detail=str(error))
    else:
        notes.check(f"{device.label}: too much memory is OutOfMemory", good=False)
    stream, memory = device.stream(), device.memory(1024)
    first, second = device.event(), device.event()
    for event in (first, second):
        stream.record(event)
    stream.synchronize()
    try:
        second.seconds_since(first)
    except DeviceError as error:
        notes.check(f"{device.label}: a bad argument fails the call alone", good=True, detail=str(error))
    else:
        notes.check(f"{device.label}: events without times tell none", good=False)
    stream.fill(memory.address, 0, 1024)
    stream.synchronize()
    device.check()
    for each in (first, second, stream, memory):
        each.close()
