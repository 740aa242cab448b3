"""Starting programs: ports that nobody has, and waiting until something is there."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable

from bench.errors import BenchError

LOOK_EVERY = 0.002  # seconds; times to a start are told with this grain


def free_ports(count: int) -> list[int]:
    """So many TCP ports of the loopback address, different from each other."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(contextlib.closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def listens(port: int) -> bool:
    """Whether somebody takes connections at a port of the loopback address."""
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(
    condition: Callable[[], bool],
    what: str,
    *,
    within: float,
    process: subprocess.Popen[bytes] | subprocess.Popen[str] | None = None,
    every: float = LOOK_EVERY,
) -> float:
    """Looks again and again until a condition holds; the seconds that it took.

    Args:
        condition: What to wait for.
        what: It, in words, for the error: `Envoy does not listen`.
        within: Seconds that it may take.
        process: Who makes it so; if that ends, nobody will.
        every: Seconds between looks, which cost something.

    Raises:
        BenchError: It has not come about.
    """
    began = time.monotonic()
    while not condition():
        if process is not None and process.poll() is not None:
            raise BenchError(f"{what}: it has ended with {process.returncode}")
        if time.monotonic() - began > within:
            raise BenchError(f"{what} within {within:g} s")
        time.sleep(every)  # else the waiting would take from what is waited for
    return time.monotonic() - began
