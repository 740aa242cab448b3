"""A whole server, in this process or its own, on a real socket, over each of the two front ends; and callers."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from forebay_server.app.server import Server
from forebay_server.config.tree import Config, ExposureConfig, LimitsConfig, ModelConfig, ServerConfig
from tests.serving import FRONT_ENDS, Caller, Process
from tests.waiting import eventually


@pytest.fixture(params=FRONT_ENDS)
def front_end(request: pytest.FixtureRequest) -> str:
    """The name of the front end under test."""
    return request.param


@pytest.fixture
def serve(front_end: str, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers on any free port, waits until they are ready, and closes them at the end."""
    servers: list[Server] = []
    threads = threading.active_count()

    def start(
        *models: ModelConfig,
        limits: LimitsConfig | None = None,
        ready: bool = True,
        server: dict[str, object] | None = None,
        **sections: object,
    ) -> Server:
        config = Config(
            server=ServerConfig(
                **{
                    "wire": front_end,
                    "public": ExposureConfig(address="127.0.0.1:0"),
                    "cache_dir": str(tmp_path / "cache"),
                    "watchdog_s": 60.0,
                    "drain_grace_s": 10.0,
                    **(server or {}),
                }
            ),
            limits=limits or LimitsConfig(),
            models=list(models),
            **sections,
        )
        started = Server(config)
        servers.append(started)
        started.start()
        if ready:
            assert started.wait_ready(30), started.start_failure
        return started

    yield start
    for server in servers:
        server.close()
    eventually(lambda: threading.active_count() <= threads + 2, "no threads are left behind")


@pytest.fixture
def call() -> Iterator[Callable[..., Caller]]:
    """Callers of servers, closed at the end."""
    callers: list[Caller] = []

    def connect(server: "Server | Process", exposure: str = "public", credentials=None) -> Caller:
        caller = Caller(server.addresses[exposure], credentials)
        callers.append(caller)
        return caller

    yield connect
    for caller in callers:
        caller.channel.close()


@pytest.fixture
def together() -> Iterator[Callable[..., list[object]]]:
    """Calls a function with each of some arguments, all at a time in threads, and gives the results in order."""
    pools: list[ThreadPoolExecutor] = []

    def run(function: Callable[..., object], arguments: Sequence[object]) -> list[object]:
        pool = ThreadPoolExecutor(len(arguments))
        pools.append(pool)
        return list(pool.map(function, arguments))

    yield run
    for pool in pools:
        pool.shutdown()


@pytest.fixture
def process(front_end: str, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts `forebay serve` on any free port, with further arguments; it is killed at the end of the test."""
    processes: list[Process] = []

    def start(*arguments: str, environment: dict[str, str] | None = None, listen: bool = True) -> Process:
        place = ["--listen", "127.0.0.1:0"] if listen else []
        begun = Process(["--wire", front_end, *place, *arguments], tmp_path, environment or {})
        processes.append(begun)
        return begun

    yield start
    for begun in processes:
        begun.kill()
