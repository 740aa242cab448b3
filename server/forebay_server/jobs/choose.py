"""Chooses the store by the setting `jobs.store`."""

from pathlib import Path

from forebay_server.errors import ConfigError
from forebay_server.jobs.store import Store

_SQLITE = "sqlite:"
_POSTGRES = ("postgresql://", "postgres://")


def choose_store(setting: str, *, lost: bytes) -> Store:
    """Makes a store, not opened yet. Its `name` says which it is.

    Args:
        setting: `memory:`, `postgresql://...`, or a path or `sqlite:PATH` for SQLite.
        lost: The outcome (a serialized `google.rpc.Status`) of a job whose payload the store has lost.

    Raises:
        ConfigError: It is none of these, or what it needs is not installed.
    """
    if setting == "memory:":
        from forebay_server.jobs.memory import MemoryStore  # noqa: PLC0415  # only the store that is used is imported

        return MemoryStore()
    if setting.startswith(_POSTGRES):
        try:
            from forebay_server.jobs.postgres import PostgresStore  # noqa: PLC0415  # it imports psycopg, an extra
        except ImportError as exc:
            raise ConfigError(
                "jobs.store: PostgreSQL needs the package psycopg: install forebay with the extra `postgres`"
            ) from exc
        return PostgresStore(setting)
    path = setting.removeprefix(_SQLITE)
    if not path or "://" in path or path.endswith("/"):
        raise ConfigError(f"jobs.store: {setting!r} is none of a path, sqlite:PATH, postgresql://... and memory:")
    from forebay_server.jobs.sqlite import SqliteStore  # noqa: PLC0415  # as above

    return SqliteStore(Path(path), lost=lost)
