"""What tests wait for, and where what they start can listen. Machines may be busy: nothing here is soon over."""

import contextlib
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 10.0  # seconds that anything may take


def eventually(condition: Callable[[], object], what: str = "what was waited for", patience: float = PATIENCE) -> None:
    """Waits until something holds.

    Args:
        condition: Looked at again and again.
        what: It, in words, for the failure.
        patience: Seconds that it may take.
    """
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"did not come about in {patience:g} s: {what}"
        time.sleep(0.005)


def free_port() -> int:
    """A TCP port of the loopback address that nobody has now. Whoever listens can, and should, take port 0 instead.

    It is not one of those that the kernel gives away by itself, to outgoing connections and to port 0: nobody gets it
    meanwhile, or between a server's end and its next start, but who asks here too.
    """
    with Path("/proc/sys/net/ipv4/ip_local_port_range").open() as given_away:
        first = int(given_away.read().split()[0])
    for _ in range(100):
        port = random.SystemRandom().randrange(first // 2, first)  # whose own seed may be set, and then alike in all
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no port is free from {first // 2} to {first}")
