"""The tuples that the core leaves for telemetry in `Core.events`. The first item is the kind.

Telemetry takes them with `events, core.events = core.events, []`. The core never waits for it: a list that nobody takes
is cut at `MOST` and the loss counted.
"""

from typing import Any, Final

Event = tuple[Any, ...]

BATCH: Final = "batch"
"""`(BATCH, key, rows, requests, padded_rows, reason, predicted, seconds)`: a batch has run, well or not. `reason` is a
`Reason`, `predicted` may be None, `seconds` is the time in the engine."""

SERVED: Final = "served"
"""`(SERVED, key, began, ended, arrivals)`: requests of one batch have ended well. All are instants on the monotonic
clock; `arrivals` is a list with one for each request. One event for a batch: one for each request would be felt."""

DONE: Final = "done"
"""`(DONE, key, outcome, queue_seconds, total_seconds)`: a request that was accepted has ended, and no SERVED told it.
`outcome` is `OK`, `CANCELLED`, or the reason of its error."""

REFUSED: Final = "refused"
"""`(REFUSED, key, reason)`: a request was not accepted."""

EXEMPLAR: Final = "exemplar"
"""`(EXEMPLAR, key, trace_id, span_id, queue_seconds, total_seconds)`: a request of a SERVED or DONE has a span; its ids
are in hexadecimal. Tracing reports it, beside those events, so that nobody else pays for it."""

OK: Final = "OK"
CANCELLED: Final = "CANCELLED"

MOST: Final = 200_000
"""Events that are kept for a telemetry that does not come."""
