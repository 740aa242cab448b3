"""What tests wait for, and where what they start can listen. Machines may be busy: nothing here is soon over."""

import socket
import time
from collections.abc import Callable

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
    """A TCP port of the loopback address that nobody has now. Whoever listens can, and should, take port 0 instead."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
