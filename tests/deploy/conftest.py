"""A real Prometheus that scrapes a real server under all kinds of traffic; and manifests as Kustomize renders them."""

import base64
import contextlib
import functools
import json
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from forebay_client import Client, ForebayError, Webhook
from forebay_server.app.server import Server
from forebay_server.config.tree import (
    BatchingConfig,
    Config,
    EngineConfig,
    ExposureConfig,
    JobsConfig,
    MetricsConfig,
    ModelConfig,
    PrometheusConfig,
    ServerConfig,
    TelemetryConfig,
    TenantConfig,
    TracingConfig,
    WebhooksConfig,
)
from tests.serving import Process
from tests.waiting import free_port

REPOSITORY = Path(__file__).parents[2]
TOOLS = REPOSITORY / "build" / "prometheus" / "bin"
DEPLOYED = REPOSITORY / "deploy" / "prometheus"

KUBERNETES = REPOSITORY / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())

ROW = {"x": np.ones((1, 4), np.float32)}


class Manifests:
    """What Kustomize has made of a folder."""

    def __init__(self, text: str) -> None:
        self.objects: list[dict] = list(yaml.load_all(text, Loader=yaml.CSafeLoader))

    def of(self, kind: str) -> dict[str, dict]:
        """Objects of a kind, by name."""
        return {each["metadata"]["name"]: each for each in self.objects if each["kind"] == kind}

    @property
    def config_maps(self) -> dict[str, dict]:
        """ConfigMaps by name, what is binary in them as bytes."""
        found = self.of("ConfigMap")
        for config_map in found.values():
            binaries = config_map.get("binaryData", {})
            config_map["binaryData"] = {
                key: base64.b64decode(value) if isinstance(value, str) else value for key, value in binaries.items()
            }
        return found


@pytest.fixture(scope="session")
def render() -> Callable[[str], Manifests]:
    """Renders an overlay; skips if there is no kustomize (`make deploy-tools`, which needs Go)."""
    program = REPOSITORY / "build" / "tools" / "kustomize"
    if not program.exists():
        pytest.skip("no kustomize here: make deploy-tools")

    @functools.cache
    def text_of(overlay: str) -> str:
        command = [program, "build", KUBERNETES / "overlays" / overlay]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return lambda overlay: Manifests(text_of(overlay))


@pytest.fixture(scope="session")
def promtool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs promtool; skips if there is none (`make prometheus`)."""
    if not (TOOLS / "promtool").exists():
        pytest.skip("no Prometheus here: make prometheus")

    def run(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [TOOLS / "promtool", *arguments], input=text, capture_output=True, text=True, check=False, timeout=60
        )

    return run


def model(name: str, **options: object) -> ModelConfig:
    """A synthetic model that pads and takes a millisecond."""
    return ModelConfig(
        name=name,
        path="synthetic:",
        batching=BatchingConfig(max_batch_size=8, max_queued_rows=16),
        engine=EngineConfig(name="synthetic", run="worker", options={"base_ms": 2.0, **options}),
    )


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with everything that has metrics."""
    started = Server(
        Config(
            server=ServerConfig(
                public=ExposureConfig(address="127.0.0.1:0"), cache_dir=str(tmp_path_factory.mktemp("cache"))
            ),
            models=[model("good"), model("bad", failure_rate=0.5)],
            tenants={"alice": TenantConfig()},
            jobs=JobsConfig(
                store="memory:",
                webhooks=WebhooksConfig(
                    allow=["http://127.0.0.1:9"], allow_private=True, secrets={"key": "env:HOOK"}, max_tries=1
                ),
            ),
            telemetry=TelemetryConfig(
                prometheus=PrometheusConfig(address="127.0.0.1:0"),
                metrics=MetricsConfig(endpoint="http://127.0.0.1:9", protocol="http/protobuf", interval_s=0.5),
                tracing=TracingConfig(endpoint="http://127.0.0.1:9", protocol="http/protobuf", ratio=1.0),
            ),
        )
    )
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HOOK", "a-secret-of-enough-letters-for-all")
        environment.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        started.start()
        assert started.wait_ready(30), started.start_failure
        yield started
        started.close()


def traffic(address: str, stopping: threading.Event) -> None:
    """Something of all that can happen."""
    with Client(address) as client:
        actions: list[Callable[[], object]] = [
            lambda: client.predict("good", ROW),
            lambda: client.predict("bad", ROW),
            lambda: client.predict("missing", ROW),
            lambda: client.predict("good", ROW, deadline=0.0001),
            lambda: client.predict("good", {"x": np.ones((64, 4), np.float32)}),
            lambda: list(client.stream("good", [ROW] * 4)),
            lambda: client.submit("good", ROW, webhook=Webhook(url="http://127.0.0.1:9/hook", secret="key")),
            lambda: client.submit("bad", ROW),
            client.models,
        ]
        while not stopping.wait(0.05):
            for action in actions:
                with contextlib.suppress(ForebayError):
                    action()


class Prometheus:
    """A running one."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str, **parameters: str) -> dict:
        """Asks its API."""
        url = f"http://{self.address}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def query(self, expression: str) -> list[dict]:
        """The series of an expression now, NaN left out."""
        answer = self.get("/api/v1/query", query=expression)
        assert answer["status"] == "success", (expression, answer)
        return [series for series in answer["data"]["result"] if series["value"][1] != "NaN"]


@contextlib.contextmanager
def running_prometheus(
    folder: Path, settings: str, *features: str, until: Callable[[Prometheus], bool]
) -> Iterator[Prometheus]:
    """Runs one with settings and features, and waits until it has what is wanted."""
    (folder / "prometheus.yml").write_text(settings)
    address = f"127.0.0.1:{free_port()}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                TOOLS / "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
                f"--enable-feature={','.join(features)}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    found = Prometheus(address)
    end = time.monotonic() + 60
    try:
        while True:
            with contextlib.suppress(OSError, ValueError):
                if until(found):
                    break
            assert time.monotonic() < end, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)  # between looks: samples come each few seconds
        yield found
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def server_with_gpus(nvml: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A second server, on a machine with GPUs as far as it knows: where it is scraped."""
    folder = tmp_path_factory.mktemp("gpus")
    begun = Process(
        ["synthetic:", "--listen", "127.0.0.1:0", "--set", "telemetry.prometheus.address=127.0.0.1:0"], folder, nvml
    )
    try:
        yield str(begun.ready().await_event("listening")["prometheus"])
    finally:
        begun.kill()


@pytest.fixture(scope="session")
def prometheus(
    server: Server, server_with_gpus: str, promtool: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """A Prometheus that has scraped the servers for some seconds and goes on; its rules are those of deploy/."""
    folder = tmp_path_factory.mktemp("prometheus")
    settings = (DEPLOYED / "prometheus.yml").read_text().replace("15s", "500ms")
    settings = settings.replace('"127.0.0.1:9464"', f'"{server.addresses["prometheus"]}", "{server_with_gpus}"')
    settings = settings.replace("forebay.rules.yml", str(DEPLOYED / "forebay.rules.yml"))

    def enough(found: Prometheus) -> bool:
        # So that rates have enough to go by.
        counts = found.query("count_over_time(forebay_serving[1m])")
        given_up = found.query('forebay_webhooks_total{outcome="given_up"} > 0')
        return bool(given_up) and len(counts) == 2 and min(int(each["value"][1]) for each in counts) >= 12

    stopping = threading.Event()
    callers = [threading.Thread(target=traffic, args=(server.addresses["public"], stopping)) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        with running_prometheus(folder, settings, "exemplar-storage", until=enough) as found:
            yield found
    finally:
        stopping.set()
        for caller in callers:
            caller.join(10)
