"""All names under which things are counted and measured, in one place. Labels have a bounded set of values each."""

from typing import Final

from forebay_server.scheduling.events import BATCH, CANCELLED, DONE, OK, REFUSED, SERVED

__all__ = ["BATCH", "CANCELLED", "DONE", "OK", "REFUSED", "SERVED", "UNKNOWN"]

UNKNOWN: Final = "UNKNOWN"
"""The status code of a reason that nobody has named."""
