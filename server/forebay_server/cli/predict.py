"""`forebay predict` and `forebay stream`: send the rows of files to a model, and collect the results in order."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Unpack

import click

from forebay_server.cli.connection import Connection, client_options, connect
from forebay_server.cli.guard import Failed
from forebay_server.errors import ConfigError

if TYPE_CHECKING:
    from forebay_client import Client, ForebayError, ModelVersion, Prediction
    from forebay_server.cli.results import Results
    from forebay_server.cli.rows import Rows

    Outcome = Prediction | ForebayError

Advance = Callable[[int], None]


def request_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options that both commands have."""
    for option in (
        click.option("--deadline", default=30.0, show_default=True, help="Seconds for each request."),
        click.option(
            "--output",
            default="-",
            metavar="FILE",
            help="Where the results go: .npz, .npy, .json or .csv; - is stdout, as JSON. [-]",
        ),
        click.option(
            "--input",
            "inputs",
            multiple=True,
            required=True,
            metavar="[NAME=]FILE",
            help="Rows: .npy, .npz, .json, .jsonl or .csv. Repeat it for further inputs.",
        ),
        click.option("--version", default="", metavar="VERSION", help="A number or a label. [the default]"),
        click.option("--model", default="", metavar="NAME", help="The model. [the only one of the server]"),
    ):
        command = option(command)
    return command


@click.command()
@request_options
@click.option("--batch-rows", default=32, show_default=True, type=click.IntRange(1), help="Rows in a request.")
@click.option("--concurrency", default=8, show_default=True, type=click.IntRange(1), help="Requests at a time.")
@client_options
def predict(
    model: str,
    version: str,
    inputs: tuple[str, ...],
    output: str,
    deadline: float,
    batch_rows: int,
    concurrency: int,
    **connection: Unpack[Connection],
) -> None:
    """Send the rows of files to a model, some in each request.

    \b
      forebay predict --input rows.csv
      forebay predict --model digits --input images.npy --output digits.npz
      forebay predict --model two --input a=a.npy --input b=b.npy --output result.json
    """

    def run(client: "Client", name: str, rows: "Rows", results: "Results", advance: Advance) -> None:
        step = batch_rows if rows.batched else 1
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="forebay-predict")
        waiting: deque[tuple[int, int, Future[Outcome]]] = deque()
        try:
            for start in range(0, rows.total, step):
                stop = min(start + step, rows.total)
                request = rows.request(start, stop)
                waiting.append((start, stop, pool.submit(_outcome, client, name, request, version, deadline)))
                if len(waiting) >= 2 * concurrency:
                    _collect(waiting, results, advance)
            while waiting:
                _collect(waiting, results, advance)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    _command(model, version, inputs, output, deadline, connection, run)


@click.command()
@request_options
@click.option("--batch-rows", default=1, show_default=True, type=click.IntRange(1), help="Rows in an item.")
@click.option("--items-per-message", default=32, show_default=True, type=click.IntRange(1, 1024), help="At most.")
@click.option("--window", default=256, show_default=True, type=click.IntRange(1), help="Items in flight.")
@client_options
def stream(
    model: str,
    version: str,
    inputs: tuple[str, ...],
    output: str,
    deadline: float,
    batch_rows: int,
    items_per_message: int,
    window: int,
    **connection: Unpack[Connection],
) -> None:
    """Send the rows of files to a model over one stream.

    \b
      forebay stream --model digits --input images.npy --output digits.npz
    """

    def run(client: "Client", name: str, rows: "Rows", results: "Results", advance: Advance) -> None:
        from forebay_client import ForebayError  # noqa: PLC0415  # heavy

        step = batch_rows if rows.batched else 1
        items = (rows.request(start, min(start + step, rows.total)) for start in range(0, rows.total, step))
        done = 0
        with client.stream(
            name,
            items,
            failures="yield",
            version=version,
            deadline=deadline,
            window=window,
            items_per_message=items_per_message,
        ) as outcomes:
            try:
                for outcome in outcomes:
                    stop = min(done + step, rows.total)
                    results.add(done, stop, outcome)
                    advance(stop - done)
                    done = stop
            except ForebayError as error:
                if done < rows.total:  # what was never sent fails with the stream
                    results.add(done, rows.total, error)
                    advance(rows.total - done)

    _command(model, version, inputs, output, deadline, connection, run)


def _command(
    model: str,
    version: str,
    inputs: tuple[str, ...],
    output: str,
    deadline: float,
    connection: Connection,
    run: "Callable[[Client, str, Rows, Results, Advance], None]",
) -> None:
    """What both commands do around their sending."""
    from forebay_server.cli.results import Results, check_place  # noqa: PLC0415  # heavy
    from forebay_server.cli.rows import read_rows  # noqa: PLC0415  # heavy

    if deadline <= 0:
        raise ConfigError(f"--deadline is a positive number of seconds, not {deadline:g}")
    check_place(output)
    with connect(connection) as client:
        name, found = _model(client, model, version)
        rows = read_rows(found, inputs)
        results = Results(batched=rows.batched)
        start = time.monotonic()
        with _progress(rows.total) as advance:
            run(client, name, rows, results, advance)
        seconds = time.monotonic() - start
    results.write(output)
    rate = f", {results.rows / seconds:,.0f} rows/s" if seconds > 0 else ""
    click.echo(f"{results.rows:,} rows in {seconds:.2f} s{rate}, {results.failed:,} failed", err=True)
    for cause in results.causes():
        click.echo(f"  {cause}", err=True)
    if results.failures:
        raise Failed(f"{results.failed:,} of {results.rows:,} rows have no result")


def _model(client: "Client", name: str, version: str) -> "tuple[str, ModelVersion]":
    if name:
        model = client.model(name)
    else:
        models = client.models()
        if len(models) != 1:
            names = ", ".join(model.name for model in models) or "none"
            raise ConfigError(f"the server has not just one model; name one with --model ({names})")
        model = models[0]
    found = model.find(version)
    if found is None:
        what = f"has no version {version!r}" if version else "has no version that is ready"
        raise Failed(f"model {model.name!r} {what}")
    return model.name, found


def _outcome(client: "Client", model: str, inputs: dict[str, Any], version: str, deadline: float) -> "Outcome":
    from forebay_client import ForebayError  # noqa: PLC0415  # loaded long since; not so at the top

    try:
        return client.predict(model, inputs, version=version, deadline=deadline)
    except ForebayError as error:
        return error


def _collect(waiting: "deque[tuple[int, int, Future[Outcome]]]", results: "Results", advance: Advance) -> None:
    start, stop, future = waiting.popleft()
    results.add(start, stop, future.result())
    advance(stop - start)


@contextmanager
def _progress(rows: int) -> Iterator[Advance]:
    """A bar on stderr; nothing where that is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda _rows: None
        return
    from rich.console import Console  # noqa: PLC0415  # heavy
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn  # noqa: PLC0415  # heavy

    columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rows", total=rows)
        yield lambda count: bar.advance(task, count)
