"""The TOML beside a model (`model.onnx` has `model.toml`), and how it meets the server's own settings.

The server's are stronger, field by field: what differs from its default there wins, the file beside the model fills in
the rest. Called by the loader.
"""

from pathlib import Path
from typing import TypeVar

import msgspec

from forebay_server.config.tree import ModelConfig, Section
from forebay_server.errors import ConfigError

Table = TypeVar("Table", bound=Section)


def settings_path(path: Path) -> Path:
    """Where the TOML beside a model's file is, whether it exists or not."""
    return path.with_suffix(".toml")


def read(file: Path) -> ModelConfig:
    """Reads the TOML beside a model.

    Raises:
        ConfigError: It is not TOML, or not a model's settings; the text names file and field.
    """
    try:
        config = msgspec.toml.decode(file.read_bytes(), type=ModelConfig)
    except OSError as error:
        raise ConfigError(f"{file}: can't be read: {error.strerror or error}") from error
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$")
        field = where.strip(".`")
        raise ConfigError(f"{file}: {f'{field}: ' if field else ''}{text[:1].lower()}{text[1:]}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from error
    if config.path:
        raise ConfigError(f"{file}: path: it lies beside its model and can't name another")
    return config


def merge(stronger: Table, weaker: Table) -> Table:
    """Two tables of one kind as one: what `stronger` leaves at its default is taken from `weaker`, table by table."""
    values: dict[str, object] = {}
    for field in msgspec.structs.fields(type(stronger)):
        ours, theirs = getattr(stronger, field.name), getattr(weaker, field.name)
        if isinstance(ours, Section) and isinstance(theirs, Section):
            values[field.name] = merge(ours, theirs)
        elif isinstance(ours, dict) and isinstance(theirs, dict):
            values[field.name] = {**theirs, **ours}
        else:
            default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory
            default = default() if callable(default) else default
            values[field.name] = theirs if ours == default else ours
    return type(stronger)(**values)


def complete(config: ModelConfig) -> ModelConfig:
    """A model's settings with those of the TOML beside its file, if there is a file and a TOML.

    Raises:
        ConfigError: As for `read`.
    """
    if ":" in config.path or not Path(config.path).name:
        return config
    beside = settings_path(Path(config.path))
    if beside == Path(config.path) or not beside.is_file():
        return config
    return merge(config, read(beside))
