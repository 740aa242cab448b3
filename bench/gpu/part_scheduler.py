"""What the scheduler costs a batch: the same instance driven by a plain loop, then by the runner with its threads."""

import threading
import time
from typing import Any

import numpy as np

from bench.gpu.engine import Work, spec_of
from bench.gpu.outcome import Notes
from forebay_server.engines.base import EngineBatch
from forebay_server.engines.collate import Collator
from forebay_server.engines.gpu import cuda
from forebay_server.engines.gpu.device import Device
from forebay_server.engines.gpu.pipeline import GpuInstance
from forebay_server.scheduling.core import Core
from forebay_server.scheduling.latency import CostModel
from forebay_server.scheduling.policy import ModelPolicy, ServerPolicy
from forebay_server.scheduling.queue import Lane
from forebay_server.scheduling.request import Request
from forebay_server.scheduling.runner import Runner

WIDTH = 64
ROWS = 32
BATCHES = 4000
NANOSECONDS = 500_000  # of a batch
WAITING = 8 * ROWS  # requests that are kept waiting, so that every batch is full
MOST_OVERHEAD = 50.0  # microseconds

KEY = ("check", 1)
BUCKET = ((WIDTH,),)


class _Row(Request):
    """A request of one row that counts itself."""

    __slots__ = ("_counts",)

    def __init__(self, counts: list[int], *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._counts = counts

    def succeed(self, outputs: Any, start: int, batch: Any) -> None:  # noqa: ARG002  # the port's
        """Looks at its own row only, as the encoder would."""
        data, _ = outputs.data(0, start, 1)
        self._counts[0] += 1
        self._counts[1] += len(data) != 4 * WIDTH

    def fail(self, error: Any) -> None:  # noqa: ARG002  # the port's
        """None may."""
        self._counts[1] += 1


def run(notes: Notes) -> None:
    """The loop, then the runner."""
    device = cuda.open_device(0)
    loop, loop_cpu = _loop(device)
    runner, runner_cpu, wrong = _runner(device)
    notes.check("every request was answered", not wrong)
    notes.figure(f"a batch of {ROWS} rows in a plain loop", loop * 1e6, "us")
    notes.figure("the same through the runner, from requests to answers", runner * 1e6, "us")
    notes.figure("what the scheduler adds to a batch", (runner - loop) * 1e6, "us", most=MOST_OVERHEAD)
    notes.figure("CPU time of a batch in the loop", loop_cpu * 1e6, "us")
    notes.figure("CPU time of a batch through the runner", runner_cpu * 1e6, "us")
    device.close()


def _instance(device: Device) -> GpuInstance:
    instance = GpuInstance(device, Work(device, nanoseconds=NANOSECONDS), spec_of(WIDTH), depth=2)
    (x,) = instance.stage([(ROWS, WIDTH)])
    x[...] = 1
    instance.infer(EngineBatch([x], ROWS))
    return instance


def _loop(device: Device) -> tuple[float, float]:
    """Seconds and CPU seconds of a batch."""
    instance = _instance(device)
    flying: list[object] = []
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(BATCHES):
        if len(flying) == instance.depth:
            instance.collect(flying.pop(0))
        (x,) = instance.stage([(ROWS, WIDTH)])
        x[...] = 1
        flying.append(instance.issue(EngineBatch([x], ROWS)))
    for ticket in flying:
        instance.collect(ticket)
    times = (time.perf_counter() - began) / BATCHES, (time.process_time() - cpu) / BATCHES
    instance.close()
    return times


def _runner(device: Device) -> tuple[float, float, int]:
    """Seconds and CPU seconds of a batch, and requests that went wrong."""
    instance = _instance(device)
    awake = threading.Event()
    core = Core(ServerPolicy())
    runner = Runner(core, wake=awake.set)
    now = time.monotonic()
    policy = ModelPolicy(max_batch_size=ROWS, best_batch_size=ROWS, max_queued_rows=1_000_000, device=instance.device)
    costs = CostModel([(BUCKET, ROWS, 6e-4)])
    runner.add(KEY, policy, costs, [instance], Collator(spec_of(WIDTH)), inline=False, now=now)
    lane = core.lane(KEY, BUCKET)
    if not isinstance(lane, Lane):
        raise TypeError(f"no lane: {lane}")
    counts = [0, 0]
    data = np.ones((1, WIDTH), np.float32).tobytes()
    admitted = 0
    began, cpu = time.perf_counter(), time.process_time()
    while sum(counts) < BATCHES * ROWS:
        now = time.monotonic()
        while admitted < BATCHES * ROWS and admitted - sum(counts) < WAITING:
            admitted += 1
            if runner.admit(_Row(counts, lane, 1, len(data), now + 60, [data], arrival=now), now) is not None:
                counts[1] += 1
        awake.clear()
        wait = runner.turn(now)
        if wait > 0 and (admitted == BATCHES * ROWS or admitted - sum(counts) >= WAITING):
            awake.wait(min(wait, 0.1))
    times = (time.perf_counter() - began) / BATCHES, (time.process_time() - cpu) / BATCHES
    runner.close()
    return *times, counts[1]
