"""Where tables are printed: as wide as the terminal, and never folded where a program reads them."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 500  # columns where the output is no terminal


def console() -> "Console":
    """The console of stdout."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
