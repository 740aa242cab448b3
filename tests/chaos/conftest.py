"""Servers that are killed, on stores that fail, and what an outside oracle makes of it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from forebay.v1 import inference_service_pb2_grpc
from tests.chaos.audited import answer
from tests.chaos.oracle import MODEL, Oracle, request_of, value_of
from tests.serving import NATIVE
from tests.waiting import eventually, free_port

MAX_ATTEMPTS = 5
CHAOS = Path(__file__).parent


class Victim:
    """`forebay serve` with jobs, which can be killed and started again on the same address and store."""

    def __init__(self, folder: Path, store: str, wire: str) -> None:
        self.folder = folder
        self.store = store
        self.wire = wire
        self.address = f"127.0.0.1:{free_port()}"  # it comes back there after each of its deaths
        self.audit = folder / "audit"
        self.audit.touch()
        self.skew = folder / "skew"
        self.fail = folder / "fail"
        self.log = folder / "log"
        self.popen: subprocess.Popen[bytes] | None = None
        self.deaths = 0

    def start(self, *arguments: str, failpoint: str = "", row_seconds: float = 0.0) -> "Victim":
        """Starts it; does not wait until it serves."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("FOREBAY_")}
        environment |= {
            "PYTHONPATH": str(CHAOS),
            "AUDIT_FILE": str(self.audit),
            "AUDIT_ROW_SECONDS": str(row_seconds),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "PYTHONFAULTHANDLER": "1",
        }
        if failpoint:
            environment["FOREBAY_FAILPOINT"] = failpoint
        settings = {
            "models.0.name": MODEL,
            "models.0.engine.name": "python",
            "jobs.claim_s": "2",
            "jobs.max_attempts": str(MAX_ATTEMPTS),
            "server.drain_grace_s": "10",
        }
        command = [sys.executable, str(CHAOS / "rigged.py"), str(self.folder), "serve", "audited:scramble"]
        command += ["--wire", self.wire, "--listen", self.address, "--jobs", self.store, "--log-format", "json"]
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [*command, *arguments], env=environment, stdout=log, stderr=log, cwd=self.folder
            )
        return self

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.popen is not None and self.popen.poll() is None

    def serving(self) -> bool:
        """Whether it answers a request; False while it comes up."""
        assert self.running, self.log.read_text()[-3000:]
        with grpc.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
            try:
                return value_of(stub.Predict(request_of(1, kind=0), timeout=5)) == answer(1)
            except grpc.RpcError:
                return False

    def await_serving(self) -> "Victim":
        """Waits until it answers."""
        eventually(self.serving, "the server serves", 30)
        return self

    def arm(self, place: str) -> None:
        """From now on, it dies at a fail point."""
        assert self.popen is not None
        self.fail.write_text(place)
        self.popen.send_signal(signal.SIGUSR1)
        eventually(lambda: not self.fail.exists() or not self.running, "the fail point is armed")

    def kill(self) -> None:
        """`kill -9`."""
        if self.running:
            assert self.popen is not None
            self.popen.kill()
        self.reap()

    def reap(self, patience: float = 30.0) -> int:
        """Waits for its end; its exit code. If there is none, the log gets what its threads do."""
        assert self.popen is not None
        try:
            code = self.popen.wait(patience)
        except subprocess.TimeoutExpired:
            self.popen.send_signal(signal.SIGABRT)
            self.popen.wait(patience)
            raise AssertionError(f"it has not ended: {self.log.read_text()[-5000:]}") from None
        self.deaths += code == -signal.SIGKILL
        return code


class UnaryTraffic:
    """`Predict` calls all the while, each of which must succeed."""

    def __init__(self, address: str, pace: float = 0.005) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._address = address
        self._pace = pace
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with grpc.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
            number = 0
            while not self._stopping.wait(self._pace):
                number += 1
                try:
                    if value_of(stub.Predict(request_of(number, kind=0), timeout=10)) != answer(number):
                        self.failures.append(f"wrong answer to {number}")
                    self.answered += 1
                except grpc.RpcError as error:
                    self.failures.append(f"{error.code().name}: {error.details()}")

    def stop(self) -> None:
        """Ends it, not before some calls were made, and asserts that nothing failed."""
        eventually(lambda: self.answered > 10 or self.failures, "calls are answered")
        self._stopping.set()
        self._thread.join(20)
        assert not self.failures, self.failures[:3]


STORES = ["sqlite", "postgresql"]


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The setting `jobs.store` for a new, empty store of each kind that is durable."""
    if request.param == "sqlite":
        return str(tmp_path / "jobs.db")
    url: str = request.getfixturevalue("database")
    return url


@pytest.fixture
def victims(tmp_path: Path) -> Iterator[Callable[..., Victim]]:
    """Makes servers to be killed; none survives the test."""
    made: list[Victim] = []

    def make(store: str, wire: str = "native" if NATIVE else "grpc.aio") -> Victim:
        folder = tmp_path / f"victim-{len(made)}"
        folder.mkdir()
        victim = Victim(folder, store, wire)
        made.append(victim)
        return victim

    yield make
    for victim in made:
        if victim.popen is not None:
            victim.kill()


@pytest.fixture
def oracles(tmp_path: Path) -> Iterator[Callable[..., Oracle]]:
    """Makes oracles, closed at the end."""
    made: list[Oracle] = []

    def make(address: str, **options: object) -> Oracle:
        folder = tmp_path / f"oracle-{len(made)}"
        folder.mkdir()
        made.append(Oracle(address, folder, **options))
        return made[-1]

    yield make
    for oracle in made:
        oracle.close()
