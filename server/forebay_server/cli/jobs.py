"""`forebay submit`, `result`, `watch`, `cancel` and `jobs`: durable jobs from the command line."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Unpack

import click

from forebay_server.cli import display
from forebay_server.cli.connection import Connection, client_options, connect, find_version
from forebay_server.cli.guard import FAILED, Failed
from forebay_server.cli.values import SECONDS
from forebay_server.errors import ConfigError

if TYPE_CHECKING:
    from forebay_client import Client, Job, Result

PRIORITIES = ("high", "normal", "low")
STATES = ("pending", "running", "succeeded", "failed", "cancelled", "expired")

_output = click.option(
    "-o",
    "--output",
    default="-",
    metavar="FILE",
    help="Where the result goes: .npz, .npy, .json or .csv; - is stdout, as JSON. [-]",
)


@contextmanager
def keeps_jobs() -> Iterator[None]:
    """Says it in one sentence if the server has no jobs."""
    from forebay_client import Unsupported

    try:
        yield
    except Unsupported as error:
        if error.reason:
            raise
        raise Failed("the server keeps no jobs; start it with --jobs") from error


@click.command()
@click.argument("model")
@click.argument("inputs", nargs=-1, required=True, metavar="[NAME=]FILE...")
@click.option("--version", default="", metavar="VERSION", help="A number or a label. [the default]")
@click.option("--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True, help="Among jobs.")
@click.option("--request-id", metavar="KEY", help="The idempotency key: the same one gives the same job. [random]")
@click.option("--expire-after", type=SECONDS, help="The result is of no use later. [never]")
@click.option("--ttl", type=SECONDS, help="How long the result is kept. [the server's default]")
@click.option("--webhook", metavar="URL", help="Whom to tell when it has finished; with --webhook-secret.")
@click.option("--webhook-secret", metavar="NAME", help="The name of the secret that signs that message.")
@click.option("--wait", is_flag=True, help="Wait for the result and print it instead of the id.")
@_output
@client_options
def submit(
    model: str,
    inputs: tuple[str, ...],
    version: str,
    priority: Literal["high", "normal", "low"],
    request_id: str | None,
    expire_after: float | None,
    ttl: float | None,
    webhook: str | None,
    webhook_secret: str | None,
    output: str,
    *,
    wait: bool,
    **connection: Unpack[Connection],
) -> None:
    """Hand over the rows of files as one job, and print its id.

    The job is on the server's disk when the id is printed. `forebay batch` cuts large files into many jobs.
    Files are .npy, .npz, .json, .jsonl or .csv.

    \b
      forebay submit digits images.npy
      forebay submit two a=a.npy b=b.npy --expire-after 3600
      forebay submit digits images.npy --wait -o labels.npz
    """
    from forebay_client import Webhook
    from forebay_server.cli.results import check_place
    from forebay_server.cli.rows import read_rows

    check_place(output)
    if (webhook is None) != (webhook_secret is None):
        raise click.UsageError("--webhook and --webhook-secret go together", click.get_current_context())
    with connect(connection) as client, keeps_jobs():
        rows = read_rows(find_version(client, model, version), inputs)
        if rows.stacked and not rows.batched and rows.total != 1:
            raise ConfigError(f"the model {model!r} takes one row in a job, not {rows.total}; use forebay batch")
        job = client.submit(
            model,
            rows.request(0, rows.total),
            version=version,
            priority=priority,
            request_id=request_id,
            expire_after=expire_after,
            ttl=ttl,
            webhook=Webhook(url=webhook, secret=webhook_secret) if webhook and webhook_secret else None,
        )
        if wait:
            _write(client, client.result(job), output)
            return
    click.echo(job.id)


@click.command()
@click.argument("job", metavar="ID")
@click.option("--wait", is_flag=True, help="Wait until the job has finished.")
@_output
@client_options
def result(job: str, output: str, *, wait: bool, **connection: Unpack[Connection]) -> None:
    """Print what came of a job."""
    from forebay_client import JobNotFinished
    from forebay_server.cli.results import check_place

    check_place(output)
    with connect(connection) as client, keeps_jobs():
        try:
            found = client.result(job, timeout=0)  # whoever mistyped the address should hear so at once
        except JobNotFinished as error:
            if not wait:
                how = _prospect(error.job) if error.job is not None else ""
                raise Failed(f"{error.message}{f' ({how})' if how else ''}; --wait waits for it") from error
            found = client.result(job)
        _write(client, found, output)


@click.command()
@click.argument("job", metavar="ID")
@client_options
def watch(job: str, **connection: Unpack[Connection]) -> int:
    """Print a job's state now and at each change.

    It ends when the job has finished, with exit code 0 if it succeeded, else 1.
    """
    with connect(connection) as client, keeps_jobs():
        found = client.job(job)
        for found in client.watch(job):
            note = _prospect(found)
            click.echo(f"{found.state:<9}  {_what(found)}{f'  {note}' if note else ''}")
    return 0 if found.state == "SUCCEEDED" else FAILED


@click.command()
@click.argument("job", metavar="ID")
@client_options
def cancel(job: str, **connection: Unpack[Connection]) -> None:
    """Cancel a job that has not finished."""
    with connect(connection) as client, keeps_jobs():
        found = client.cancel(job)
    if found.state != "CANCELLED":
        raise Failed(f"job {found.id} had finished before: it is {found.state}")
    click.echo(f"job {found.id} is {found.state}")


@click.command()
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(STATES, case_sensitive=False),
    help="Only jobs in this state; repeat it for more. Those that were given up are `failed`.",
)
@click.option("--model", default="", metavar="NAME", help="Only jobs of this model.")
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(1), metavar="N", help="The most jobs shown."
)
@click.option("--json", "as_json", is_flag=True, help="An object on each line instead of a table.")
@client_options
def jobs(states: tuple[str, ...], model: str, limit: int, *, as_json: bool, **connection: Unpack[Connection]) -> None:
    """List jobs, the newest first.

    \b
      forebay jobs
      forebay jobs --state failed --model digits
    """
    with connect(connection) as client, keeps_jobs():
        found: list[Job] = []
        for job in client.jobs(states=[state.upper() for state in states], model=model, page_size=min(limit, 1000)):
            found.append(job)
            if len(found) == limit:
                break
    if as_json:
        for job in found:
            click.echo(json.dumps(_plain(job)))
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in ("ID", "STATE", "MODEL", "VERSION", "TRIES", "CREATED", "ENDED", "KEY"):
        table.add_column(column, no_wrap=column == "ID")
    for job in found:
        ended = f"{job.end_time:%Y-%m-%d %H:%M:%S}" if job.end_time is not None else ""
        cells = (
            *(job.id, job.state, job.model, str(job.version or ""), str(job.attempt)),
            *(f"{job.create_time:%Y-%m-%d %H:%M:%S}", ended, job.request_id),
        )
        table.add_row(*map(escape, cells))
    display.console().print(table)


def _write(client: "Client", found: "Result", output: str) -> None:
    """Writes a result as the other commands write theirs."""
    from forebay_server.cli.results import Results

    arrays = list(found.prediction.values())
    batched = _batched(client, found)
    results = Results(batched=batched)
    results.add(0, len(arrays[0]) if batched and arrays else 1, found.prediction)
    results.write(output)


def _batched(client: "Client", found: "Result") -> bool:
    """Whether the outputs have a dimension of rows; by their shapes if the model that ran is served no more."""
    from forebay_client import NotFound

    try:
        version = client.model(found.job.model).find(str(found.prediction.version))
    except NotFound:
        version = None
    if version is not None:
        return all(spec.batched for spec in version.outputs)
    shapes = [array.shape for array in found.prediction.values()]
    return all(shapes) and len({shape[0] for shape in shapes}) == 1


def _what(job: "Job") -> str:
    """A job in a few words."""
    tries = f", try {job.attempt}" if job.attempt > 1 else ""
    return f"{job.model}{f' version {job.version}' if job.version else ''}{tries}"


def _prospect(job: "Job") -> str:
    """How long a job that waits will wait."""
    if not job.jobs_ahead and job.estimated_wait is None:
        return ""
    ahead = f"about {job.jobs_ahead:,} ahead"
    return f"{ahead}, about {job.estimated_wait.total_seconds():.1f} s" if job.estimated_wait is not None else ahead


def _plain(job: "Job") -> dict[str, Any]:
    """A job as JSON has it: instants in ISO 8601, spans in seconds."""
    instants = ("create_time", "start_time", "end_time", "expire_time", "purge_time")
    plain: dict[str, Any] = {
        name: getattr(job, name) for name in ("id", "state", "model", "version", "attempt", "request_id")
    }
    for name in instants:
        instant = getattr(job, name)
        plain[name] = instant.isoformat() if instant is not None else None
    return plain
