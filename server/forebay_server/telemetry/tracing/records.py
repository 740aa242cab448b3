"""What is kept of a span until the thread that makes spans comes to it.

A `Trace` is the identity of a span that will be; it travels with a request. When what it stands for has ended, a
*record* goes into the queue: a plain tuple `(kind, trace, began, ended, ...)`, whose instants are monotonic seconds.
It holds on to nothing that is large: not the batch, not the request.
"""

from typing import Any, Final

Record = tuple[Any, ...]

CALL: Final = 1
"""`(CALL, trace, began, ended, method, code, reason, key, rows)`: a call. `code` is the canonical name of its status,
`reason` the contract's (empty: none), `key` its model's (None: it has none)."""
ITEM: Final = 2
"""`(ITEM, trace, began, ended, id, code, reason, key, rows)`: an item of a stream."""
JOB: Final = 3
"""`(JOB, trace, began, ended, job, code, reason, key, rows)`: an attempt at a job; `job` is `(id, attempt, wait)`."""
BATCH: Final = 4
"""`(BATCH, trace, began, ended, key, instance, rows, padded_rows, requests, reason, predicted, stamps, error, links)`.
`stamps` are (dispatched, collated, finished), `error` is empty if the batch went well, `links` the traces of those of
its requests that are sampled."""
WEBHOOK: Final = 5
"""`(WEBHOOK, trace, began, ended, job, tries, status, error)`: one try; `status` is that of HTTP, 0: no answer."""
MODEL: Final = 6
"""`(MODEL, trace, began, ended, name, model, version, error)`: a step in bringing a model into service."""


class Trace:
    """A span that will be."""

    __slots__ = ("batches", "by", "decoded", "parent_id", "remote", "span_id", "stamps", "trace_id")

    def __init__(self, trace_id: int, span_id: int, parent_id: int = 0, *, remote: bool = False, by: str = "") -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = parent_id
        """0: it is the first of its trace."""
        self.remote = remote
        """Whether the parent is in another process."""
        self.by = by
        """Which tail rule has kept it; empty: it was sampled from the start."""
        self.decoded = 0.0
        """When its request was built; 0: not known."""
        self.stamps: tuple[float, float, float] | None = None
        """Of the last batch that it was in: (dispatched, collated, finished)."""
        self.batches: list[Trace] = []
        """All batches that it was in: more than one if it was split, or ran again after a failure."""
