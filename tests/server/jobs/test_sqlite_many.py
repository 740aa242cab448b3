"""What the SQLite store remembers of claims, when a group fails."""

import pytest

from forebay_server.errors import StoreFull
from forebay_server.jobs import payloads
from forebay_server.jobs.sqlite import SqliteStore
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import Claim, Finish, Flow, Get, Renew, Submit

FLOW = Flow("m", "t", 2, suspect=False)


def test_a_group_that_fails_changes_nothing(tmp_path, monkeypatch):
    """An end whose group finds the disk full has not happened; the same end later is taken, the claim still held."""
    store = SqliteStore(tmp_path / "jobs.db")
    store.open(lambda _changed: None)
    ids = [f"{number:032x}" for number in range(3)]
    store.apply([Submit(id_, "t", "", b"f", "m", "", 2, b"request", None, 60.0, None) for id_ in ids])
    _, claimed = store.apply([Renew("o", 1e6), Claim("o", FLOW, 3)])
    assert [job.id for job, _ in claimed] == ids
    ends = [
        Finish(id_, "o", 1, JobState.SUCCEEDED, b"x" * size, 1) for id_, size in zip(ids, (9, 9, 300_000), strict=True)
    ]

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(payloads.os, "fsync", full)
        with pytest.raises(StoreFull):
            store.apply(ends)
    assert [found.job.state for found in store.apply([Get(id_, "t") for id_ in ids])] == [JobState.RUNNING] * 3
    assert [job.state for job in store.apply(ends)] == [JobState.SUCCEEDED] * 3
    assert [found.outcome for found in store.apply([Get(id_, "t") for id_ in ids])] == [end.outcome for end in ends]
    store.close()
