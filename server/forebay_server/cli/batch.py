"""`forebay batch`: a whole file of rows, through jobs or over a stream, that can be interrupted and gone on with."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

import click

from forebay_server.cli.connection import Connection, client_options, connect, find_version
from forebay_server.cli.guard import Failed
from forebay_server.cli.jobs import PRIORITIES, keeps_jobs
from forebay_server.cli.progress import progress
from forebay_server.cli.values import SECONDS
from forebay_server.errors import ConfigError

if TYPE_CHECKING:
    from forebay_server.cli.journal import Chunk, Journal
    from forebay_server.cli.results import Results
    from forebay_server.cli.rows import Rows


@click.command()
@click.argument("model")
@click.argument("inputs", nargs=-1, required=True, metavar="[NAME=]FILE...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Where the results go: .npz, .npy, .json or .csv.",
)
@click.option("--via", type=click.Choice(["jobs", "stream"]), default="jobs", show_default=True, help="How rows go.")
@click.option(
    "--rows", "size", default=32, show_default=True, type=click.IntRange(1), metavar="N", help="Rows in a request."
)
@click.option(
    "--in-flight",
    default=64,
    show_default=True,
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Requests at a time, at most.",
)
@click.option("--version", default="", metavar="VERSION", help="A number or a label. [the default]")
@click.option("--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True, help="Among jobs.")
@click.option("--deadline", default=600.0, show_default=True, type=SECONDS, help="For each request of a stream.")
@click.option("--restart", is_flag=True, help="Start over, whatever an earlier run has done.")
@client_options
def batch(
    model: str,
    inputs: tuple[str, ...],
    output: Path,
    via: str,
    size: int,
    in_flight: int,
    version: str,
    priority: Literal["high", "normal", "low"],
    deadline: float,
    *,
    restart: bool,
    **connection: Unpack[Connection],
) -> None:
    """Send all rows of large files to a model.

    Files are .npy, .npz, .json, .jsonl or .csv.

    The results are written when all are there. If it is interrupted, the same command goes on where it was:
    FILE.journal, beside the output, has what is done. Rows without a result are told in FILE.failures.jsonl.

    \b
      forebay batch digits images.npy -o labels.npz
      forebay batch digits rows.csv -o labels.csv --via stream
    """
    from forebay_server.cli.chunks import Batch, through_jobs, through_stream
    from forebay_server.cli.journal import Journal
    from forebay_server.cli.results import check_place
    from forebay_server.cli.rows import read_rows

    if str(output) == "-":
        raise ConfigError("the results of a batch go into a file, not to stdout (-)")
    check_place(str(output))
    journal = Journal(output.with_name(f"{output.name}.journal"))
    if restart:
        journal.discard()
    asked = {"model": model, "version": version, "rows": size, "input": _digest(inputs)}
    try:
        with connect(connection) as client:
            going_on = journal.open(asked)
            found = find_version(client, model, journal.version or version)
            rows = read_rows(found, inputs)
            if not going_on:
                journal.begin(asked, str(found.version), _chunks(rows, size))
            total, done = journal.rows()
            if going_on:
                click.echo(f"going on: {done:,} of {total:,} rows are done", err=True)
            start = time.monotonic()
            with progress(total, done) as advance, keeps_jobs():
                run = Batch(client, model, rows, journal, in_flight, priority, advance)
                _resumable(journal, lambda: through_jobs(run) if via == "jobs" else through_stream(run, deadline))
        seconds = time.monotonic() - start
        results = _finish(journal, output, batched=rows.batched)
    finally:
        journal.close()
    results.report(seconds, total - done)


def _resumable(journal: "Journal", run: Callable[[], None]) -> None:
    """Runs, and says how to go on if that ends early."""
    from forebay_client import ForebayError, Unsupported

    how = "the same command goes on with the rest"
    try:
        run()
    except KeyboardInterrupt:
        total, done = journal.rows()
        click.echo(f"interrupted: {done:,} of {total:,} rows are done; {how}", err=True)
        raise
    except Unsupported:
        raise
    except ForebayError as error:
        total, done = journal.rows()
        raise Failed(f"{error}; {done:,} of {total:,} rows are done, and {how}") from error


def _chunks(rows: "Rows", size: int) -> "list[Chunk]":
    from forebay_server.cli.journal import Chunk

    step = size if rows.batched else 1
    return [Chunk(start, min(start + step, rows.total)) for start in range(0, rows.total, step)]


def _digest(inputs: tuple[str, ...]) -> str:
    """What the files hold, and for which inputs; the same if a file was only moved."""
    digest = hashlib.blake2b(digest_size=16)
    for text in inputs:
        name, equals, path = text.partition("=")
        place = Path(path if equals and not Path(text).exists() else text)
        try:
            with place.open("rb") as file:
                content = hashlib.file_digest(file, "blake2b").digest()
        except OSError as error:
            raise ConfigError(f"{place}: {error.strerror or error}") from error
        digest.update(f"{name if equals else ''}={place.suffix}".encode() + content)
    return digest.hexdigest()


def _finish(journal: "Journal", output: Path, *, batched: bool) -> "Results":
    """Writes the output, which gets its name when it is complete and on disk, and the file of failures, if there are.

    Raises:
        Failed: The results don't fit the format; the journal keeps them.
    """
    from forebay_server.cli.results import Failure, Results

    results = Results(batched=batched)
    for outcome in journal.outcomes():
        if isinstance(outcome, Failure):
            results.fail(outcome)
        else:
            results.add(*outcome)
    failures = output.with_name(f"{output.name}.failures.jsonl")
    if results.failures:
        lines = "".join(json.dumps(failure.plain()) + "\n" for failure in results.failures)
        _replace(failures, lambda place: place.write_text(lines, encoding="utf-8"))
        click.echo(f"the rows without a result are in {failures}", err=True)
    else:
        failures.unlink(missing_ok=True)
    _replace(output, lambda place: results.write(str(place)))
    journal.remove()
    return results


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file that is either there as a whole or not at all, also after a power failure."""
    temporary = path.with_name(f".{path.stem}.unfinished{path.suffix}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
