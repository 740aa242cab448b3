"""Where a connection comes from: the options, the credentials and the metadata of a channel.

The one place where channels are made: balancing over several addresses, several connections, and the service
configuration, by which gRPC itself repeats what was UNAVAILABLE.
"""

import ipaddress
import json
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
MOST_CONNECTIONS = 64

Address = str | Sequence[str]
"""`host:port`, `unix:/path`, or another target that gRPC resolves; or several IP addresses with ports, or several Unix
sockets."""

_RETRIES = {
    "methodConfig": [
        {
            "name": [
                {"service": "forebay.v1.InferenceService", "method": "Predict"},
                {"service": "forebay.v1.ModelService"},
                {"service": "forebay.v1.JobService", "method": "ListJobs"},
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
}
"""gRPC repeats UNAVAILABLE, which did not run or is harmless to run again, elsewhere if there is an elsewhere.
The other calls about jobs are repeated by their plans, for longer. RESOURCE_EXHAUSTED is not on the list: messages that
are too large would be repeated, too. `_retries` tells these apart.
"""


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

    address: Address
    tls: Tls | None = None
    tenant: str = ""
    """Who calls, for servers that believe it from metadata; empty: not said."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Sent with every call, lower-case keys."""
    max_message_bytes: int = MAX_MESSAGE_BYTES
    """The largest message, both ways."""
    connections: int = 1
    """To each address."""
    health_check: bool | None = None
    """Whether servers that say that they do not serve are left out. None: if there may be several."""
    options: Sequence[tuple[str, str | int]] = ()
    """Further gRPC channel options; stronger than ours."""

    def __post_init__(self) -> None:
        several = _several(self.address)
        if several:
            self.target()
        elif not self.address:
            raise ValueError("there must be at least one address")
        if not 1 <= self.connections <= MOST_CONNECTIONS:
            raise ValueError(f"there may be 1 to {MOST_CONNECTIONS} connections, not {self.connections}")
        if several and self.tls is not None and not self.tls.server_name:
            raise ValueError("TLS to several addresses needs the one name that their certificates have: `server_name`")
        if not (self.tenant.isascii() and self.tenant.isprintable()):
            raise ValueError(f"a tenant must be printable ASCII text, not {self.tenant!r}")

    def target(self) -> str:
        """The target as gRPC has it.

        Raises:
            ValueError: There are several addresses that do not go together.
        """
        if isinstance(self.address, str):
            return self.address
        if not _several(self.address):
            return self.address[0]
        kinds = {_kind(one) for one in self.address}
        if len(kinds) != 1:
            raise ValueError("several addresses must be all IPv4, all IPv6 or all Unix sockets")
        return f"{kinds.pop()}:{','.join(one.removeprefix('unix:') for one in self.address)}"

    def call_metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of each call."""
        tenant = ((TENANT_KEY, self.tenant),) if self.tenant else ()
        return (*tenant, *self.metadata.items())

    def open(self) -> list[grpc.Channel]:
        """The channels for threads, one for each connection. They connect with the first call."""
        target, options = self.target(), self._options()
        if self.tls is None:
            return [grpc.insecure_channel(target, options) for _ in range(self.connections)]
        credentials = self.tls.credentials()
        return [grpc.secure_channel(target, credentials, options) for _ in range(self.connections)]

    def open_async(self) -> list[grpc.aio.Channel]:
        """The channels for asyncio, one for each connection. They connect with the first call."""
        target, options = self.target(), self._options()
        if self.tls is None:
            return [grpc.aio.insecure_channel(target, options) for _ in range(self.connections)]
        credentials = self.tls.credentials()
        return [grpc.aio.secure_channel(target, credentials, options) for _ in range(self.connections)]

    def service_config(self) -> str:
        """How gRPC is to balance, check and repeat, as JSON."""
        several = _several(self.address) or self.target().startswith("dns:")
        config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}], **_RETRIES}
        if several if self.health_check is None else self.health_check:
            config["healthCheckConfig"] = {"serviceName": ""}
        return json.dumps(config)

    def _options(self) -> list[tuple[str, str | int]]:
        options: dict[str, str | int] = {
            "grpc.max_receive_message_length": self.max_message_bytes,
            "grpc.max_send_message_length": self.max_message_bytes,
            "grpc.service_config": self.service_config(),
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
        if self.connections > 1:
            options["grpc.use_local_subchannel_pool"] = 1  # equal channels would share one connection
        if self.tls is not None and self.tls.server_name:
            options["grpc.ssl_target_name_override"] = self.tls.server_name
        if self.target().startswith("unix:"):
            # grpcio would name the socket by its escaped path, which strict servers refuse as no name of a host.
            options["grpc.default_authority"] = "localhost"
        elif _several(self.address):
            # And the whole list would be the name of the server.
            options["grpc.default_authority"] = self.address[0]
        options.update(self.options)
        return list(options.items())


def _several(address: Address) -> bool:
    return not isinstance(address, str) and len(address) > 1


def _kind(address: str) -> str:
    if address.startswith("unix:"):
        return "unix"
    try:
        return f"ipv{ipaddress.ip_address(address.rpartition(':')[0].strip('[]')).version}"
    except ValueError:
        raise ValueError(
            f"{address!r} is no IP address with a port: a name that stands for several servers is given alone, as "
            "dns:///name:port"
        ) from None


def _read(path: str | Path | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
