"""The options of the commands that call a server, and the client that they make."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import click

if TYPE_CHECKING:
    from forebay_client import Client

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

ADDRESS = "127.0.0.1:8500"


class Connection(TypedDict):
    """The values of the options."""

    address: str
    tls: bool
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    tls_name: str
    tenant: str


def client_options(command: CommandT) -> CommandT:
    """Gives a command the options that `connect` takes."""
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    for option in (
        click.option(
            "--tenant",
            default="",
            envvar="FOREBAY_TENANT",
            show_envvar=True,
            help="Who calls, for servers that believe it.",
        ),
        click.option("--tls-name", default="", metavar="NAME", help="The name in the server's certificate."),
        click.option("--tls-key", type=file, help="The private key of --tls-cert, PEM."),
        click.option("--tls-cert", type=file, help="Our own certificate chain, PEM (mTLS)."),
        click.option("--tls-ca", type=file, help="The CAs of the server's certificate, PEM."),
        click.option("--tls", is_flag=True, help="Use TLS; implied by the other --tls options."),
        click.option(
            "--address",
            default=ADDRESS,
            show_default=True,
            envvar="FOREBAY_ADDRESS",
            show_envvar=True,
            help="host:port or unix:/path.",
        ),
    ):
        command = option(command)
    return command


def connect(connection: Connection) -> "Client":
    """The client. The first call connects."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own log would stand among our sentences
    from forebay_client import Client, Tls  # noqa: PLC0415  # heavy

    tls = None
    if (
        connection["tls"]
        or connection["tls_ca"]
        or connection["tls_cert"]
        or connection["tls_key"]
        or connection["tls_name"]
    ):
        if (connection["tls_cert"] is None) != (connection["tls_key"] is None):
            raise click.UsageError("--tls-cert and --tls-key go together", click.get_current_context())
        tls = Tls(
            ca=connection["tls_ca"],
            certificate=connection["tls_cert"],
            key=connection["tls_key"],
            server_name=connection["tls_name"],
        )
    return Client(connection["address"], tls=tls, tenant=connection["tenant"])
