"""The command `forebay`, and its commands by name. A command's module is imported when it is asked for."""

from importlib import import_module, metadata
from typing import Final

import click

GROUPS: Final = {
    "Serve models": {
        "serve": "forebay_server.cli.serve:serve",
        "check": "forebay_server.cli.check:check",
        "config": "forebay_server.cli.config:config",
        "compile": "forebay_server.cli.compile:compile_",
        "build-plan": "forebay_server.cli.build_plan:build_plan",
    },
    "Call them": {
        "predict": "forebay_server.cli.predict:predict",
        "stream": "forebay_server.cli.predict:stream",
        "batch": "forebay_server.cli.batch:batch",
    },
    "Hand over jobs": {
        "submit": "forebay_server.cli.jobs:submit",
        "result": "forebay_server.cli.jobs:result",
        "watch": "forebay_server.cli.jobs:watch",
        "cancel": "forebay_server.cli.jobs:cancel",
        "jobs": "forebay_server.cli.jobs:jobs",
    },
    "Look at a server": {
        "models": "forebay_server.cli.models:models",
        "health": "forebay_server.cli.health:health",
        "top": "forebay_server.cli.top:top",
        "profile": "forebay_server.cli.profile:profile",
    },
}
COMMANDS: Final = {name: place for group in GROUPS.values() for name, place in group.items()}


class Commands(click.Group):
    """A group whose commands are imported one by one."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """The names, in the order of the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        """The command of this name."""
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command = getattr(import_module(module), name)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The part of the help page that lists them, in their groups."""
        width = max(map(len, COMMANDS))
        for title, group in GROUPS.items():
            with formatter.section(title):
                commands = ((name, self.get_command(ctx, name)) for name in group)
                formatter.write_dl(
                    [
                        (name.ljust(width), command.get_short_help_str(formatter.width))
                        for name, command in commands
                        if command is not None
                    ]
                )


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001  # click's signature
    if value and not context.resilient_parsing:
        click.echo(f"forebay {metadata.version('forebay')}")
        context.exit()


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version and exit."
)
@click.pass_context
def root(context: click.Context) -> None:
    """Forebay: a gRPC-native inference server.

    Requests collect in front of an engine and go through together.

    \b
      forebay serve model.onnx
      forebay predict model rows.csv
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
