"""`forebay top`: a live view of a running server. `watched` works out what is seen, `screen` how it looks."""

import json
import shutil
import signal
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Final, Unpack

import click

from forebay_server.cli.connection import Connection, client_options, connect
from forebay_server.cli.watched import Watch

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from forebay_client import Client
    from forebay_server.cli.watched import View

ANSWER: Final = 2.0  # seconds for an answer, or the interval if that is longer
LOOK: Final = 0.1  # seconds between looks at the size of the terminal
PIPE_SIZE: Final = (120, 24)  # columns and lines where the output is no terminal


@click.command()
@click.option(
    "--interval",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    metavar="SECONDS",
    help="Between questions to the server.",
)
@click.option("--once", is_flag=True, help="Show one interval, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each interval; times are in seconds.")
@client_options
def top(interval: float, once: bool, as_json: bool, **connection: Unpack[Connection]) -> int:  # noqa: FBT001  # click's way
    """Watch what a server does, live.

    Requests, latencies, batches, queues, engines, jobs. Rates are those of the last interval; latencies, batches and
    reasons those of the last 10 seconds. Ctrl-C ends it.

    \b
      forebay top
      forebay top --once --json | jq .ok_rate
    """
    if not once and not as_json and not sys.stdout.isatty():
        raise click.UsageError("stdout is no terminal; use --once or --json", click.get_current_context())
    watch = Watch(connection["address"])
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # the terminal is to be left in order
    try:
        with connect(connection) as client:
            if once:
                _once(client, watch, interval, as_json=as_json)
            elif as_json:
                _lines(client, watch, interval)
            else:
                _live(client, watch, interval)
    except KeyboardInterrupt:
        return 0  # the way to end it
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _ask(client: "Client", watch: Watch, interval: float) -> None:
    """Asks the server, and has the watch know what came of it."""
    from forebay_client import ForebayError

    try:
        statistics = client.server_statistics(deadline=max(ANSWER, interval))
    except ForebayError as error:
        watch.failed(str(error), now=time.monotonic())
    else:
        watch.answered(statistics, now=time.monotonic())


def _once(client: "Client", watch: Watch, interval: float, *, as_json: bool) -> None:
    for pause in (interval, 0.0):
        watch.answered(client.server_statistics(deadline=max(ANSWER, interval)), now=time.monotonic())
        time.sleep(pause)
    view = watch.view(now=time.monotonic())
    if as_json:
        click.echo(_json(view))
        return
    console = _console()
    console.print(_drawn(view, console, height=1_000_000))


def _lines(client: "Client", watch: Watch, interval: float) -> None:
    while True:
        _ask(client, watch, interval)
        click.echo(_json(watch.view(now=time.monotonic())))
        sys.stdout.flush()
        time.sleep(interval)


def _live(client: "Client", watch: Watch, interval: float) -> None:
    from rich.live import Live

    console = _console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            _ask(client, watch, interval)
            until = time.monotonic() + interval
            drawn = None
            while (now := time.monotonic()) < until:
                view = watch.view(now=now)
                seen = (console.size, view.lost_for is not None and int(view.lost_for))
                if seen != drawn:
                    live.update(_drawn(view, console, height=console.size.height), refresh=True)
                    drawn = seen
                time.sleep(min(LOOK, max(0.0, until - now)))


def _console() -> "Console":
    from rich.console import Console

    width = None if sys.stdout.isatty() else shutil.get_terminal_size(PIPE_SIZE).columns
    return Console(highlight=False, width=width)


def _drawn(view: "View", console: "Console", *, height: int) -> "Text":
    from forebay_server.cli.screen import BLOCKS, PLAIN, screen

    ramp = PLAIN if console.options.ascii_only else BLOCKS
    return screen(view, width=console.size.width, height=height, ramp=ramp)


def _json(view: "View") -> str:
    """A view as a line of JSON. Sizes of batches are named, not counted off."""
    from forebay_server.cli.screen import SIZES

    found = asdict(view)
    for model in found["models"]:
        model["batch_sizes"] = {name: count for name, count in zip(SIZES, model["batch_sizes"], strict=True) if count}
    del found["history"]
    return json.dumps(found)
