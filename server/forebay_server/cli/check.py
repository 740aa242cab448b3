"""`forebay check`: explains a configuration and the models in it, before they are served.

Models are loaded, warmed up and measured as `serve` would do it, so this is also the place to see why a model is not
batched.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forebay_server.cli import display
from forebay_server.cli.guard import Failed
from forebay_server.cli.settings import configured, server_options

if TYPE_CHECKING:
    from rich.console import Console

    from forebay_server.config.load import Explained
    from forebay_server.config.tree import ModelConfig
    from forebay_server.models.loaded import Loaded
    from forebay_server.tensors import TensorSpec


@click.command()
@server_options
@click.option("--no-load", is_flag=True, help="Explain the settings only; load no model.")
def check(
    models: tuple[str, ...], file: Path | None, settings: tuple[str, ...], *, no_load: bool, **shortcuts: Any
) -> None:
    """Explain a configuration and its models before they are served.

    Shows every setting with its value and where it comes from, and for each model what it takes and gives, how it is
    batched and why, whether its rows see each other, and what batches cost. Takes what `forebay serve` takes.

    \b
      forebay check model.onnx
      forebay check --config forebay.toml
    """
    from forebay_server.config.load import explain

    loaded = configured(models, file, settings, shortcuts)
    if not no_load:
        from forebay_server.app.hosting import Hosting

        Hosting.names_of(loaded.config.models)
    console = display.console()
    _settings(console, [found for found in explain(*loaded) if not found.path.startswith("models.")])
    if loaded.config.jobs.store:
        from forebay_server.app.jobs import explain_store, explain_webhooks

        console.print(f"\njobs are kept {explain_store(loaded.config.jobs.store)}", markup=False)
        console.print(explain_webhooks(loaded.config.jobs.webhooks), markup=False)
    every = explain(*loaded)
    failed = 0
    for index, model in enumerate(loaded.config.models):
        console.print(f"\n{model.path}", style="bold", markup=False)
        prefix = f"models.{index}."
        own = [found for found in every if found.path.startswith(prefix)]
        failed += 0 if _model(console, model, own, prefix, no_load=no_load) else 1
    if failed:
        raise Failed(f"{failed} of {len(loaded.config.models)} models can't be served")


def _model(
    console: "Console", config: "ModelConfig", explained: "list[Explained]", prefix: str, *, no_load: bool
) -> bool:
    """Shows one model, and says whether it can be served."""
    if no_load:
        _settings(console, explained)
        return True
    from forebay_server.engines.base import ModelLoadError
    from forebay_server.errors import ConfigError
    from forebay_server.models.loader import load

    try:
        with _quiet_logs(), console.status(f"loading {config.path}"):
            loaded = load(config)
    except (ConfigError, ModelLoadError) as error:
        _settings(console, explained)
        console.print(f"can't be served: {error}", style="bold red", markup=False)
        return False
    try:
        _settings(console, _with_own_file(explained, prefix, config, loaded.config))
        _describe(console, loaded)
    finally:
        loaded.close()
    return True


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Only errors are logged, and on stderr: the report on stdout says what the loader would warn of."""
    import structlog

    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def _with_own_file(
    explained: "list[Explained]", prefix: str, before: "ModelConfig", after: "ModelConfig"
) -> "list[Explained]":
    """The settings with those that the TOML beside the model has filled in."""
    from forebay_server.config.load import DEFAULT, explain_section

    if before == after:
        return explained
    own = str(Path(before.path).with_suffix(".toml"))
    known = {found.path: found for found in explained}
    result = []
    for found in explain_section(after, prefix.rstrip(".")):
        was = known.get(found.path)
        source = was.source if was is not None and (was.value == found.value or was.source != DEFAULT) else own
        result.append(found._replace(source=source))
    return result


def _settings(console: "Console", explained: "Sequence[Explained]") -> None:
    from rich.markup import escape
    from rich.table import Table

    from forebay_server.config.documentation import shown
    from forebay_server.config.load import DEFAULT

    table = Table(box=None, header_style="bold")
    table.add_column("SETTING", no_wrap=True)
    table.add_column("VALUE")
    table.add_column("FROM")
    table.add_column("MEANING")
    for found in explained:
        value = f"{shown(found.value)} {found.unit}".rstrip()
        style = "dim" if found.source == DEFAULT else ""
        table.add_row(*map(escape, (found.path, value, found.source, found.documentation)), style=style)
    console.print(table)


def _describe(console: "Console", loaded: "Loaded") -> None:
    """What came of loading a model."""
    from rich.markup import escape
    from rich.table import Table

    engine = loaded.engine
    instances = display.count(len(loaded.instances), "instance")
    facts = {
        "model": f"{loaded.name} version {loaded.version}",
        "engine": f"{loaded.engine_name} {engine.version} on {loaded.device}, {instances}",
        "inputs": _tensors(loaded.spec.inputs),
        "outputs": _tensors(loaded.spec.outputs),
        "batches": _batches(loaded),
        "rows": _rows(loaded),
        "runs": "inline, in the dispatcher's thread" if loaded.inline else "in a worker thread for each instance",
        "load time": f"{loaded.load_seconds:.2f} s",
    }
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for what, text in facts.items():
        table.add_row(what, escape(text))
    console.print(table)
    if not loaded.measurements:
        return
    costs = Table(box=None, header_style="bold")
    for column in ("BUCKET", "ROWS", "ms", "ROWS/s"):
        costs.add_column(column, justify="left" if column == "BUCKET" else "right")
    for bucket, rows, seconds in loaded.measurements:
        shapes = " ".join("x".join(map(str, shape)) or "scalar" for shape in bucket)
        costs.add_row(shapes, str(rows), f"{seconds * 1e3:.3f}", f"{rows / seconds:,.0f}")
    console.print(costs)


def _tensors(specs: "Sequence[TensorSpec]") -> str:
    return ", ".join(display.tensor(spec.name, spec.data_type.name, spec.shape) for spec in specs)


def _batches(loaded: "Loaded") -> str:
    if loaded.unbatched_because:
        return f"of one row: {loaded.unbatched_because}"
    best = f"best {loaded.best_batch_size}" if loaded.best_batch_size else "best not measured"
    sizes = f", padded up to {', '.join(map(str, loaded.batch_sizes))}" if loaded.batch_sizes else ""
    return f"at most {loaded.max_batch_size} rows, {best}, delay {loaded.config.batching.max_delay_ms:g} ms{sizes}"


def _rows(loaded: "Loaded") -> str:
    if not loaded.spec.batched:
        return "the model has no batch dimension"
    if loaded.unbatched_because:
        return "not batched together"
    if not loaded.config.batching.check_rows:
        return "not compared (batching.check_rows is false)"
    return "compared alone and in a batch: they do not see each other"
