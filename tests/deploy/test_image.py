"""The Dockerfile: clean to its linter, pinned, and its steps rehearsed where no container builder is."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from forebay_client import Client
from forebay_server.config.load import load
from tests.deploy.conftest import REPOSITORY
from tests.deploy.image import image_of, stages_of
from tests.serving import NATIVE
from tests.waiting import eventually

IMAGE = REPOSITORY / "deploy" / "image"
DOCKERFILE = IMAGE / "Dockerfile"
LOCKS = ["build", "cpu", "cuda", "test"]
BIN = Path(sys.executable).parent

_PIN = re.compile(r"^(?P<name>[a-z0-9._-]+)(?:\[[a-z0-9,._-]+\])?==(?P<version>\S+)", re.MULTILINE)


def hadolint(text: str) -> tuple[int, str]:
    """What the linter says of a Dockerfile."""
    done = subprocess.run(
        [BIN / "hadolint", "--no-color", "-"], input=text, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


def pins(lock: str) -> dict[str, str]:
    """Names and versions of a lock."""
    return {match["name"]: match["version"] for match in _PIN.finditer((IMAGE / f"{lock}.txt").read_text())}


def runs(program: str) -> bool:
    """Whether containers can be run with it here."""
    if shutil.which(program) is None:
        return False
    return subprocess.run([program, "info"], capture_output=True, check=False).returncode == 0


def test_hadolint_has_nothing_to_say():
    """And says something where there is something (the control)."""
    text = DOCKERFILE.read_text()
    assert hadolint(text) == (0, "")
    code, said = hadolint(text + "RUN cd /tmp && pip install requests\n")
    assert code != 0
    assert "DL3013" in said


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_has_hashes(lock):
    """`pip install --require-hashes` would refuse one without."""
    text = (IMAGE / f"{lock}.txt").read_text()
    entries = re.split(r"\n(?=\S)", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).strip())
    assert entries
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_are_of_what_was_tested(lock):
    """Packages that the development environment has as well have its versions."""
    constraints = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines())
    found = pins(lock)
    assert {name: constraints[name] for name in found if name in constraints} == {
        name: version for name, version in found.items() if name in constraints
    }


def test_locks_hold_what_pyproject_asks_for():
    """A dependency that is added is in the images after `make lock`."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^a-z0-9._-]", requirement)[0] for requirement in requirements}

    extras = project["optional-dependencies"]
    common = names([*project["dependencies"], *extras["otel"], *extras["postgres"], *extras["webhooks"]])
    assert common | names(extras["onnx"]) <= set(pins("cpu"))
    assert common | names(extras["onnx-gpu"]) | names(extras["cuda"]) <= set(pins("cuda"))
    assert not set(pins("cpu")) & {"pytest", "onnxruntime-gpu", "uv", "pip", "maturin"}


def test_every_install_is_by_hash_or_from_what_was_built():
    """No step of the Dockerfile takes what an index happens to offer."""
    commands = [
        command
        for stage in stages_of(DOCKERFILE).values()
        for instruction, arguments in stage
        if instruction == "RUN"
        for command in arguments.split("&&")
        if " install --no-cache-dir" in command
    ]
    assert len(commands) == 6
    assert [each for each in commands if "--require-hashes" not in each and "--no-index" not in each] == []


def test_what_the_image_runs():
    """Not as root; the native front end or none; its file makes a server that can be reached, probes included."""
    for stage in ("cpu", "cuda"):
        image = image_of(DOCKERFILE, stage)
        assert image.user == "10001:10001"
        assert (image.entrypoint, image.command) == (["forebay"], ["serve"])
        assert image.environment["FOREBAY_SERVER__WIRE"] == "native"
        assert image.environment["FOREBAY_CONFIG"] == "/etc/forebay/forebay.toml"
        assert image.healthcheck == ["forebay", "health", "--address", "127.0.0.1:8501"]
    settings = load(file=IMAGE / "forebay.toml", environment={}).config.server
    assert (settings.public.address, settings.probe.address) == ("0.0.0.0:8500", "0.0.0.0:8501")
    assert not image_of(DOCKERFILE, "cpu").environment.keys() & {"NVIDIA_VISIBLE_DEVICES"}
    assert image_of(DOCKERFILE, "cuda").environment["NVIDIA_VISIBLE_DEVICES"] == "all"


def test_the_last_stage_is_small():
    """It takes packages and a file; compilers, sources and locks stay behind."""
    for stage in ("cpu", "cuda"):
        copied = [
            arguments
            for name in ("runtime", stage)
            for instruction, arguments in stages_of(DOCKERFILE)[name]
            if instruction == "COPY"
        ]
        assert copied == [
            "deploy/image/forebay.toml /etc/forebay/",
            f"--from=packages-{stage} /opt/forebay /opt/forebay",
        ]


def test_what_is_copied_is_sent_to_the_builder():
    """.dockerignore keeps nothing back that a stage wants."""
    kept = {
        line.removeprefix("!") for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    for stage in stages_of(DOCKERFILE).values():
        for instruction, arguments in stage:
            if instruction == "COPY" and not arguments.startswith("--from"):
                for source in arguments.split()[:-1]:
                    assert source == "." or source.split("/")[0] in kept
                    assert (REPOSITORY / source).exists()


@pytest.mark.skipif(not NATIVE, reason="the image runs the native front end")
def test_without_the_native_front_end_the_image_does_not_serve(tmp_path):
    """It says so, and does not serve by the slower one."""
    (tmp_path / "forebay_native.py").write_text("raise ImportError\n")
    image = image_of(DOCKERFILE, "cpu")
    done = subprocess.run(
        [sys.executable, "-m", "forebay_server", *image.command, "synthetic:", "--listen", "127.0.0.1:0"],
        env={
            **{name: value for name, value in image.environment.items() if name.startswith("FOREBAY_SERVER")},
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "the native front end is not installed" in done.stderr


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("cargo") is None, reason="builds the native front end")
def test_the_steps_of_the_image(tmp_path):
    """The wheels are built and the locks installed as the Dockerfile does it; what comes out serves."""
    steps = tmp_path / "steps"
    steps.mkdir()
    build, target = tmp_path / "build", tmp_path / "forebay"
    install = ["install", "--quiet", "--no-cache-dir"]
    hashed = ["--only-binary", ":all:", "--require-hashes", "--requirement"]

    def run(*command: object, cwd: Path = REPOSITORY, **variables: str) -> str:
        environment = {**os.environ, **variables}
        done = subprocess.run(
            [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    run(sys.executable, "-m", "venv", build)
    run(build / "bin" / "pip", *install, *hashed, IMAGE / "build.txt")
    run(
        *(build / "bin" / "maturin", "build", "--release", "--locked", "--compatibility", "linux", "--out", steps),
        cwd=REPOSITORY / "server" / "native",
        PYO3_NO_PYTHON="1",
    )
    run(build / "bin" / "hatchling", "build", "--target", "wheel", "--directory", steps)
    run(sys.executable, "-m", "venv", "--without-pip", target)
    pip = [build / "bin" / "pip", "--python", target / "bin" / "python"]
    run(*pip, *install, *hashed, IMAGE / "cpu.txt")
    run(*pip, *install, "--no-index", "--no-deps", *steps.glob("*.whl"))
    assert len(list(steps.glob("*.whl"))) == 2
    environment = {"PATH": f"{target / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path), "PYTHONPATH": ""}
    shown = run("forebay", "config", "server.wire", FOREBAY_SERVER__WIRE="native", **environment)
    assert "native" in shown
    # Every extra that the guide promises can be imported; nothing that only builds or tests is there.
    modules = "forebay_native, onnxruntime, opentelemetry.sdk, psycopg, httpcore, apsw"
    run("python", "-c", f"import {modules}", **environment)
    listed = json.loads(run(*pip, "list", "--format", "json"))
    assert {each["name"] for each in listed} >= {"forebay", "forebay-native"}
    assert not {each["name"] for each in listed} & {"pip", "pytest", "hatchling", "maturin"}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_an_image_is_built_and_serves(tmp_path):
    """By a builder that is here, with a read-only root; the probe and a caller are answered, and it ends in time."""
    runner = next((name for name in ("docker", "podman") if runs(name)), None)
    if runner is None:
        pytest.skip("no Docker that runs, and no podman, is here")
    build = subprocess.run(["make", "image"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stderr[-5000:]
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    options = ["--detach", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--publish", "127.0.0.1::8500"]
    started = subprocess.run(
        [runner, "run", *options, f"forebay:{version}-cpu", "serve", "synthetic:"],
        capture_output=True,
        text=True,
        check=True,
    )
    container = started.stdout.strip()

    def inside(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([runner, *command], capture_output=True, text=True, check=False)

    try:
        health = ("exec", container, "forebay", "health", "--address", "127.0.0.1:8501")
        eventually(lambda: inside(*health).returncode == 0, "it is healthy", 120)
        assert inside("exec", container, "id", "--user").stdout == "10001\n"
        address = inside("port", container, "8500").stdout.strip()
        with Client(address) as client:
            assert client.predict("synthetic", {"x": np.ones((1, 4), np.float32)}, deadline=20)
        assert inside("stop", "--time", "45", container).returncode == 0
        assert inside("inspect", "--format", "{{.State.ExitCode}}", container).stdout == "0\n"
    finally:
        inside("rm", "--force", container)
