"""The tuples that the core leaves for telemetry in `Core.events`. The first item is the kind.

Telemetry reads a list and clears it (`telemetry.feed`). The core never waits for that: of a list that nobody reads the
older half is dropped at `MOST`. The services leave `REFUSED` and `EXEMPLAR` in a list of their own.
"""

from typing import Any, Final

Event = tuple[Any, ...]

PREDICT: Final = 0
STREAM: Final = 1
JOB: Final = 2
METHODS: Final = ("Predict", "StreamPredict", "Submit")
"""How a request came in, by its `Request.method`."""
REASONS: Final = {1: "full", 2: "idle", 3: "delay", 4: "deadline", 5: "drain"}
"""What started a batch, by its `Reason`."""

NOBODY: Final = ("", 0)
"""The key of requests that name no version of a model that is served."""

BATCH: Final = "batch"
"""`(BATCH, key, rows, requests, padded_rows, reason, predicted, seconds)`: a batch has run, well or not. `reason` is a
`Reason`, `predicted` may be None, `seconds` is the time in the engine."""

SERVED: Final = "served"
"""`(SERVED, key, method, began, ended, arrivals)`: requests of one batch and method have ended well. All are instants
on the monotonic clock; `arrivals` is a list with one for each request. One event for a batch: one for each request
would be felt."""

DONE: Final = "done"
"""`(DONE, key, method, outcome, queue_seconds, total_seconds)`: a request that was accepted has ended, and no SERVED
told it. `outcome` is `OK`, `CANCELLED`, or the reason of its error."""

REFUSED: Final = "refused"
"""`(REFUSED, key, method, reason, tenant)`: a request was not accepted."""

EXEMPLAR: Final = "exemplar"
"""`(EXEMPLAR, key, method, seconds, trace_id, span_id, at)`: a request took so long, and there is a trace of it. The
ids are integers, `at` is in seconds since 1970. Tracing reports it, beside the event that counts the request."""

OK: Final = "OK"
CANCELLED: Final = "CANCELLED"

MOST: Final = 200_000
"""Events that are kept for a telemetry that does not come."""
