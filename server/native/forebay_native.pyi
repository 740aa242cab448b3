"""Forebay's native front end: sockets, TLS, HTTP/2 and gRPC framing, off the GIL.

Used by `forebay_server.wire.native` alone, which gives it the types of `forebay_server.wire.port`.
"""

from collections.abc import Sequence
from typing import Any

class StartError(Exception):
    """The server can't start, or certificates can't be used. The text is one sentence for the operator."""

class Server:
    """A gRPC server. The rules of `wire.port.Wire` hold for the methods of the same names."""

    def __init__(self, config: object, peer: type) -> None:
        """`config` is a `wire.port.WireConfig`, `peer` the class `wire.port.Peer`."""

    def start(self) -> list[str]:
        """Listens. Returns the bound addresses.

        Raises:
            StartError: It can't.
        """

    def take(self, most: int, timeout: float) -> list[Any]:
        """Waits for events without the GIL and gives them out, as tuples."""

    def answer(self, actions: Sequence[tuple[int, int, Any]]) -> list[int]:
        """Carries out actions; none of them if one is malformed. Returns the streams whose outbox is full."""

    def wake(self) -> None:
        """Ends the present or next `take` early."""

    def gather(self, until: float) -> None:
        """Lets what arrives before then wait for more."""

    def watch(self, budget: float | None, dump_signal: int) -> None:
        """Sets the watchdog. `dump_signal` is raised, to write Python's stacks, before the process ends; 0: none."""

    def renew_certificates(self) -> None:
        """Reads the TLS files again.

        Raises:
            StartError: They can't be used; all the old ones stay.
        """

    def figures(self) -> dict[str, int]:
        """Counters and gauges by the names of `wire.port.Figures`."""

    def drain(self) -> None:
        """Stops listening, and tells connections to go away."""

    def close(self, grace: float) -> None:
        """Closes everything. A second one does nothing."""
