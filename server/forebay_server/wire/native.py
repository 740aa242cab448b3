"""The default adapter: `wire.port.Wire` on our own Rust extension, `forebay_native`.

Thin: sockets, TLS, HTTP/2, framing, limits and queues are in the crate (`server/native`), off the GIL. Only this module
imports it. `wire.choose` decides between it and `wire.aio`.
"""

import faulthandler
import signal
from collections.abc import Sequence
from typing import Final

import forebay_native

from forebay_server.errors import ConfigError
from forebay_server.wire.port import Action, Event, Figures, Peer, WireConfig

DUMP_SIGNAL: Final = signal.SIGRTMAX - 2
"""Makes `faulthandler` write all stacks; the watchdog raises it. A real-time signal, since nobody else uses those."""

STDERR: Final = 2
"""Not `sys.stderr`: whoever has replaced that may have no descriptor to give."""


class NativeWire:
    """A gRPC server on `forebay_native`. The rules of `Wire` hold."""

    name = "native"

    def __init__(self, config: WireConfig) -> None:
        self._server = forebay_native.Server(config, Peer)
        self._dumps = False

    def start(self) -> list[str]:
        """See `Wire.start`."""
        try:
            return self._server.start()
        except forebay_native.StartError as exc:
            raise ConfigError(str(exc)) from exc

    def take(self, most: int, timeout: float) -> list[Event]:
        """See `Wire.take`."""
        return self._server.take(most, timeout)

    def answer(self, actions: Sequence[Action]) -> list[int]:
        """See `Wire.answer`."""
        return self._server.answer(actions)

    def wake(self) -> None:
        """See `Wire.wake`."""
        self._server.wake()

    def gather(self, until: float) -> None:
        """See `Wire.gather`."""
        self._server.gather(until)

    def watch(self, budget: float | None) -> None:
        """See `Wire.watch`."""
        if budget is not None and not self._dumps:
            # The watchdog has no GIL, so it can't ask Python for the stacks; this handler needs none either.
            faulthandler.register(DUMP_SIGNAL, file=STDERR, all_threads=True, chain=False)
            self._dumps = True
        self._server.watch(budget, DUMP_SIGNAL)

    def renew_certificates(self) -> None:
        """See `Wire.renew_certificates`."""
        try:
            self._server.renew_certificates()
        except forebay_native.StartError as exc:
            raise ConfigError(str(exc)) from exc

    def figures(self) -> Figures:
        """See `Wire.figures`."""
        return Figures(**self._server.figures())

    def drain(self) -> None:
        """See `Wire.drain`."""
        self._server.drain()

    def close(self, grace: float) -> None:
        """See `Wire.close`."""
        self._server.close(grace)
