"""What telemetry costs per request: nanoseconds to add up the events of requests, by the size of their batches.

    python bench/micro_statistics.py [--requests N]

One process, one thread. The events are those that the core leaves for a batch that went well: one of the batch, one of
its requests. Each cell is the median of several rounds.
"""

import argparse
import itertools
from statistics import median
from time import perf_counter
from typing import Any

from forebay_server.scheduling.events import BATCH, PREDICT, SERVED
from forebay_server.telemetry.feed import ABSORB_AT
from forebay_server.telemetry.statistics import Statistics

MODELS = 4


def events_of(batches: int, rows: int) -> list[tuple[Any, ...]]:
    """What the core leaves for so many batches of requests of one row."""
    events: list[tuple[Any, ...]] = []
    for number in range(batches):
        key = ("m", 1 + number % MODELS)
        began, ended = 10.0 + number, 10.0005 + number
        arrivals = [began - 1e-5 * place for place in range(rows)]
        events.append((BATCH, key, rows, rows, rows, 2, 4e-4, 5e-4))
        events.append((SERVED, key, PREDICT, began, ended, arrivals))
    return events


def measure(rows: int, requests: int) -> tuple[float, float]:
    """Nanoseconds per request, and milliseconds of the longest stop, with so many requests in a batch."""
    statistics = Statistics({})
    rounds = max(5, requests // (ABSORB_AT // 2 * rows))
    events = events_of(ABSORB_AT // 2, rows)
    spent = []
    for _ in itertools.repeat(None, rounds):
        began = perf_counter()
        statistics.absorb(events)
        spent.append(perf_counter() - began)
    return median(spent) / (ABSORB_AT // 2 * rows) * 1e9, median(spent) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=256_000, help="requests per cell")
    requests = parser.parse_args().requests
    print(f"{'rows':>6} {'ns/request':>11} {'ms at a time':>13}")
    for rows in (1, 4, 32, 128):
        nanoseconds, milliseconds = measure(rows, requests)
        print(f"{rows:>6} {nanoseconds:>11.0f} {milliseconds:>13.2f}")


if __name__ == "__main__":
    main()
