"""`python -m bench.gpu.faulty KIND`: one real fault on the data path, and what it left. Prints lines of JSON.

A process of its own, because it is lost with its device. `part_faults` reads what it prints, line by line, and ends it.
"""

import json
import sys
from typing import Any

import numpy as np

from bench.gpu import amounts
from bench.gpu.engine import ENDLESS, ILLEGAL, Work, spec_of
from forebay_server.engines.base import EngineBatch, EngineDead, OutOfMemory
from forebay_server.engines.gpu import cuda
from forebay_server.engines.gpu.cuda import CudaDevice
from forebay_server.engines.gpu.device import DeviceMemory, NoDevice
from forebay_server.engines.gpu.pipeline import GpuInstance


def say(what: str, **facts: Any) -> None:
    """A line for the parent."""
    print(json.dumps({"what": what, **facts}), flush=True)


def answer(instance: GpuInstance, value: float, rows: int, width: int) -> bool:
    """Whether a batch of such rows is answered rightly."""
    (x,) = instance.stage([(rows, width)])
    x[...] = value
    (y,) = instance.collect(instance.issue(EngineBatch([x], rows)))
    return bool(np.array_equal(y, np.full((rows, width), 2 * value, np.float32)))


def memory(device: CudaDevice) -> None:
    """All memory but a little is taken; then a batch comes that needs more, and one that does not."""
    instance = GpuInstance(device, Work(device), spec_of(amounts.WIDTH), depth=1, graphs=0)
    say("small before", good=answer(instance, 1, 1, amounts.WIDTH))
    taken: list[DeviceMemory] = []
    piece, least = amounts.PIECES
    while piece >= least:
        if device.free_memory()[0] - piece < amounts.SPARE:
            piece //= 2
            continue
        try:
            taken.append(device.memory(piece))
        except OutOfMemory:
            piece //= 2
    try:
        answer(instance, 2, amounts.ROWS, amounts.WIDTH)
    except OutOfMemory as error:
        say("large", error=str(error))
    say("small after", good=answer(instance, 3, 1, amounts.WIDTH))
    for each in taken:
        each.close()
    say("large after", good=answer(instance, 4, amounts.ROWS, amounts.WIDTH))
    instance.close()


def lost(device: CudaDevice) -> None:
    """A kernel writes where nothing is."""
    first, second = (GpuInstance(device, Work(device), spec_of(8), depth=2, graphs=0) for _ in range(2))
    say("before", good=answer(first, 1, 4, 8) and answer(second, 2, 4, 8))
    for name, instance in (("first", first), ("second", second)):
        try:
            answer(instance, ILLEGAL if name == "first" else 3, 4, 8)
        except EngineDead as error:
            say(name, error=str(error), device=error.device)
    try:
        cuda.open_device(device.index)
    except NoDevice as error:
        say("again", error=str(error))
    first.close()
    second.close()
    say("closed")


def endless(device: CudaDevice) -> None:
    """A kernel does not end. Nor does this process, until somebody ends it."""
    instance = GpuInstance(device, Work(device), spec_of(8), depth=2, graphs=0)
    say("before", good=answer(instance, 1, 4, 8))
    (x,) = instance.stage([(4, 8)])
    x[...] = ENDLESS
    ticket = instance.issue(EngineBatch([x], 4))
    say("issued")
    instance.collect(ticket)
    say("collected")


def healthy(device: CudaDevice) -> None:
    """Nothing is wrong."""
    instance = GpuInstance(device, Work(device), spec_of(8), depth=2)
    say("works", good=answer(instance, 1, 4, 8))
    instance.close()


def main() -> None:
    """The command."""
    {"memory": memory, "lost": lost, "endless": endless, "healthy": healthy}[sys.argv[1]](cuda.open_device(0))


if __name__ == "__main__":
    main()
