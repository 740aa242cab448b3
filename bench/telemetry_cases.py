"""Cases of telemetry: what a scrape costs, and what serving costs with metrics exported over without."""

import contextlib
import socket
import threading
import urllib.request
from collections.abc import Iterator

from bench.case import SMALL, Bench, python
from bench.report import Sample

SCRAPE_EVERY = 1.0
"""Seconds; fifteen times as often as Prometheus does by default."""


def scrape(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """A scrape of 50 models after a million requests, and what the dispatcher notices of it."""
    bench.say("scrape: 50 models")
    figures = python(bench, "-m", "bench.micro_scrape")
    bench.step()
    yield Sample(case="scrape", column=column, load="50 models", repeat=repeat, metrics=figures)


def exported(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """`Predict` on the small model with metrics scraped every second, over without."""
    calls = bench.files(SMALL).calls
    rates = {}
    for on in (False, True):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{found.getsockname()[1]}"
        options = ("--set", f"telemetry.prometheus.address={address}") if on else ()
        bench.say(f"exported: metrics {'on' if on else 'off'}")
        with bench.server(column, SMALL, *options) as server, scraping(address if on else ""):
            rates[on] = bench.load(server.target, calls, in_flight=32)["rps"]
        bench.step()
    figures = {"off_rps": rates[False], "on_rps": rates[True], "ratio": rates[True] / rates[False]}
    yield Sample(case="exported", column=column, load="scraped every second", repeat=repeat, metrics=figures)


@contextlib.contextmanager
def scraping(address: str) -> Iterator[None]:
    """Scrapes an address every second; an empty one: nothing."""
    stopping = threading.Event()

    def main() -> None:
        while not stopping.wait(SCRAPE_EVERY):
            urllib.request.urlopen(f"http://{address}/metrics", timeout=5).read()

    thread = threading.Thread(target=main)
    if address:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        if address:
            thread.join()
