"""Measures what a server costs before and between calls: its start, and its idling. Writes into docs/deployment.md.

    python -m bench.standing [--seconds 30] [--starts 5] [--write]

`make bench-standing` runs it. Starts are from `fork`, with a warm file cache, of a server with one small ONNX model:
with the costs that an earlier start has measured, and without. Idling is measured with the probes and scrapes of
deploy/kubernetes/ and without.
"""

import argparse
import contextlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import grpc
import psutil

from bench.machine import describe, sentence
from bench.models import make, read_calls
from bench.server import PREDICT
from bench.starting import free_ports, listens, until
from forebay_client import Client, ForebayError

PAGE: Final = Path(__file__).parents[1] / "docs" / "deployment.md"
WITHIN: Final = 60.0  # seconds that a start may take
PROBES_S: Final = (2.0, 2.0, 10.0)  # readiness of the server and of Envoy, liveness
SCRAPE_S: Final = 15.0
LATE: Final = "the server does not start"


class Start(NamedTuple):
    """Seconds from the beginning of the process."""

    listens: float
    serves: float
    answers: float


class Idle(NamedTuple):
    """What a process uses that nobody calls."""

    cpu_ms: float
    """CPU time per second."""
    wake_ups: float
    """Times a second that a thread which waited went on."""
    memory_mib: float
    """Resident."""
    threads: int


class Ports(NamedTuple):
    """Where a server listens."""

    public: int
    probe: int
    metrics: int


@contextlib.contextmanager
def served(model: Path, cache: Path) -> Iterator[tuple[subprocess.Popen[bytes], Ports, float]]:
    """A server that has just been begun: the process, its ports, and when that was."""
    ports = Ports(*free_ports(3))
    command = [
        *(str(Path(sys.executable).with_name("forebay")), "serve", str(model), "--log-level", "warning"),
        *("--listen", f"127.0.0.1:{ports.public}", "--probe", f"127.0.0.1:{ports.probe}"),
        *("--set", f"server.cache_dir={cache}", "--set", f"telemetry.prometheus.address=127.0.0.1:{ports.metrics}"),
    ]
    began = time.monotonic()
    process = subprocess.Popen(command)
    try:
        yield process, ports, began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def start(model: Path, request: bytes, cache: Path) -> Start:
    """One start, to its first answer."""
    with served(model, cache) as (process, ports, began):
        until(lambda: listens(ports.probe), LATE, within=WITHIN, process=process)
        listening = time.monotonic() - began
        with Client(f"127.0.0.1:{ports.probe}") as probe:

            def healthy() -> bool:
                with contextlib.suppress(ForebayError):
                    return probe.health(deadline=1.0) == "SERVING"
                return False

            until(healthy, LATE, within=WITHIN, process=process)
            serving = time.monotonic() - began
        with grpc.insecure_channel(f"127.0.0.1:{ports.public}") as channel:
            predict: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PREDICT)
            predict(request, timeout=10)
        return Start(listening, serving, time.monotonic() - began)


def watch(ports: Ports, over: threading.Event) -> list[threading.Thread]:
    """Probes and scrapes as a cluster does, until it is over."""

    def probe(every: float) -> None:
        while not over.wait(every):
            with contextlib.suppress(ForebayError), Client(f"127.0.0.1:{ports.probe}") as client:
                client.health(deadline=2.0)

    def scrape() -> None:
        while not over.wait(SCRAPE_S):
            with urllib.request.urlopen(f"http://127.0.0.1:{ports.metrics}/metrics", timeout=5) as response:
                response.read()

    threads = [threading.Thread(target=probe, args=(every,)) for every in PROBES_S]
    threads.append(threading.Thread(target=scrape))
    for thread in threads:
        thread.start()
    return threads


def waits(pid: int) -> int:
    """How often the threads of a process have begun to wait. (psutil's figure is the main thread's alone.)"""
    found = (status.read_text() for status in Path(f"/proc/{pid}/task").glob("*/status"))
    return sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split(maxsplit=1)[0]) for text in found)


def idle(model: Path, cache: Path, seconds: float, *, watched: bool) -> Idle:
    """What a server uses while nobody calls."""
    with served(model, cache) as (process, ports, _):
        until(lambda: listens(ports.probe), LATE, within=WITHIN, process=process)
        over = threading.Event()
        threads = watch(ports, over) if watched else []
        time.sleep(5)  # what a start leaves behind, such as warm-up
        seen = psutil.Process(process.pid)
        before, woken, since = seen.cpu_times(), waits(process.pid), time.monotonic()
        time.sleep(seconds)  # What it uses meanwhile is the figure.
        after, woken, elapsed = seen.cpu_times(), waits(process.pid) - woken, time.monotonic() - since
        used = (after.user - before.user) + (after.system - before.system)  # in this order none is exactly none
        memory = seen.memory_info().rss / 2**20
        found = Idle(1e3 * used / elapsed, woken / elapsed, memory, seen.num_threads())
        over.set()
        for thread in threads:
            thread.join()
        return found


def measure(starts: int, seconds: float) -> str:
    """Everything, as a paragraph and two tables."""
    machine = describe()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = make("small", folder)
        request = read_calls(files.calls)[0][0]
        kept = folder / "kept"
        start(files.model, request, kept)  # fills the file cache, and measures the costs
        cases = {
            "costs known from before": [start(files.model, request, kept) for _ in range(starts)],
            "costs measured": [start(files.model, request, folder / f"new-{n}") for n in range(starts)],
        }
        quiet = idle(files.model, kept, seconds, watched=False)
        watched = idle(files.model, kept, seconds, watched=True)
    lines = [
        f"On {sentence(machine)}. Medians of {starts} starts, warm file cache; idling over {seconds:g} s.",
        "",
        "| start of a server with a small ONNX model | listens | says SERVING | first answer |",
        "|---|---:|---:|---:|",
    ]
    for name, found in cases.items():
        middle = [statistics.median(values) for values in zip(*found, strict=True)]
        lines.append(f"| {name} | {' | '.join(f'{value:.2f} s' for value in middle)} |")
    lines += ["", "| idle | CPU | wake-ups | memory | threads |", "|---|---:|---:|---:|---:|"]
    for name, used in (("nobody calls", quiet), ("probed and scraped as in `deploy/kubernetes/`", watched)):
        figures = (
            f"{used.cpu_ms / 10:.2f} % of a core | {used.wake_ups:.0f}/s | {used.memory_mib:.0f} MiB | {used.threads}"
        )
        lines.append(f"| {name} | {figures} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints, and if asked writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of idling")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="into docs/deployment.md")
    options = parser.parse_args()
    found = measure(options.starts, options.seconds)
    print(found)
    if options.write:
        marked = re.compile(r"(?<=<!-- standing:begin -->\n).*?(?=<!-- standing:end -->)", re.DOTALL)
        PAGE.write_text(marked.sub(lambda _: found, PAGE.read_text()))


if __name__ == "__main__":
    main()
