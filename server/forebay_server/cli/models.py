"""`forebay models`: lists the models of a server, or shows one with its statistics."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import click

from forebay_server.cli import display
from forebay_server.cli.connection import Connection, client_options, connect

if TYPE_CHECKING:
    from rich.console import Console

    from forebay_client import Model, ModelStatistics, ModelVersion, TensorSpec


@click.command()
@click.argument("name", default="")
@client_options
def models(name: str, **connection: Unpack[Connection]) -> None:
    """List the models of a server, or show one with its statistics."""
    console = display.console()
    with connect(connection) as client:
        if not name:
            _list(console, client.models())
            return
        model, statistics = client.model(name), {figures.version: figures for figures in client.statistics(name)}
    for version in model.versions:
        _show(console, model, version, statistics.get(version.version))


def _list(console: "Console", models: "list[Model]") -> None:
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in ("MODEL", "VERSION", "STATE", "ENGINE", "INPUTS", "OUTPUTS", "BATCH"):
        table.add_column(column)
    for model in models:
        for version in model.versions:
            default = " (default)" if version.version == model.default_version else ""
            table.add_row(
                model.name,
                f"{version.version}{default}",
                version.state,
                version.engine,
                _tensors(version.inputs),
                _tensors(version.outputs),
                str(version.max_batch_size),
            )
    console.print(table)


def _tensors(specs: "Sequence[TensorSpec]") -> str:
    return ", ".join(display.tensor(spec.name, spec.data_type, spec.shape) for spec in specs)


def _show(console: "Console", model: "Model", version: "ModelVersion", figures: "ModelStatistics | None") -> None:
    labels = [label for label, number in model.labels.items() if number == version.version]
    console.print(f"{model.name} version {version.version}", style="bold", highlight=False, markup=False)
    facts = {
        "state": f"{version.state} {version.state_message}".strip(),
        "labels": ", ".join(labels),
        "engine": f"{version.engine}, {display.count(version.instances, 'instance')}, {version.run_mode}",
        "inputs": _tensors(version.inputs),
        "outputs": _tensors(version.outputs),
        "batches": f"at most {version.max_batch_size} rows, best {version.best_batch_size or 'not measured'}, "
        f"delay {version.max_delay * 1e3:g} ms",
        "not batched": version.unbatched_because,
    }
    if figures is not None:
        facts |= {
            "requests": ", ".join(
                f"{outcome.requests} {outcome.code}{f' ({outcome.reason})' if outcome.reason else ''}"
                for outcome in figures.outcomes
            )
            or "none",
            "waiting now": f"{figures.queued_rows} rows, {figures.held_bytes} bytes held",
        }
        for what, latency in (
            ("request", figures.request_time),
            ("queue", figures.queue_time),
            ("compute", figures.compute_time),
        ):
            if latency.count:
                facts[f"{what} time"] = (
                    f"p50 {latency.p50 * 1e3:.3g} ms, p90 {latency.p90 * 1e3:.3g} ms, p99 {latency.p99 * 1e3:.3g} ms"
                )
        facts["batch sizes"] = ", ".join(f"{rows}: {count}" for rows, count in sorted(figures.batch_sizes.items()))
        facts["started by"] = ", ".join(f"{reason}: {count}" for reason, count in figures.dispatches.items())
        buckets: dict[str, list[str]] = {}
        for cost in figures.costs:
            buckets.setdefault(cost.bucket, []).append(f"{cost.rows}: {cost.predicted * 1e3:.3g} ms")
        for bucket, costs in buckets.items():
            facts["predicted" if len(buckets) == 1 else f"predicted [{bucket}]"] = ", ".join(costs)
    for what, text in facts.items():
        if text:
            console.print(f"  {what:<12} {text}", highlight=False, markup=False)
