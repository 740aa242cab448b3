"""What a message says: that a job has finished, and how. What came of it is for `Result` to tell."""

import json
from datetime import UTC, datetime

from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import Job


def message_id(job: Job) -> str:
    """The same for all tries: a receiver that has seen it can pass it over."""
    return f"msg_{job.id}"


def body(job: Job) -> bytes:
    """The body of a message, JSON in ASCII. The same for all tries.

    Args:
        job: One in its final state.
    """
    ended = job.created if job.ended is None else job.ended
    content = {
        "type": f"job.{JobState(job.state).name.lower()}",
        "timestamp": _time(ended),
        "data": {
            "id": job.id,
            "state": JobState(job.state).name,
            "model": job.model,
            "version": job.served_version,
            "attempt": job.attempt,
            "request_id": job.request_id,
            "create_time": _time(job.created),
            "end_time": _time(ended),
        },
    }
    return json.dumps(content, separators=(",", ":")).encode()


def _time(seconds: float) -> str:
    """RFC 3339, in UTC, with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
