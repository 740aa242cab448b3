"""From the tree of settings to the values that the parts take: units change here, and nowhere else."""

from collections.abc import Sequence

from forebay_server.config.tree import Config, ExposureConfig, ModelConfig, ServerConfig, TlsConfig
from forebay_server.scheduling.policy import ModelPolicy, ServerPolicy, TenantPolicy
from forebay_server.services.service import Service
from forebay_server.wire.port import Exposure, Limits, Tls

MIB = 1 << 20


def wire_limits(config: Config) -> Limits:
    """Limits of the front end."""
    limits = config.limits
    return Limits(
        max_receive_bytes=int(limits.max_receive_mib * MIB),
        max_send_bytes=int(limits.max_send_mib * MIB),
        max_held_bytes=int(limits.max_held_mib * MIB),
        max_streams=limits.max_streams,
        max_connections=limits.max_connections,
        max_metadata_bytes=limits.max_metadata_kib << 10,
        write_stall=limits.write_stall_s,
        read_stall=limits.read_stall_s,
        keepalive_time=limits.keepalive_time_s,
        keepalive_timeout=limits.keepalive_timeout_s,
        max_connection_age=limits.max_connection_age_s,
        max_connection_age_grace=limits.max_connection_age_grace_s,
        accept_gzip=limits.accept_gzip,
    )


def configured(server: ServerConfig) -> dict[str, ExposureConfig]:
    """Where the server is to listen, by the names of the exposures, in the order of their numbers."""
    all_of_them = {"public": server.public, "operator": server.operator, "probe": server.probe}
    return {name: exposure for name, exposure in all_of_them.items() if exposure is not None}


def exposures(
    config: Config, *, public: Sequence[Service], operator: Sequence[Service], probe: Sequence[Service]
) -> list[Exposure]:
    """Where the server listens, and which services it offers there."""
    offered = {"public": public, "operator": operator, "probe": probe}
    return [
        Exposure(
            name=name,
            address=exposure.address,
            methods=frozenset(endpoint.method.path for service in offered[name] for endpoint in service.endpoints),
            tls=_tls(exposure.tls) if exposure.tls else None,
            trusted=exposure.trusted,
            reuse_port=exposure.reuse_port,
            outlives_drain=name == "probe",
        )
        for name, exposure in configured(config.server).items()
    ]


def _tls(tls: TlsConfig) -> Tls:
    return Tls(certificate=tls.certificate, key=tls.key, client_ca=tls.client_ca)


def server_policy(config: Config) -> ServerPolicy:
    """What the scheduler keeps for all models together."""
    return ServerPolicy(
        max_held_bytes=int(config.limits.max_held_mib * MIB),
        tenants={
            name: TenantPolicy(weight=tenant.weight, max_queued_rows=tenant.max_queued_rows)
            for name, tenant in config.tenants.items()
        },
    )


def model_policy(
    config: ModelConfig, *, max_batch_size: int, batch_sizes: Sequence[int], instances: int, device: str
) -> ModelPolicy:
    """What the scheduler keeps for one model. The first sizes are those decided at load, not those of the settings."""
    batching = config.batching
    return ModelPolicy(
        max_batch_size=max_batch_size,
        best_batch_size=batching.best_batch_size,
        max_delay=batching.max_delay_ms / 1e3,
        max_queued_rows=batching.max_queued_rows,
        batch_sizes=tuple(batch_sizes),
        max_lanes=config.buckets.max_lanes,
        instances=instances,
        max_execution=config.engine.max_execution_s,
        device=device,
    )
