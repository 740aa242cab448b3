"""Takes the time of one request apart, with a server under load: `cases.parts` calls it.

Three views that check each other: the timings that the server reports in its answers, the CPU time that each of its
threads used per request, and, if `py-spy` is installed and may look, a sampled profile by module.
"""

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from bench.errors import BenchError
from bench.models import read_calls
from bench.server import PREDICT, Server
from forebay.v1 import inference_pb2

NANOS_FIELDS = ("queue", "collate", "compute", "encode")
PACKAGE = "forebay_server/"


def measure(
    server: Server, timed_calls: Path, command: list[str], core: int, seconds: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures (medians, microseconds) and details, while the load generator runs `command`; empty: without a load."""
    with _load(command, core) as load:
        time.sleep(0.3 if command else 0)  # until the load is under way
        threads, began = server.thread_cpu_seconds(), time.monotonic()
        figures, asked = _timings(server, timed_calls, seconds * 0.8)
        elapsed = time.monotonic() - began
        used = {
            name: cpu - threads.get(name, 0.0)
            for name, cpu in server.thread_cpu_seconds().items()
            if cpu > threads.get(name, 0.0)
        }
    detail: dict[str, Any] = {}
    rate = asked / elapsed + (load["rps"] if load else 0.0)
    detail["thread_us_per_request"] = {name: cpu / elapsed / rate * 1e6 for name, cpu in used.items()}
    figures["server_us"] = sum(detail["thread_us_per_request"].values())
    figures["busiest_thread_us"] = max(detail["thread_us_per_request"].values(), default=0.0)
    if command:
        detail["profile"] = _profile(server, command, core)
    return figures, detail


@contextlib.contextmanager
def _load(command: list[str], core: int) -> Iterator[dict[str, Any]]:
    """The generator in the background; its report is in the dictionary after the block."""
    report: dict[str, Any] = {}
    if not command:
        yield report
        return
    process = subprocess.Popen(["taskset", "-c", str(core), *command], stdout=subprocess.PIPE, text=True)
    try:
        yield report
    finally:
        output, _ = process.communicate()
    if process.returncode != 0:
        raise BenchError("the load generator failed while the parts of a request were measured")
    report.update(json.loads(output))


def _timings(server: Server, timed_calls: Path, seconds: float) -> tuple[dict[str, float], int]:
    """Medians over requests sent one after the other, and how many they were."""
    requests = [request for request, _ in read_calls(timed_calls)]
    seen: dict[str, list[float]] = {name: [] for name in ("total", *NANOS_FIELDS, "batch_rows")}
    with grpc.insecure_channel(server.target) as channel:
        predict: grpc.UnaryUnaryMultiCallable[bytes, inference_pb2.PredictResponse] = channel.unary_unary(
            PREDICT, response_deserializer=inference_pb2.PredictResponse.FromString
        )
        until, index = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            start = time.perf_counter()
            timings = predict(requests[index % len(requests)], timeout=10).timings
            seen["total"].append((time.perf_counter() - start) * 1e6)
            for name in NANOS_FIELDS:
                seen[name].append(getattr(timings, f"{name}_nanos") / 1e3)
            seen["batch_rows"].append(timings.batch_rows)
            index += 1
    figures = {name if name == "batch_rows" else f"{name}_us": statistics.median(f) for name, f in seen.items()}
    inside = sum(figures[f"{name}_us"] for name in NANOS_FIELDS)
    figures["outside_us"] = figures["total_us"] - inside
    return figures, index


def _profile(server: Server, command: list[str], core: int) -> dict[str, float]:
    """Shares of samples by module of ours, of all threads that were running; empty if nobody may look."""
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        return {}
    with tempfile.NamedTemporaryFile("r", suffix=".raw") as output, _load(command, core):
        watch = [spy, "record", "--pid", str(server.pid), "--duration", "1", "--rate", "400"]
        watch += ["--format", "raw", "--output", output.name, "--nonblocking", "--full-filenames"]
        finished = subprocess.run(watch, capture_output=True, text=True, check=False)
        return shares(output.read()) if finished.returncode == 0 else {}


def shares(raw: str) -> dict[str, float]:
    """Shares of samples by the innermost function of ours on each stack; the rest is `other`.

    `raw` has a line for each stack: frames `function (file:line)` from the outside, separated by `;`, and a count.
    """
    counts: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        counts[_owner(stack)] += int(count)
    total = counts.total()
    return {owner: count / total for owner, count in counts.most_common()}


def _owner(stack: str) -> str:
    for frame in reversed(stack.split(";")):
        function, _, place = frame.partition(" (")
        if PACKAGE in place:
            module = place.partition(PACKAGE)[2].partition(".py")[0].replace("/", ".")
            return f"{module}.{function}"
    return "other"
