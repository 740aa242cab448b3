"""What a second batch in flight brings, and when it should be formed: a device with upload, compute and download.

A batch of n rows takes 0.2 + 0.05 n ms up, 2 + 0.2 n ms to compute and 0.1 + 0.01 n ms down; one of 32 rows computes in
8.4 ms and passes through in 10.6. Each step does one batch at a time. One caller's requests of one row come at random.
"""

import heapq
import random
from itertools import count

import pytest

from forebay_server.scheduling import slots
from forebay_server.scheduling.core import Core
from forebay_server.scheduling.latency import CostModel
from forebay_server.scheduling.outcomes import Succeeded
from forebay_server.scheduling.policy import ModelPolicy, ServerPolicy
from forebay_server.scheduling.request import Request

KEY = ("m", 1)
BUCKET = ((4,),)
STEPS = ((0.0002, 0.00005), (0.002, 0.0002), (0.0001, 0.00001))  # seconds: of a batch, of a row
CAPACITY = 32 / (STEPS[1][0] + 32 * STEPS[1][1])  # rows/s, if it always computes


def run(load, depth, seconds=8.0):
    """Answers per second and the median of the times to them, at so many times the capacity."""
    rng = random.Random(1)
    core = Core(ServerPolicy(), random=rng.random)
    costs = CostModel([(BUCKET, rows, sum(a + b * rows for a, b in STEPS)) for rows in (1, 2, 4, 8, 16, 32)])
    policy = ModelPolicy(max_batch_size=32, best_batch_size=32, depth=depth, max_queued_rows=10**6)
    (number,) = core.add_model(KEY, policy, costs, 0.0)
    lane = core.lane(KEY, BUCKET)
    serial = count()
    agenda, when = [], 0.0
    while (when := when + rng.expovariate(load * CAPACITY)) < seconds:
        heapq.heappush(agenda, (when, next(serial), None))
    free = [0.0] * len(STEPS)
    now, times = 0.0, []
    while agenda:
        now = min(agenda[0][0], max(core.next_wakeup(), now))
        while agenda and agenda[0][0] <= now:
            batch = heapq.heappop(agenda)[2]
            if batch is None:
                assert core.admit(Request(lane, 1, 10, now + 1e6, (), arrival=now), now) is None
                continue
            batch.finished = now
            times += [now - request.arrival for request, _, _ in core.finished(batch, Succeeded(None), now)]
        core.tick(now)
        while (batch := core.next_batch(number, now)) is not None:
            batch.collated = at = now
            for step, (base, row) in enumerate(STEPS):
                at = free[step] = max(at, free[step]) + base + row * batch.padded_rows
            heapq.heappush(agenda, (at, next(serial), batch))
        core.events.clear()
    return len(times) / now, sorted(times)[len(times) // 2]


def test_overlap_brings_what_the_copies_took():
    """At saturation one batch after the other reaches 8.4 / 10.6 of what the device computes, two in flight all."""
    assert run(1.2, 1)[0] == pytest.approx(CAPACITY * 8.4 / 10.64, rel=0.01)
    assert run(1.2, 2)[0] == pytest.approx(CAPACITY, rel=0.02)


@pytest.mark.parametrize("load", [0.1, 0.3, 0.6])
def test_forming_late_costs_no_latency(load, monkeypatch):
    """Below saturation the median is below that of one batch after the other; formed at once it would be above."""
    alone, late = run(load, 1)[1], run(load, 2)[1]
    monkeypatch.setattr(slots, "EARLY", 1.0)
    at_once = run(load, 2)[1]

    assert late < alone < at_once
