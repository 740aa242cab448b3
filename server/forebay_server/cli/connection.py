"""The options of the commands that call a server, the client that they make, and the model that they are about."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import click

from forebay_server.cli.guard import Failed
from forebay_server.errors import ConfigError

if TYPE_CHECKING:
    from forebay_client import Client, ModelVersion

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
            metavar="NAME",
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
            metavar="ADDRESS",
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
    from forebay_client import Client, Tls

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
    try:
        return Client(connection["address"], tls=tls, tenant=connection["tenant"])
    except ValueError as error:
        raise ConfigError(str(error)) from error


def find_version(client: "Client", name: str, version: str) -> "ModelVersion":
    """The version of a model that a command is about.

    Args:
        client: Asks the server.
        name: The model's.
        version: A number or a label; empty: the default.

    Raises:
        Failed: There is no such version.
    """
    found = client.model(name).find(version)
    if found is None:
        what = f"has no version {version!r}" if version else "has no version that is ready"
        raise Failed(f"the model {name!r} {what}")
    return found
