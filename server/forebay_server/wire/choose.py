"""Chooses the adapter that serves gRPC: the native one where it is installed, else the one on grpcio."""

from typing import Literal

from forebay_server.errors import ConfigError
from forebay_server.wire.port import Wire, WireConfig

Choice = Literal["auto", "native", "grpc.aio"]


def open_wire(choice: Choice, config: WireConfig) -> Wire:
    """Makes an adapter, not started yet. Its `name` says which it is.

    Args:
        choice: `native`, `grpc.aio`, or `auto`: native if `forebay_native` can be imported, else grpc.aio.
        config: What to serve, where, and within which limits.

    Raises:
        ConfigError: `native` was asked for and is not installed.
    """
    if choice != "grpc.aio":
        try:
            import forebay_native  # noqa: F401, PLC0415  # optional, so it is imported only where it may be used
        except ImportError as exc:
            if choice == "native":
                raise ConfigError(
                    "the native front end is not installed: install forebay-native, or set server.wire to grpc.aio"
                ) from exc
        else:
            from forebay_server.wire.native import NativeWire  # noqa: PLC0415  # as above

            return NativeWire(config)
    from forebay_server.wire.aio import AioWire  # noqa: PLC0415  # grpc.aio is costly to import and often not used

    return AioWire(config)
