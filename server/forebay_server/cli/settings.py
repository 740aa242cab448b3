"""The options of `serve` and `check` that say what is served and how, and the configuration that they make."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    from forebay_server.config.load import Resolved

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


class Shortcut(NamedTuple):
    """An option that stands for one setting."""

    option: str
    setting: str
    """`models.*` means every model."""
    metavar: str
    help: str


SHORTCUTS = (
    Shortcut("--listen", "server.public.address", "ADDRESS", "Where callers connect. [127.0.0.1:8500]"),
    Shortcut("--operator", "server.operator.address", "ADDRESS", "Where operators connect. [nowhere]"),
    Shortcut("--probe", "server.probe.address", "ADDRESS", "Where health probes connect. [nowhere]"),
    Shortcut("--tls-cert", "server.public.tls.certificate", "FILE", "The certificate chain for callers, PEM."),
    Shortcut("--tls-key", "server.public.tls.key", "FILE", "Its private key, PEM."),
    Shortcut("--client-ca", "server.public.tls.client_ca", "FILE", "The CAs of callers' certificates, PEM."),
    Shortcut("--wire", "server.wire", "NAME", "The gRPC front end: auto, native or grpc.aio. [auto]"),
    Shortcut("--name", "models.0.name", "NAME", "The model's name, if there is one model. [the file's]"),
    Shortcut("--engine", "models.*.engine.name", "NAME", "The engine. [by the file's suffix]"),
    Shortcut("--device", "models.*.engine.devices", "LIST", "cpu, cuda:0, ...; cuda: the emptiest GPU. [the engine's]"),
    Shortcut("--instances", "models.*.engine.instances", "N", "Engine instances of each model, on each device. [1]"),
    Shortcut("--threads", "models.*.engine.threads", "N", "Threads of each instance; 0: the CPU quota. [0]"),
    Shortcut("--run", "models.*.engine.run", "WHERE", "Run batches auto, inline or in a worker. [auto]"),
    Shortcut("--max-batch-size", "models.*.batching.max_batch_size", "ROWS", "The most rows in a batch. [the model's]"),
    Shortcut("--max-delay-ms", "models.*.batching.max_delay_ms", "MS", "Wait so long for a fuller batch. [0]"),
    Shortcut("--jobs", "jobs.store", "STORE", "Keep durable jobs in this file, or in postgresql://... [no jobs]"),
    Shortcut("--drain-grace-s", "server.drain_grace_s", "SECONDS", "Time to finish at shutdown. [30]"),
    Shortcut("--log-level", "log.level", "LEVEL", "debug, info, warning or error. [info]"),
    Shortcut("--log-format", "log.format", "FORMAT", "auto, text or json. [auto]"),
)  # fmt: skip


def server_options(command: CommandT) -> CommandT:
    """Gives a command the arguments and options that `configured` takes."""
    made = click.option(
        "--set", "settings", multiple=True, metavar="SETTING=VALUE", help="Any setting, as in server.drain_grace_s=60."
    )(command)
    for shortcut in reversed(SHORTCUTS):
        made = click.option(shortcut.option, metavar=shortcut.metavar, help=shortcut.help)(made)
    made = click.option(
        "--config",
        "file",
        type=click.Path(path_type=Path),
        envvar="FOREBAY_CONFIG",
        help="A TOML file. [FOREBAY_CONFIG]",
    )(made)
    return click.argument("models", nargs=-1, metavar="[MODEL]...")(made)


def configured(
    models: tuple[str, ...], file: Path | None, settings: tuple[str, ...], shortcuts: dict[str, Any]
) -> "Resolved":
    """The configuration that a command was told.

    Args:
        models: Paths, or forms such as `python:module:object` and `synthetic:base_ms=5`.
        file: The TOML file.
        settings: What came with `--set`.
        shortcuts: The values of the other options by their parameter names; None where not given.

    Raises:
        ConfigError: A source can't be read, or holds something that it must not.
    """
    from forebay_server.config.load import Flag, load
    from forebay_server.errors import ConfigError

    flags: list[Flag] = []
    for shortcut in SHORTCUTS:
        value = shortcuts.get(shortcut.option.removeprefix("--").replace("-", "_"))
        if value is not None:
            flags.append(Flag(shortcut.setting, value, shortcut.option))
    for text in settings:
        path, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: write it as SETTING=VALUE, such as server.drain_grace_s=60")
        flags.append(Flag(path.strip(), value.strip(), "--set"))
    for path in models:
        if ":" not in path and not Path(path).exists():
            raise ConfigError(f"{path}: no such file")
    loaded = load(file=file, environment=os.environ, models=models, flags=flags)
    if shortcuts.get("name") is not None and len(loaded.config.models) > 1:
        raise ConfigError(
            f"--name can't name {len(loaded.config.models)} models; use models.N.name in the configuration"
        )
    return loaded
