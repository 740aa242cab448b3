"""What options take that click has no type for."""

from typing import Any, Final

import click

LONGEST: Final = 1e9
"""Seconds: some thirty years, which is for ever. The contract and gRPC can't say much more."""


class _Seconds(click.FloatRange):
    """A positive, finite number of seconds."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As click wants it."""
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            self.fail(f"{value} is not a positive number of seconds", param, ctx)
        return min(seconds, LONGEST)


SECONDS: Final = _Seconds(0, min_open=True)
