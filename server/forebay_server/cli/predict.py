"""`forebay predict` and `forebay stream`: send the rows of files to a model, and collect the results in order."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Unpack

import click

from forebay_server.cli.connection import Connection, client_options, connect, find_version
from forebay_server.cli.progress import Advance, progress
from forebay_server.cli.values import SECONDS

if TYPE_CHECKING:
    from forebay_client import Client, ForebayError, Prediction
    from forebay_server.cli.results import Results
    from forebay_server.cli.rows import Rows

    Outcome = Prediction | ForebayError


def request_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the arguments and options that both commands have."""
    for option in (
        click.option("--deadline", default=30.0, show_default=True, type=SECONDS, help="For each request."),
        click.option(
            "-o",
            "--output",
            default="-",
            metavar="FILE",
            help="Where the results go: .npz, .npy, .json or .csv; - is stdout, as JSON. [-]",
        ),
        click.option("--version", default="", metavar="VERSION", help="A number or a label. [the default]"),
        click.argument("inputs", nargs=-1, required=True, metavar="[NAME=]FILE..."),
        click.argument("model"),
    ):
        command = option(command)
    return command


@click.command()
@request_options
@click.option(
    "--rows", "size", default=32, show_default=True, type=click.IntRange(1), metavar="N", help="Rows in a request."
)
@click.option(
    "--in-flight",
    default=8,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Requests at a time, at most.",
)
@client_options
def predict(
    model: str,
    version: str,
    inputs: tuple[str, ...],
    output: str,
    deadline: float,
    size: int,
    in_flight: int,
    **connection: Unpack[Connection],
) -> None:
    """Send the rows of files to a model, some in each request.

    Files are .npy, .npz, .json, .jsonl or .csv.

    \b
      forebay predict digits rows.csv
      forebay predict digits images.npy -o digits.npz
      forebay predict two a=a.npy b=b.npy -o result.json
    """

    def run(client: "Client", rows: "Rows", results: "Results", advance: Advance) -> None:
        step = size if rows.batched else 1
        pool = ThreadPoolExecutor(in_flight, thread_name_prefix="forebay-predict")
        waiting: deque[tuple[int, int, Future[Outcome]]] = deque()
        try:
            for start in range(0, rows.total, step):
                stop = min(start + step, rows.total)
                request = rows.request(start, stop)
                waiting.append((start, stop, pool.submit(_outcome, client, model, request, version, deadline)))
                if len(waiting) >= 2 * in_flight:
                    _collect(waiting, results, advance)
            while waiting:
                _collect(waiting, results, advance)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    _command(model, version, inputs, output, connection, run)


@click.command()
@request_options
@click.option(
    "--rows", "size", default=1, show_default=True, type=click.IntRange(1), metavar="N", help="Rows in an item."
)
@click.option(
    "--items-per-message",
    default=32,
    show_default=True,
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Items in a message, at most.",
)
@click.option(
    "--in-flight",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Items at a time, at most.",
)
@client_options
def stream(
    model: str,
    version: str,
    inputs: tuple[str, ...],
    output: str,
    deadline: float,
    size: int,
    items_per_message: int,
    in_flight: int,
    **connection: Unpack[Connection],
) -> None:
    """Send the rows of files to a model over one stream.

    Files are .npy, .npz, .json, .jsonl or .csv.

    \b
      forebay stream digits images.npy -o digits.npz
    """

    def run(client: "Client", rows: "Rows", results: "Results", advance: Advance) -> None:
        from forebay_client import ForebayError

        step = size if rows.batched else 1
        items = (rows.request(start, min(start + step, rows.total)) for start in range(0, rows.total, step))
        done = 0
        with client.stream(
            model,
            items,
            failures="yield",
            version=version,
            deadline=deadline,
            window=in_flight,
            items_per_message=items_per_message,
        ) as outcomes:
            try:
                for outcome in outcomes:
                    stop = min(done + step, rows.total)
                    results.add(done, stop, outcome)
                    advance(stop - done, failed=stop - done if isinstance(outcome, ForebayError) else 0)
                    done = stop
            except ForebayError as error:
                if done < rows.total:  # what was never sent fails with the stream
                    results.add(done, rows.total, error)
                    advance(rows.total - done, failed=rows.total - done)

    _command(model, version, inputs, output, connection, run)


def _command(
    model: str,
    version: str,
    inputs: tuple[str, ...],
    output: str,
    connection: Connection,
    run: "Callable[[Client, Rows, Results, Advance], None]",
) -> None:
    """What both commands do around their sending."""
    from forebay_server.cli.results import Results, check_place
    from forebay_server.cli.rows import read_rows

    check_place(output)
    with connect(connection) as client:
        rows = read_rows(find_version(client, model, version), inputs)
        results = Results(batched=rows.batched)
        start = time.monotonic()
        with progress(rows.total) as advance:
            run(client, rows, results, advance)
        seconds = time.monotonic() - start
    results.write(output)
    results.report(seconds)


def _outcome(client: "Client", model: str, inputs: dict[str, Any], version: str, deadline: float) -> "Outcome":
    from forebay_client import ForebayError  # loaded long since; not so at the top

    try:
        return client.predict(model, inputs, version=version, deadline=deadline)
    except ForebayError as error:
        return error


def _collect(waiting: "deque[tuple[int, int, Future[Outcome]]]", results: "Results", advance: Advance) -> None:
    start, stop, future = waiting.popleft()
    failed = results.failed
    results.add(start, stop, future.result())
    advance(stop - start, failed=results.failed - failed)
