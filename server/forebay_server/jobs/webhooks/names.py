"""Looks up host names, with a limit on time: the system's own resolver has none that a caller could set."""

import socket
import threading
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from queue import Empty, SimpleQueue
from typing import Final

from forebay_server.jobs.webhooks.addresses import Address

LOOKUPS: Final = 16
"""Lookups at a time, those included that nobody waits for any more."""

Resolve = Callable[[str, float], Sequence[Address]]
"""Finds all addresses of a name within so many seconds. Raises OSError (TimeoutError: in time there was no answer)."""

System = Callable[[str], Sequence[str]]
"""Finds all addresses of a name, blocking. Raises OSError."""


class Resolver:
    """Looks names up in threads of its own, and does not wait for them longer than it may.

    Args:
        system: What it asks, in these threads.
    """

    def __init__(self, system: System | None = None) -> None:
        self._system = system or _system
        self._slots = threading.BoundedSemaphore(LOOKUPS)

    def __call__(self, host: str, timeout: float) -> list[Address]:
        """All addresses of a name.

        Raises:
            OSError: There are none, or (TimeoutError) no answer in time.
        """
        if not self._slots.acquire(timeout=timeout):
            raise TimeoutError
        outcome: SimpleQueue[list[Address] | Exception] = SimpleQueue()
        threading.Thread(target=self._look, args=(host, outcome), name="forebay-lookup", daemon=True).start()
        try:
            found = outcome.get(timeout=timeout)
        except Empty:
            raise TimeoutError from None
        if isinstance(found, Exception):
            raise found
        return found

    def _look(self, host: str, outcome: SimpleQueue[list[Address] | Exception]) -> None:
        try:
            # A link-local address has its zone behind a percent sign.
            outcome.put(list(dict.fromkeys(ip_address(text) for text in self._system(host))))
        except (OSError, ValueError) as exc:  # ValueError: a name that is none
            outcome.put(exc if isinstance(exc, OSError) else OSError(str(exc)))
        finally:
            self._slots.release()


def _system(host: str) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
