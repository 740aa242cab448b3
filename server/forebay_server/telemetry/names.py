"""All names under which things are counted and measured, in one place. Labels have a bounded set of values each."""

from typing import Final

# Kinds of events, the first item of the tuples that the core and the services leave.
BATCH: Final = "batch"
"""`(BATCH, key, rows, requests, padded_rows, reason, predicted, seconds)`; `padded_rows` were given to the engine."""
DONE: Final = "done"
"""`(DONE, key, outcome, queue_seconds, total_seconds)`."""
REFUSED: Final = "refused"
"""`(REFUSED, key, reason)`."""

# Outcomes that are no reasons of errors.
OK: Final = "OK"
CANCELLED: Final = "CANCELLED"

UNKNOWN: Final = "UNKNOWN"
"""The status code of a reason that nobody has named."""
