"""What a scrape costs: a server of many models whose figures stand for many requests, scraped again and again.

    python bench/micro_scrape.py [--models N] [--requests N] [--scrapes N]

One process. The requests are told to the statistics as the core tells them, because sending a million would measure the
front end. Meanwhile a thread asks the dispatcher for nothing, again and again: how long it waits is the delay. The last
line is JSON.
"""

import argparse
import json
import tempfile
import threading
import time
import urllib.request
from typing import Any

import structlog

from forebay_server.app.server import Server
from forebay_server.config.tree import (
    Config,
    EngineConfig,
    ExposureConfig,
    ModelConfig,
    PrometheusConfig,
    ServerConfig,
    TelemetryConfig,
)
from forebay_server.scheduling.events import BATCH, METHODS, SERVED

ROWS = 32


def told(models: int, requests: int) -> list[tuple[Any, ...]]:
    """What the core leaves for so many requests, spread over models, methods and durations."""
    events: list[tuple[Any, ...]] = []
    for number in range(requests // ROWS):
        key = (f"m{number % models}", 1)
        took = 1e-5 * 1.01 ** (number % 1000)
        events.append((BATCH, key, ROWS - number % 8, ROWS, ROWS, 1 + number % 5, took, took * 1.1))
        arrivals = [100.0 - took * place for place in range(ROWS)]
        events.append((SERVED, key, number % len(METHODS), 100.0, 100.0 + took, arrivals))
    return events


class Probe:
    """Asks the dispatcher for nothing, every half a millisecond, and notes how long that took."""

    def __init__(self, server: Server) -> None:
        self._call = server._dispatcher.call  # noqa: SLF001  # a bench looks inside
        self.waits: list[float] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main)
        self._thread.start()

    def _main(self) -> None:
        while not self._stopping.wait(0.0005):
            began = time.perf_counter()
            self._call(lambda: None)
            self.waits.append(time.perf_counter() - began)

    def stop(self) -> list[float]:
        self._stopping.set()
        self._thread.join()
        return sorted(self.waits)


def measure(models: int, requests: int, scrapes: int) -> dict[str, float]:
    """Milliseconds: of a scrape, of what one keeps the dispatcher at a time, and of the dispatcher's delay."""
    config = Config(
        server=ServerConfig(public=ExposureConfig(address="127.0.0.1:0"), cache_dir=tempfile.mkdtemp()),
        models=[
            ModelConfig(name=f"m{number}", path="synthetic:", engine=EngineConfig(name="synthetic", run="inline"))
            for number in range(models)
        ],
        telemetry=TelemetryConfig(prometheus=PrometheusConfig(address="127.0.0.1:0")),
    )
    server = Server(config)
    server.start()
    try:
        assert server.wait_ready(120), server.start_failure
        server._metrics.statistics.absorb(told(models, requests))  # noqa: SLF001  # see above
        url = f"http://{server.addresses['prometheus']}/metrics"
        urllib.request.urlopen(url, timeout=30).read()
        alone = Probe(server)
        time.sleep(2.0)  # As long as the scrapes below take, about: the same number of probes.
        quiet = alone.stop()
        beside = Probe(server)
        times = []
        nbytes = 0
        for _ in range(scrapes):
            began = time.perf_counter()
            with urllib.request.urlopen(url, timeout=30) as response:
                nbytes = len(response.read())
            times.append(time.perf_counter() - began)
            time.sleep(0.02)  # Between scrapes the dispatcher must come to rest, or they would be measured as one.
        busy = beside.stop()
        kept = server._metrics._longest  # noqa: SLF001  # see above
    finally:
        server.close()
    times.sort()
    return {
        "scrape_ms": times[len(times) // 2] * 1e3,
        "scrape_max_ms": times[-1] * 1e3,
        "kilobytes": nbytes / 1e3,
        "kept_max_ms": kept * 1e3,
        "quiet_p99_ms": quiet[int(len(quiet) * 0.99)] * 1e3,
        "quiet_max_ms": quiet[-1] * 1e3,
        "beside_p99_ms": busy[int(len(busy) * 0.99)] * 1e3,
        "beside_max_ms": busy[-1] * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--scrapes", type=int, default=50)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    print(json.dumps(measure(arguments.models, arguments.requests, arguments.scrapes)))


if __name__ == "__main__":
    main()
