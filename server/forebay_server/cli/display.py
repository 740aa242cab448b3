"""How things are shown: tables as wide as the terminal, never folded where a program reads them, and tensors."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 500  # columns where the output is no terminal


def console() -> "Console":
    """The console of stdout."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def tensor(name: str, data_type: str, shape: Iterable[int | str]) -> str:
    """A tensor's name, type and shape, such as `x FP32[?, 64]`. Lengths below zero are free."""
    lengths = ("?" if isinstance(length, int) and length < 0 else str(length) for length in shape)
    return f"{name} {data_type}[{', '.join(lengths)}]"


def count(number: int, what: str) -> str:
    """`1 instance`, `2 instances`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
