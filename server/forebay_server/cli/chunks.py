"""The two ways of `forebay batch`: chunks of rows through jobs, or over a stream, until each has its outcome.

What is wrong with a chunk is its outcome: it is split if that may save the innocent rows in it, else noted. What is
wrong with the server is waited out, for a while; then the error ends the run, and the journal remembers the rest.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Literal, NamedTuple

from forebay_client import (
    BadResponse,
    Client,
    DeadlineExceeded,
    ForebayError,
    InputRejected,
    InternalError,
    InvalidRequest,
    JobNotFound,
    MessageTooLarge,
    Overloaded,
    Prediction,
    Unavailable,
)
from forebay_server.cli.journal import Chunk, Journal
from forebay_server.cli.progress import Advance
from forebay_server.cli.rows import Rows

Priority = Literal["high", "normal", "low"]
Outcome = Prediction | ForebayError

SUBMIT_DEADLINE: Final = 60.0  # seconds
OUTAGE: Final = 60.0  # seconds without any result from a server that is away or full, before a stream is given up
MESSAGE_BYTES: Final = 4 << 20  # of tensors in a message of a stream; servers take 16 MiB by default

OWN: Final = (InvalidRequest, MessageTooLarge)
"""What is wrong with a chunk itself, also where it was refused before it became a job."""
SPLIT: Final = (InputRejected, InternalError, MessageTooLarge)
"""What may be the fault of some rows only."""


class Batch(NamedTuple):
    """A run."""

    client: Client
    model: str
    rows: Rows
    journal: Journal
    in_flight: int
    """Chunks at a time."""
    priority: Priority
    advance: Advance

    def settle(self, chunk: Chunk, outcome: Outcome) -> Sequence[Chunk]:
        """Notes what came of a chunk; gives the chunks that are to be sent instead, if it was split."""
        rows = chunk.stop - chunk.start
        if not isinstance(outcome, ForebayError):
            self.journal.succeeded(chunk, outcome)
            self.advance(rows)
        elif rows > 1 and isinstance(outcome, SPLIT) and not isinstance(outcome, BadResponse):
            return self.journal.split(chunk)
        else:
            self.journal.failed(chunk, outcome)
            self.advance(rows, failed=rows)
        return ()


# --- Through jobs -------------------------------------------------------------------------------------------------


def through_jobs(batch: Batch) -> None:
    """Hands over each chunk as a job, some at a time, and fetches what came of them.

    Raises:
        ForebayError: The server is away, or does not take them.
    """
    todo = deque(batch.journal.open_chunks())
    stop = threading.Event()
    ended: queue.SimpleQueue[Future[tuple[Chunk, Outcome]]] = queue.SimpleQueue()
    pool = ThreadPoolExecutor(batch.in_flight, thread_name_prefix="forebay-batch")
    running = 0
    try:
        while todo or running:
            while todo and running < batch.in_flight:
                pool.submit(_through_job, batch, todo.popleft(), stop).add_done_callback(ended.put)
                running += 1
            chunk, outcome = ended.get().result()
            running -= 1
            todo.extendleft(reversed(batch.settle(chunk, outcome)))
    finally:
        stop.set()
        batch.client.close()  # ends the calls of the other threads
        pool.shutdown(cancel_futures=True)


def _through_job(batch: Batch, chunk: Chunk, stop: threading.Event) -> tuple[Chunk, Outcome]:
    try:
        if chunk.job:
            with contextlib.suppress(JobNotFound):  # deleted since: then its key stands for nothing any more
                return chunk, _fetch(batch, chunk.job)
        return chunk, _fetch(batch, _submit(batch, chunk, stop))
    except OWN as error:
        return chunk, error


def _submit(batch: Batch, chunk: Chunk, stop: threading.Event) -> str:
    while True:
        try:
            job = batch.client.submit(
                batch.model,
                batch.rows.request(chunk.start, chunk.stop),
                version=batch.journal.version,
                priority=batch.priority,
                request_id=batch.journal.key(chunk),
                deadline=SUBMIT_DEADLINE,
            )
        except Overloaded as error:  # the backlog has a limit, and we have time
            if stop.wait(error.retry_delay or 1.0):
                raise
        else:
            batch.journal.submitted(chunk, job.id)
            return job.id


def _fetch(batch: Batch, job: str) -> Outcome:
    try:
        return batch.client.result(job).prediction
    except ForebayError as error:
        if error.job is None:  # nothing is wrong with the job, but with asking for it
            raise
        return error


# --- Over a stream ------------------------------------------------------------------------------------------------


def through_stream(batch: Batch, deadline: float) -> None:
    """Sends all chunks over a stream; those that find the server away or full again over another.

    Args:
        batch: The run.
        deadline: Seconds for each chunk.

    Raises:
        ForebayError: The server is away, or does not take them.
    """
    todo = batch.journal.open_chunks()
    pause, fruitless_since = 0.1, time.monotonic()
    while todo:
        before = batch.journal.rows()[1]
        todo, error = _one_stream(batch, todo, deadline)
        if not todo:
            return
        if batch.journal.rows()[1] > before:
            pause, fruitless_since = 0.1, time.monotonic()
        if error is not None:
            if time.monotonic() - fruitless_since > OUTAGE:
                error.index = None  # it is not about that item
                raise error
            time.sleep(max(pause, error.retry_delay or 0.0))
            pause = min(2 * pause, 2.0)


def _one_stream(
    batch: Batch, chunks: Sequence[Chunk], deadline: float
) -> tuple[list[Chunk], Unavailable | Overloaded | DeadlineExceeded | None]:
    """Sends chunks over one stream; gives those that are to be sent again, and the last reason for that."""
    left: list[Chunk] = []
    reason: Unavailable | Overloaded | DeadlineExceeded | None = None
    item_bytes = sum(array.nbytes for array in batch.rows.request(chunks[0].start, chunks[0].stop).values())
    with batch.client.stream(
        batch.model,
        (batch.rows.request(chunk.start, chunk.stop) for chunk in chunks),
        failures="yield",
        ordered=False,
        window=batch.in_flight,
        items_per_message=min(32, max(1, MESSAGE_BYTES // max(1, item_bytes))),
        version=batch.journal.version,
        priority=batch.priority,
        deadline=deadline,
    ) as outcomes:
        try:
            for outcome in outcomes:
                chunk = chunks[outcome.index or 0]
                if isinstance(outcome, Unavailable | Overloaded | DeadlineExceeded) and _later(outcome):
                    left.append(chunk)
                    reason = outcome
                else:
                    left.extend(batch.settle(chunk, outcome))
        except (Unavailable, Overloaded, DeadlineExceeded) as error:  # of the stream itself
            left.extend(chunks[error.taken or 0 :])
            reason = error
    left.sort()
    return left, reason


def _later(error: Unavailable | Overloaded | DeadlineExceeded) -> bool:
    """Whether it was the server, or the stream as a whole, that could not; an item's own deadline has a reason."""
    return not (isinstance(error, DeadlineExceeded) and error.reason)
