"""`forebay health`: asks for the health of a server; the exit code answers, so that probes can use it."""

from typing import Unpack

import click

from forebay_server.cli.connection import Connection, client_options, connect
from forebay_server.cli.guard import FAILED
from forebay_server.cli.values import SECONDS


@click.command()
@click.argument("service", default="")
@click.option("--deadline", default=5.0, show_default=True, type=SECONDS, help="For the answer.")
@client_options
def health(service: str, deadline: float, **connection: Unpack[Connection]) -> int:
    """Ask whether a server is healthy.

    The exit code is 0 if it is, else 1. SERVICE is the full name of a gRPC service, or `model/NAME` for one model;
    without it, the server as a whole.
    """
    with connect(connection) as client:
        state = client.health(service, deadline=deadline)
    click.echo(state.value)
    return 0 if state == "SERVING" else FAILED
