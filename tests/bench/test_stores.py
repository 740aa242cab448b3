"""What is measured of bare stores, and that it finds out what went wrong."""

import itertools
import json
import subprocess
import sys

import pytest

from bench import job_cases, server, stores
from bench.errors import BenchError
from bench.models import read_calls
from forebay_server.jobs.sqlite import SqliteStore
from forebay_server.jobs.store import Backlog, Claim, Release, Renew


@pytest.fixture
def store(tmp_path):
    store = SqliteStore(tmp_path / "jobs.db")
    store.open(lambda _changed: None)
    yield store
    store.close()


def test_what_is_filled_is_worked_off_once(store, model_files):
    """As many jobs as were asked for, in groups; all of them succeed in one attempt."""
    new = stores.submissions(model_files.calls)
    assert stores.fill(store, 1300, new) > 0
    (waiting,) = store.apply([Backlog()])
    assert [(line.flow, line.jobs) for line in waiting] == [(stores.FLOW, 1300)]
    assert stores.checked(store) == {"succeeded": 0, "attempts": 0}
    done, rate = stores.work_off(store, read_calls(model_files.calls)[0][1])
    assert (done, rate > 0) == (1300, True)
    assert stores.checked(store) == {"succeeded": 1300, "attempts": 1300}


def test_a_job_that_was_claimed_twice_is_seen(store, model_files):
    """The control of the check that no job runs twice."""
    stores.fill(store, 10, stores.submissions(model_files.calls))
    _, (claimed,) = store.apply([Renew("o", 60.0), Claim("o", stores.FLOW, 1)])
    store.apply([Release(claimed.job.id, "o", 1, 0.0, refund=False)])
    stores.work_off(store, b"x")
    assert stores.checked(store) == {"succeeded": 10, "attempts": 11}


def test_the_program_writes_what_the_case_reads(tmp_path, model_files):
    """All figures for few and many finished jobs, as JSON alone on standard output."""
    command = [sys.executable, "-m", "bench.stores", "flat", str(tmp_path / "jobs.db"), "20000", str(model_files.calls)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, cwd=server.ROOT)
    told = json.loads(finished.stdout)
    names = ("drain_{}_per_s", "bytes_per_job_{}", "claim_{}_ms", "get_{}_ms", "page_{}_ms")
    assert set(told) == {name.format(amount) for name, amount in itertools.product(names, ("few", "many"))}
    assert all(value > 0 for value in told.values())
    assert "20,000 of 20,000" in finished.stderr


def test_the_log_of_a_server_is_read_after_its_end(tmp_path, model_files, core):
    """The commits of a server that only takes jobs in; a line that is not there is an error."""
    options = ("--jobs", str(tmp_path / "jobs.db"), *job_cases.PAUSED, *job_cases.TOLD)
    ours = server.COLUMNS["forebay_aio"]
    with server.Server(ours, model_files.model, model_files.calls, str(core), options=options) as running:
        assert running.successes() == 1
        assert running.longest_batch() > 0
    assert running.event("job_store")["runs_jobs"] is False
    assert running.event("job_store_closed")["groups"] > 0
    with pytest.raises(BenchError, match="has logged no `nothing`"):
        running.event("nothing")
