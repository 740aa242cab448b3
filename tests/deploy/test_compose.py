"""The Compose files: taken by Docker Compose and by Swarm, complete, and locked down."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from forebay_server.config.load import load
from tests.deploy.conftest import DEPLOYED, REPOSITORY

COMPOSE = REPOSITORY / "deploy" / "compose"
PROFILES = ["development", "production"]
WANTED = {"POSTGRES_PASSWORD": "p", "GRAFANA_PASSWORD": "g", "TRACES_ENDPOINT": "http://traces:4318"}
SERVICES = {"forebay", "envoy", "postgres", "prometheus", "grafana", "collector"}

Check = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def check() -> Check:
    """Reads files as Docker Compose does, or with `-stack` as Swarm does; skips without the program."""
    program = REPOSITORY / "build" / "tools" / "composecheck"
    if not program.exists():
        pytest.skip("no composecheck here: make deploy-tools")

    def run(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={"PATH": os.environ["PATH"], **(WANTED if environment is None else environment)},
        )

    return run


def files(*names: str) -> list[object]:
    """compose.yaml and others beside it."""
    return [COMPOSE / f"{name}.yaml" for name in ("compose", *names)]


def project(check: Check, *names: str) -> dict:
    """What Docker Compose makes of files."""
    done = check(*files(*names))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("profile", PROFILES)
def test_compose_takes_each_profile(check, profile):
    """All services are there, and every file that is mounted is."""
    found = project(check, profile)
    assert set(found["services"]) == SERVICES
    for config in found["configs"].values():
        assert Path(config["file"]).is_file(), config
    for service in found["services"].values():
        assert {each["source"] for each in service.get("configs", ())} <= set(found["configs"])
        assert {each["source"] for each in service.get("volumes", ()) if each["type"] == "volume"} <= set(
            found["volumes"]
        )


def test_compose_takes_a_gpu(check):
    """One device, and the image with CUDA."""
    server = project(check, "development", "gpu")["services"]["forebay"]
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["0"]
    assert server["image"].endswith("-cuda")


def test_swarm_takes_the_production_profile(check):
    """`docker stack deploy` reads it, and what it starts is the same."""
    done = check("-stack", *files("production"))
    assert done.returncode == 0, done.stderr
    stack = json.loads(done.stdout)["services"]
    assert set(stack) == SERVICES
    assert stack["forebay"]["deploy"]["replicas"] == 3
    assert stack["forebay"]["deploy"]["endpoint_mode"] == "dnsrr"


def test_what_swarm_would_not_take_is_found(check, tmp_path):
    """Positive control, of both: what only Compose knows, and what nobody knows."""
    file = tmp_path / "compose.yaml"
    file.write_text("services: {forebay: {image: forebay, profiles: [development]}}")
    assert check(file).returncode == 0
    assert "'profiles' is not allowed" in check("-stack", file).stderr
    file.write_text("services: {forebay: {image: forebay, nonsense: 1}}")
    assert "nonsense" in check(file).stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_passwords_must_be_given(check, profile):
    """Nobody's production runs with a password from a public repository."""
    for name in ("POSTGRES_PASSWORD", "GRAFANA_PASSWORD"):
        done = check(*files(profile), environment={key: value for key, value in WANTED.items() if key != name})
        assert done.returncode == 1
        assert name in done.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_containers_are_locked_down(check, profile):
    """All but the database, which gives up root by itself, have a read-only root and no capabilities."""
    for name, service in project(check, profile)["services"].items():
        if name != "postgres":
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name


def test_only_what_callers_need_can_be_reached(check):
    """In development from this machine only; in production Envoy and Grafana."""
    development = project(check, "development")["services"]
    assert {port["host_ip"] for service in development.values() for port in service.get("ports", ())} == {"127.0.0.1"}
    production = project(check, "production")["services"]
    assert {name for name, service in production.items() if service.get("ports")} == {"envoy", "grafana"}


def test_the_server_s_file_is_valid(check):
    """`forebay serve` takes it, and has time to end."""
    service = project(check, "production")["services"]["forebay"]
    config = load(file=COMPOSE / "forebay.toml", environment={}).config
    grace = re.fullmatch(r"(\d+)s", service["stop_grace_period"])
    assert grace is not None
    assert int(grace[1]) >= config.server.drain_delay_s + config.server.drain_grace_s + 5 + 5


def test_names_and_ports_fit_together(check):
    """Envoy, Prometheus, Grafana and the server find each other by the names of the services."""
    config = yaml.safe_load((DEPLOYED / "containers.yml").read_text())["scrape_configs"][0]["dns_sd_configs"][0]
    server = load(file=COMPOSE / "forebay.toml", environment={}).config
    assert config["names"] == ["forebay"]
    assert server.telemetry.prometheus.address == f"0.0.0.0:{config['port']}"
    assert "address: forebay, port_value: 8500" in (REPOSITORY / "deploy" / "envoy" / "balancer.yaml").read_text()
    assert server.server.public.address == "0.0.0.0:8500"
    collector = yaml.safe_load((REPOSITORY / "deploy" / "collector" / "collector.yaml").read_text())
    assert collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"] == "0.0.0.0:4317"
    assert server.telemetry.tracing.endpoint == "http://collector:4317"
    source = yaml.safe_load((REPOSITORY / "deploy" / "grafana" / "provisioning" / "datasources.yaml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"


def test_all_dashboards_are_there(check):
    """A dashboard that is added is mounted."""
    provider = yaml.safe_load((REPOSITORY / "deploy" / "grafana" / "provisioning" / "dashboards.yaml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    mounted = {each["target"] for each in project(check, "production")["services"]["grafana"]["configs"]}
    made = {f"{folder}/{path.name}" for path in (REPOSITORY / "deploy" / "grafana").glob("*.json")}
    assert {target for target in mounted if target.endswith(".json")} == made


@pytest.mark.parametrize("name", ["containers.yml", "kubernetes.yml"])
def test_prometheus_takes_its_files(promtool, tmp_path, name):
    """promtool has nothing to say. (Debian's can't look for pods; the rest it can read.)"""
    text = (DEPLOYED / name).read_text()
    text, pods = re.subn(r"    kubernetes_sd_configs:\n(?: {6}.*\n)+", "", text)
    assert pods == (name == "kubernetes.yml")
    (tmp_path / name).write_text(text)
    done = promtool("check", "config", "--syntax-only", str(tmp_path / name))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_collector_s_pipelines_name_what_there_is():
    """Each part of a pipeline is defined; forward.yaml changes where things go and nothing else."""
    first, second = (
        yaml.safe_load((REPOSITORY / "deploy" / "collector" / f"{name}.yaml").read_text())
        for name in ("collector", "forward")
    )
    for pipelines in (first["service"]["pipelines"], second["service"]["pipelines"]):
        for pipeline in pipelines.values():
            for kind, names in pipeline.items():
                assert set(names) <= set(first.get(kind, ())) | set(second.get(kind, ()))
    assert {name: each["receivers"] for name, each in first["service"]["pipelines"].items()} == {
        name: each["receivers"] for name, each in second["service"]["pipelines"].items()
    }
