"""Starts a server of any column pinned to a core, waits until it answers, looks at it, and stops it.

The commands are in `COLUMNS` and nowhere else. `cases` calls it.
"""

import contextlib
import dataclasses
import json
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import grpc
import psutil

from bench.errors import BenchError
from bench.models import read_calls
from bench.starting import LOOK_EVERY, free_ports, listens
from forebay.v1 import model_pb2, model_service_pb2, model_service_pb2_grpc

PREDICT = "/forebay.v1.InferenceService/Predict"
ROOT = Path(__file__).parents[1]
READY_WITHIN = 60.0  # seconds
STOPPED_WITHIN = 15.0  # seconds

Command = Callable[[Path, int], list[str]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A server that is measured. `own` says whether it is ours, which can be asked for its statistics."""

    key: str
    title: str
    command: Command
    own: bool


def forebay_command(wire: str, *, settings: tuple[str, ...] = ()) -> Command:
    """How our own server is started."""

    def command(model: Path, port: int) -> list[str]:
        forebay = str(Path(sys.executable).with_name("forebay"))
        # One core: one engine thread. Logs are for people; here they would cost the one core.
        chosen = ("log.level=warning", *settings)
        sets = [argument for setting in chosen for argument in ("--set", setting)]
        return [forebay, "serve", str(model), "--listen", f"127.0.0.1:{port}", "--wire", wire, *sets]

    return command


def _peer(module: str) -> Command:
    return lambda model, port: [sys.executable, "-m", f"bench.peers.{module}", str(model), "--port", str(port)]


COLUMNS = {
    column.key: column
    for column in (
        Column(key="forebay", title="Forebay", command=forebay_command("native"), own=True),
        Column(key="forebay_aio", title="Forebay on grpc.aio", command=forebay_command("grpc.aio"), own=True),
        Column(key="grpc_aio", title="grpc.aio", command=_peer("grpc_aio"), own=False),
        Column(key="grpc_threads", title="grpc threads", command=_peer("grpc_threads"), own=False),
    )
}


class Server:
    """A running server; a context manager. Used by one thread."""

    def __init__(self, column: Column, model: Path, calls: Path, cores: str, *, options: tuple[str, ...] = ()) -> None:
        self.column = column
        (self.port,) = free_ports(1)
        self.ready_s = 0.0
        self.log = ""
        """What it has written to stderr; once it has ended."""
        self._model = model
        self._request = read_calls(calls)[0][0]
        self._argv = ["taskset", "-c", cores, *column.command(model, self.port), *options]
        self._process: subprocess.Popen[str] | None = None
        self._stderr: IO[str] | None = None
        self._channel: grpc.Channel | None = None

    @property
    def target(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process; `taskset` replaces itself by the server."""
        if self._process is None:
            raise BenchError("the server is not running")
        return self._process.pid

    def __enter__(self) -> Self:
        self._stderr = tempfile.TemporaryFile("w+")
        began = time.monotonic()
        self._process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, stderr=self._stderr, text=True, cwd=ROOT)
        try:
            self._wait(began)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOPPED_WITHIN)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
        if self._stderr is not None:
            self._stderr.seek(0)
            self.log = self._stderr.read()
            self._stderr.close()
            self._stderr = None

    def event(self, name: str) -> dict[str, Any]:
        """The log line of a name that one of ours has written, as JSON; once it has ended.

        Raises:
            BenchError: There is none.
        """
        for line in self.log.splitlines():
            if line.startswith("{") and json.loads(line).get("event") == name:
                found: dict[str, Any] = json.loads(line)
                return found
        raise BenchError(f"{self.column.title} has logged no `{name}`:\n{self.log[-2000:]}")

    def _wait(self, began: float) -> None:
        """Polls the port, then the model, so that `ready_s` is the time to the first right answer."""
        while not listens(self.port):
            self._still_starting(began)
            time.sleep(LOOK_EVERY)  # looking all the time would take the core from the start that is timed
        self._channel = grpc.insecure_channel(self.target)
        predict: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(PREDICT)
        while True:
            try:
                predict(self._request, timeout=5)
            except grpc.RpcError as error:
                self._still_starting(began, f": {error.details()}")
                time.sleep(LOOK_EVERY)  # as above: asking would take the core that it starts on
            else:
                break
        self.ready_s = time.monotonic() - began

    def _still_starting(self, began: float, why: str = "") -> None:
        if self._process is not None and self._process.poll() is not None:
            raise BenchError(f"{self.column.title} ended at its start:\n{self._last_words()}")
        if time.monotonic() - began > READY_WITHIN:
            raise BenchError(f"{self.column.title} did not answer within {READY_WITHIN:g} s{why}\n{self._last_words()}")

    def _last_words(self) -> str:
        if self._stderr is None:
            return self.log[-2000:]
        self._stderr.seek(0)
        return self._stderr.read()[-2000:]

    def rss(self) -> int:
        """Bytes of memory that it holds."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def cpu_seconds(self) -> float:
        """CPU time that it has used."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def thread_cpu_seconds(self) -> dict[str, float]:
        """CPU time by thread: `NAME ID`, where the id tells threads of one name apart."""
        used = {}
        for thread in psutil.Process(self.pid).threads():
            with contextlib.suppress(OSError):  # it has ended
                name = Path(f"/proc/{self.pid}/task/{thread.id}/comm").read_text().strip()
                used[f"{name} {thread.id - self.pid}"] = float(thread.user_time + thread.system_time)
        return used

    def successes(self) -> int:
        """Requests that one of ours has answered since its start, jobs included."""
        return sum(entry.requests for entry in self._statistics().outcomes if entry.code == "OK")

    def longest_batch(self) -> float:
        """Seconds that the engine of one of ours takes for the largest batch, by its cost model."""
        return max(cost.predicted_nanos for cost in self._statistics().costs) / 1e9

    def batch_sizes(self) -> Counter[int]:
        """How many batches of each size have run since the start."""
        if self.column.own:
            return self._own_batch_sizes()
        if self._process is None or self._process.stdout is None:
            raise BenchError("the server is not running")
        self._process.send_signal(signal.SIGUSR1)
        if not select.select([self._process.stdout], [], [], 5)[0]:
            raise BenchError(f"{self.column.title} does not tell its batch sizes")
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return Counter({int(rows): int(count) for rows, count in told["batch_sizes"].items()})

    def _own_batch_sizes(self) -> Counter[int]:
        return Counter({entry.rows: entry.batches for entry in self._statistics().batch_sizes})

    def _statistics(self) -> model_pb2.ModelStatistics:
        if self._channel is None:
            raise BenchError("the server is not running")
        stub = model_service_pb2_grpc.ModelServiceStub(self._channel)
        try:
            answer = stub.GetStatistics(model_service_pb2.GetStatisticsRequest(model=self._model.stem), timeout=5)
        except grpc.RpcError as error:
            raise BenchError(f"{self.column.title} does not tell its statistics: {error}") from error
        return answer.statistics[0]
