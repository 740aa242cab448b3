"""A real server in a process of its own, for the GPU check: started as an operator would, called by our own client."""

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO

from bench.gpu.outcome import NotExecuted
from forebay_client import Client, ForebayError, Health, Retry

DEVICE = "cuda:0"
START = 420.0  # seconds until it must be ready; kernels may have to be compiled
STOP = 60.0  # seconds from SIGTERM to its end


class Served:
    """A server that is ready.

    Attributes:
        address: Where callers connect.
        client: One for the thread that started it.
    """

    def __init__(self, process: "subprocess.Popen[str]", address: str, client: Client) -> None:
        self._process = process
        self.address = address
        self.client = client

    def wait(self, seconds: float) -> int | None:
        """Its exit status, once it has left by itself."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def healthy(self, model: str) -> bool:
        """Whether a model serves."""
        try:
            return self.client.health(f"model/{model}") is Health.SERVING
        except ForebayError:
            return False

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid


@contextlib.contextmanager
def serve(*arguments: str) -> Iterator[Served]:
    """Serves models on the first GPU until the block ends; the arguments are those of `forebay serve`.

    Raises:
        NotExecuted: It lacks a package.
        RuntimeError: It does not become ready.
    """
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "forebay_server", "serve", *arguments]
    command += ["--listen", address, "--device", DEVICE, "--log-level", "warning"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
        try:
            # What fails is to be seen as it is, and not to be sent again to a device that hangs.
            with Client(address, retry=Retry(attempts=1)) as client:
                _wait_until_ready(process, client, log)
                yield Served(process, address, client)
        finally:
            process.terminate()
            try:
                process.wait(STOP)
            except subprocess.TimeoutExpired:  # a hung kernel may hold it
                process.kill()
                process.wait()


def _wait_until_ready(process: "subprocess.Popen[str]", client: Client, log: IO[str]) -> None:
    began = time.monotonic()
    while True:
        with contextlib.suppress(ForebayError):
            if client.health() is Health.SERVING:
                return
        ended = process.poll() is not None
        if ended or time.monotonic() - began > START:
            log.seek(0)
            said = log.read()[-1500:]
            if "ModuleNotFoundError" in said:
                raise NotExecuted(said.strip().rpartition("\n")[2])
            raise RuntimeError(f"the server {'ended' if ended else 'was not ready'}: {said}")
        time.sleep(0.1)  # between looks whether it is ready: a start takes seconds
