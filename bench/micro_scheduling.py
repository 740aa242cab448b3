"""What the scheduler costs per request: nanoseconds to admit, dispatch and finish, by what waits and by flows.

    python bench/micro_scheduling.py [--requests N]

One process, one thread, no engine: requests of one row, batches of 32. While so many requests wait, batches are taken
and as many requests admitted again. Each cell is the median of several rounds.
"""

import argparse
import gc
from statistics import median
from time import perf_counter

from forebay_server.scheduling.core import Core
from forebay_server.scheduling.latency import CostModel
from forebay_server.scheduling.outcomes import Succeeded
from forebay_server.scheduling.policy import ModelPolicy, ServerPolicy
from forebay_server.scheduling.queue import Lane
from forebay_server.scheduling.request import Request

ROWS = 32
BUCKET = ((64,),)
ROUND = 3200  # requests


def measure(waiting: int, flows: int, requests: int) -> tuple[float, float, float]:
    """Nanoseconds per request of (admit, dispatch, finish)."""
    core = Core(ServerPolicy())
    costs = CostModel([(BUCKET, rows, 1e-6 * (20 + rows)) for rows in (1, 2, 4, 8, 16, 32)])
    policy = ModelPolicy(max_batch_size=ROWS, best_batch_size=ROWS, max_queued_rows=1_000_000)
    (instance,) = core.add_model(("m", 1), policy, costs, 0.0)
    lane = core.lane(("m", 1), BUCKET)
    assert isinstance(lane, Lane)
    tenants = [f"tenant-{index}" for index in range(flows)]
    now = 0.0
    outcome = Succeeded(None)
    serial = 0

    def make(number: int) -> list[Request]:
        nonlocal serial
        made = []
        for _ in range(number):
            serial += 1
            made.append(
                Request(lane, 1, 256, now + 1e6 + serial * 1e-6, (), arrival=now, tenant=tenants[serial % flows])
            )
        return made

    admit, next_batch, finished = core.admit, core.next_batch, core.finished
    for request in make(max(waiting, flows)):
        assert admit(request, now) is None
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    for _ in range(max(5, requests // ROUND)):
        spent = [0.0, 0.0, 0.0]
        batches = 0
        size = min(ROUND, max(waiting, ROWS))
        arrivals = make(size)
        began = perf_counter()
        for request in arrivals:
            admit(request, now)
        spent[0] = perf_counter() - began
        for _ in range(size // ROWS):
            began = perf_counter()
            batch = next_batch(instance, now)
            spent[1] += perf_counter() - began
            assert batch is not None
            batch.collated, batch.finished = now, now + 52e-6
            began = perf_counter()
            finished(batch, outcome, now)
            spent[2] += perf_counter() - began
            batches += batch.rows
        for column, value, count in zip(times, spent, (size, batches, batches), strict=True):
            column.append(value / count * 1e9)
        core.events.clear()
    return median(times[0]), median(times[1]), median(times[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=64_000, help="requests per cell")
    requests = parser.parse_args().requests
    print("ns per request, batches of 32 rows")
    print(f"{'waiting':>8} {'flows':>6} {'admit':>7} {'dispatch':>9} {'finish':>7} {'all':>7}")
    for flows in (1, 1000):
        for waiting in (10, 1_000, 100_000):
            gc.collect()
            gc.freeze()  # As the server does: what waits is not walked through again and again.
            cells = measure(waiting, flows, requests)
            gc.unfreeze()
            line = [f"{max(waiting, flows):>8}", f"{flows:>6}", f"{cells[0]:>7.0f}", f"{cells[1]:>9.0f}"]
            print(*line, f"{cells[2]:>7.0f}", f"{sum(cells):>7.0f}")


if __name__ == "__main__":
    main()
