"""Where a connection comes from: the options, the credentials and the metadata of a channel.

The one place where channels are made. Load balancing over several addresses, channel pools and a service configuration
with retries belong here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

MAX_MESSAGE_BYTES = 16 << 20  # bytes; the server's own default
KEEPALIVE_TIME = 30.0  # seconds; servers accept a ping every 10
KEEPALIVE_TIMEOUT = 20.0  # seconds
FIRST_RECONNECT = 0.1  # seconds
LAST_RECONNECT = 5.0  # seconds
TENANT_KEY = "x-forebay-tenant"
USER_AGENT = "forebay-python"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS of a connection; with `certificate` and `key`, mutual TLS."""

    ca: str | Path | None = None
    """File of the certificates that the server's is checked against, PEM. None: those of gRPC."""
    certificate: str | Path | None = None
    """File of our own certificate chain, PEM."""
    key: str | Path | None = None
    """File of its private key, PEM, unencrypted."""
    server_name: str = ""
    """The name that the server's certificate must have. Empty: the host of the address."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("mutual TLS needs both `certificate` and `key`")

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files.

        Raises:
            OSError: One can't be read.
        """
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca), private_key=_read(self.key), certificate_chain=_read(self.certificate)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to connect, and how."""

    address: str
    """`host:port`, `unix:/path`, or any other target that gRPC resolves (`dns:///...`)."""
    tls: Tls | None = None
    tenant: str = ""
    """Who calls, for servers that believe it from metadata; empty: not said."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Sent with every call, lower-case keys."""
    max_message_bytes: int = MAX_MESSAGE_BYTES
    """The largest message, both ways."""
    options: Sequence[tuple[str, str | int]] = ()
    """Further gRPC channel options; stronger than ours."""

    def call_metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of each call."""
        tenant = ((TENANT_KEY, self.tenant),) if self.tenant else ()
        return (*tenant, *self.metadata.items())

    def open(self) -> grpc.Channel:
        """A channel for threads. It connects with the first call."""
        if self.tls is None:
            return grpc.insecure_channel(self.address, self._options())
        return grpc.secure_channel(self.address, self.tls.credentials(), self._options())

    def open_async(self) -> grpc.aio.Channel:
        """A channel for asyncio. It connects with the first call."""
        if self.tls is None:
            return grpc.aio.insecure_channel(self.address, self._options())
        return grpc.aio.secure_channel(self.address, self.tls.credentials(), self._options())

    def _options(self) -> list[tuple[str, str | int]]:
        options: dict[str, str | int] = {
            "grpc.max_receive_message_length": self.max_message_bytes,
            "grpc.max_send_message_length": self.max_message_bytes,
            # What is kept of a call so that gRPC may send it again; the default of 256 KiB is less than many a tensor.
            "grpc.per_rpc_retry_buffer_size": self.max_message_bytes + (64 << 10),
            "grpc.keepalive_time_ms": int(KEEPALIVE_TIME * 1000),
            "grpc.keepalive_timeout_ms": int(KEEPALIVE_TIMEOUT * 1000),
            "grpc.keepalive_permit_without_calls": 1,
            "grpc.http2.max_pings_without_data": 0,
            # gRPC's own pauses between attempts to connect grow to two minutes: long after a server is back.
            "grpc.initial_reconnect_backoff_ms": int(FIRST_RECONNECT * 1000),
            "grpc.max_reconnect_backoff_ms": int(LAST_RECONNECT * 1000),
            "grpc.primary_user_agent": USER_AGENT,
        }
        if self.tls is not None and self.tls.server_name:
            options["grpc.ssl_target_name_override"] = self.tls.server_name
        if self.address.startswith("unix:"):
            # grpcio would name the socket by its escaped path, which strict servers refuse as no name of a host.
            options["grpc.default_authority"] = "localhost"
        options.update(self.options)
        return list(options.items())


def _read(path: str | Path | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
