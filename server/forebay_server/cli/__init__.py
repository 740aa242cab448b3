"""The commands. `main` is what `forebay` runs; `guard` tells its exit codes."""

from forebay_server.cli.guard import main

__all__ = ["main"]
