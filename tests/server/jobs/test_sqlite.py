"""The SQLite store and its file, where no other store has one."""

import secrets

import pytest
from structlog.testing import capture_logs

from forebay_server.errors import JobNotFound
from forebay_server.jobs.sqlite import SqliteStore
from forebay_server.jobs.store import Get, Submit


@pytest.fixture
def store(tmp_path):
    """An open store."""
    opened = SqliteStore(tmp_path / "jobs.db")
    opened.open(lambda _: None)
    yield opened
    opened.close()


def submit(store):
    """A new job's id."""
    job = Submit(secrets.token_hex(16), "t", "", b"x", "m", "", 2, b"x", None, 60.0, None)
    return store.apply([job])[0].job.id


def test_a_file_that_has_lost_jobs_is_noticed(store, tmp_path):
    """A disk that gives up may take back what it had confirmed: the log says of how many jobs. Once."""
    file = tmp_path / "jobs.db"
    kept = submit(store)
    store.close()
    earlier = file.read_bytes()
    lost = [submit(store), submit(store)]
    store.close()
    file.write_bytes(earlier)
    with capture_logs() as logs:
        found = store.apply([Get(job_id, "t") for job_id in (kept, *lost)])
        submit(store)
    assert [type(each) is JobNotFound for each in found] == [False, True, True]
    assert [(line["event"], line["jobs"]) for line in logs] == [("acknowledged_jobs_lost", 2)]


def test_a_file_that_is_opened_again_has_lost_nothing(store):
    """The control."""
    submit(store)
    store.close()
    with capture_logs() as logs:
        submit(store)
    assert logs == []
