"""`forebay serve`: serves models until it is told to stop."""

from pathlib import Path
from typing import Any

import click

from forebay_server.cli.settings import configured, server_options
from forebay_server.errors import ConfigError


@click.command()
@server_options
def serve(models: tuple[str, ...], file: Path | None, settings: tuple[str, ...], **shortcuts: Any) -> int:
    """Serve models over gRPC.

    MODEL is a model file, `python:module:object` for Python code, or `synthetic:base_ms=5` for a make-believe model.

    \b
      forebay serve model.onnx
      forebay serve a.onnx b.onnx --listen 0.0.0.0:8500 --max-delay-ms 2
      forebay serve --config forebay.toml --set limits.max_streams=100

    Settings come from flags, FOREBAY_* variables and the TOML file, in this order of strength; `forebay config` lists
    them. SIGTERM and Ctrl-C drain the server, a second one ends it at once.
    """
    loaded = configured(models, file, settings, shortcuts)
    if not loaded.config.models:
        raise ConfigError(
            "there is no model to serve; name one (forebay serve model.onnx), or a --config with [[models]]"
        )
    from forebay_server import app

    return int(app.serve(loaded.config))
