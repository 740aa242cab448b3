"""Runs documentation pages: their marked blocks in order, in a folder of their own, against real servers.

A comment before a fenced block says what becomes of it:

* `<!-- file: NAME -->`: it is written to this file.
* `<!-- serve -->`: a command that serves. It runs in the background until `<!-- stop -->`, the next one, or the end of
  the page, and is then stopped with SIGTERM, which must end it with 0. Later blocks find its process id in `$PID`.
* `<!-- beside -->`: a command that runs beside the server, such as a proxy, until the end of the page. It is ready when
  it takes connections at port 8080; `<!-- beside: PORT -->`: at this one.
* `<!-- run -->`: a shell or Python block that must succeed; `<!-- run: fails CODE -->`: one that must end so.
* `<!-- output -->`: what the block before printed (stdout and stderr); `...` stands for anything.
* `<!-- output: loose -->`: the same, but any number may stand for any other, and spaces may differ.

The pages say `8500` for the port of callers, `8501` for that of probes, `8080` and `9901` for those of a proxy and its
administration, `4317` for that of a collector of spans, `9464` for where metrics are scraped, and `9090` for that of
Prometheus; the tests use free ones, in the files of `deploy/` as well.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from examples.digits import train
from forebay_client import Client, ForebayError
from tests.waiting import free_port

REPOSITORY = Path(__file__).parents[2]
PROMETHEUS = REPOSITORY / "build" / "prometheus" / "bin" / "prometheus"
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]

_BLOCK = re.compile(
    r"^<!-- (?P<what>file|serve|beside|run|output|stop)(?:: (?P<how>[^>]+?))? -->\n"
    r"(?:\n?```(?P<language>\w*)\n(?P<text>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
_START = 60.0  # seconds that a server may take to be ready


class Block(NamedTuple):
    """A marked block."""

    what: str
    how: str
    language: str
    text: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    """The marked blocks of a page, in order."""
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        assert match["text"] is not None or match["what"] == "stop", f"{page.name}:{line}: no block follows the mark"
        found.append(Block(match["what"], match["how"] or "", match["language"] or "", match["text"] or "", line))
    return found


class Script:
    """A page that is being run."""

    def __init__(self, page: Path, folder: Path, cache: Path) -> None:
        self._page = page
        self._folder = folder
        self._ports = {port: free_port() for port in ("8500", "8501", "8080", "9901", "4317", "9464", "9090")}
        self._server: subprocess.Popen[str] | None = None
        self._beside: list[subprocess.Popen[str]] = []
        self._log = folder / ".server.log"
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(cache),
            "COLUMNS": "120",
            "GOPATH": _go("GOPATH"),
            "GOCACHE": _go("GOCACHE"),
            "FOREBAY_ADDRESS": f"127.0.0.1:{self._ports['8500']}",
            "FOREBAY_SERVER__PUBLIC__ADDRESS": f"127.0.0.1:{self._ports['8500']}",
            "FOREBAY_SERVER__PROBE__ADDRESS": f"127.0.0.1:{self._ports['8501']}",
        }

    def run(self) -> None:
        """Runs all blocks."""
        printed = ""
        for block in blocks_of(self._page):
            where = f"{self._page.name}:{block.line}"
            text = self._ported(block.text)
            match block.what:
                case "file":
                    target = self._folder / block.how
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_text(text)
                case "serve":
                    self.stop()
                    self._serve(text, where)
                case "beside":
                    self._begin_beside(text, int(self._ports[block.how or "8080"]), where)
                case "stop":
                    self.stop()
                case "run":
                    printed = self._run(block, text, where)
                case "output":
                    self._compare(block, printed, where)

    def deploy(self, source: Path) -> None:
        """Copies the files of `deploy/`, with the ports of this page."""
        for file in [*source.rglob("*.yaml"), *source.rglob("*.yml")]:
            target = self._folder / "deploy" / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self._ported(file.read_text()))
        shutil.copy(source / "envoy" / "forebay.binpb", self._folder / "deploy" / "envoy")

    def stop(self) -> None:
        """Stops the server, if one runs."""
        server, self._server = self._server, None
        if server is not None:
            if '"draining"' not in self._log.read_text():  # the page may have stopped it; a second signal is rude
                server.send_signal(signal.SIGTERM)
            code = server.wait(30)
            assert code == 0, f"{self._page.name}: the server ended with {code}\n{self._log.read_text()}"

    def kill(self) -> None:
        """Leaves no process behind, whatever happened."""
        for process in self._beside:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it has started as well
            process.wait()
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    def _begin_beside(self, command: str, port: int, where: str) -> None:
        log = self._folder / f".beside-{len(self._beside)}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command.strip()}"],
                cwd=self._folder,
                env=self._environment,
                stdout=file,
                stderr=file,
                text=True,
                start_new_session=True,
            )
        self._beside.append(process)
        until = time.monotonic() + _START
        while time.monotonic() < until:
            assert process.poll() is None, f"{where}: it ended\n{log.read_text()}"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.02)
        pytest.fail(f"{where}: nothing listens\n{log.read_text()}")

    def _serve(self, command: str, where: str) -> None:
        with self._log.open("w") as log:
            self._server = subprocess.Popen(
                ["bash", "-c", f"exec {command.strip()}"],
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=log,
                text=True,
            )
        self._environment["PID"] = str(self._server.pid)
        until = time.monotonic() + _START
        with Client(f"127.0.0.1:{self._ports['8501']}") as client:
            while time.monotonic() < until:
                assert self._server.poll() is None, f"{where}: the server ended\n{self._log.read_text()}"
                try:
                    if client.health(deadline=1.0) == "SERVING":
                        return
                except ForebayError:
                    pass
                time.sleep(0.02)
        pytest.fail(f"{where}: the server is not ready\n{self._log.read_text()}")

    def _run(self, block: Block, text: str, where: str) -> str:
        command = [sys.executable, "-"] if block.language == "python" else ["bash", "-euo", "pipefail"]
        ended = subprocess.run(
            command,
            input=text,
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        expected = int(block.how.removeprefix("fails ") or 0)
        assert ended.returncode == expected, f"{where}: ended with {ended.returncode}\n{ended.stdout}"
        return ended.stdout

    def _compare(self, block: Block, printed: str, where: str) -> None:
        found, promised = self._unported(printed), block.text
        if block.how == "loose":
            found, promised = (" ".join(_NUMBER.sub("0", text).split()) for text in (found, promised))
        found, promised = ("\n".join(line.rstrip() for line in text.strip().splitlines()) for text in (found, promised))
        pattern = re.escape(promised).replace(re.escape("..."), ".*?")
        assert re.fullmatch(pattern, found, re.DOTALL), f"{where}: it printed\n{found}\nand the page says\n{promised}"

    def _ported(self, text: str) -> str:
        for said, real in self._ports.items():
            text = text.replace(said, str(real))
        return text

    def _unported(self, text: str) -> str:
        for said, real in self._ports.items():
            text = text.replace(str(real), said)
        return text.replace(str(self._folder), "FOLDER")


def _go(variable: str) -> str:
    """Where Go keeps things, which pages that run Go programs need, too; empty without Go."""
    if shutil.which("go") is None:
        return ""
    return subprocess.run(["go", "env", variable], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pages find: the demo's model, a few of its images, examples, and clients."""
    folder = tmp_path_factory.mktemp("clone")
    train(folder / "build" / "demo" / "digits.onnx")
    for name in ("examples", "go.mod", "go.sum", "gen", "clients", "build/prometheus"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all servers of the pages keep measured costs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def script(request: pytest.FixtureRequest, clone: Path, cache: Path, tmp_path: Path) -> Iterator[Script]:
    """The page that the test is about, in a fresh folder."""
    if any(block.language == "go" for block in blocks_of(request.param)) and shutil.which("go") is None:
        pytest.skip("there is no Go here")
    if any("build/prometheus/" in block.text for block in blocks_of(request.param)) and not PROMETHEUS.exists():
        pytest.skip("there is no Prometheus here: make prometheus")
    if request.param.name == "torch.md" and importlib.util.find_spec("torch") is None:
        pytest.skip("there is no torch here; `make test-torch` runs this page")
    for name in ("build", "examples", "go.mod", "go.sum", "gen", "clients"):
        (tmp_path / name).symlink_to(clone / name)
    made = Script(request.param, tmp_path, cache)
    made.deploy(REPOSITORY / "deploy")
    yield made
    made.kill()
