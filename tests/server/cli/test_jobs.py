"""The commands about jobs against a real server: what they print, and how they end."""

import json
import threading

import numpy as np
import pytest

from forebay.v1 import job_pb2
from tests.clients.job_service import KEY_REUSED, QUEUE_FULL
from tests.clients.service import Running

PENDING, RUNNING = job_pb2.JOB_STATE_PENDING, job_pb2.JOB_STATE_RUNNING


@pytest.fixture
def x(tmp_path):
    """A file of rows."""
    np.save(tmp_path / "x.npy", np.array([[1, 2], [3, 4]], np.float32))
    return tmp_path / "x.npy"


@pytest.fixture
def to(forebay, server):
    """Runs a command with the server's address."""

    def run(command, *arguments):
        return forebay(command, "--address", server.address, *arguments)

    return run


@pytest.fixture
def submitted(to, x):
    """Hands over a job and gives its id."""

    def submit(model="slow", *options):
        ended = to("submit", model, x, *options)
        assert (ended.code, ended.err) == (0, "")
        return ended.out.strip()

    return submit


def test_a_job_is_handed_over_and_fetched(to, server, submitted, tmp_path):
    """The id on stdout, and the result in the formats of the other commands."""
    job = submitted("double", "--request-id", "key", "--expire-after", "60", "--ttl", "3600", "--priority", "low")

    (sent,) = server.jobs.submits
    assert (sent.request_id, sent.expire_after.seconds, sent.ttl.seconds, sent.request.priority) == ("key", 60, 3600, 3)
    assert json.loads(to("result", job).out) == {
        "model": "double",
        "version": 3,
        "rows": 2,
        "outputs": {"y": [[2, 4], [6, 8]]},
    }
    assert to("result", job, "-o", tmp_path / "y.npy") == (0, "", "")
    assert np.load(tmp_path / "y.npy").tolist() == [[2, 4], [6, 8]]


def test_submit_can_wait(to, server, x):
    """Then it prints the result instead of the id."""
    server.jobs.busy = True  # it asks more than once
    timer = threading.Timer(0.2, lambda: server.jobs.finish(f"{1:032x}"))
    timer.start()
    ended = to("submit", "slow", x, "--wait")
    timer.join()

    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["outputs"] == {"y": [[2, 4], [6, 8]]}


def test_a_job_that_has_not_finished(to, server, submitted):
    """Is told with its prospect, and is waited for if wanted."""
    job = submitted()
    ended = to("result", job)
    assert ended == (1, "", f"forebay: job {job} is PENDING (about 0 ahead, about 0.2 s); --wait waits for it\n")
    timer = threading.Timer(0.2, lambda: server.jobs.finish(job))
    timer.start()
    ended = to("result", job, "--wait")
    timer.join()
    assert (ended.code, json.loads(ended.out)["rows"]) == (0, 2)


def test_watching_prints_each_change(to, server, submitted):
    """A line for each, and the exit code says whether it succeeded."""
    job = submitted()
    timers = [
        threading.Timer(0.2, lambda: server.jobs.touch(job, RUNNING)),
        threading.Timer(0.5, lambda: server.jobs.finish(job)),
    ]
    for timer in timers:
        timer.start()
    ended = to("watch", job)
    for timer in timers:
        timer.join()

    assert ended.code == 0
    assert ended.out.splitlines() == [
        "PENDING    slow  about 0 ahead, about 0.2 s",
        "RUNNING    slow",
        "SUCCEEDED  slow version 3",
    ]
    server.jobs.finish(other := submitted(), job_pb2.JOB_STATE_EXPIRED)
    assert to("watch", other) == (1, "EXPIRED    slow version 3\n", "")


def test_cancelling(to, submitted):
    """What has finished can't be cancelled any more, and says so."""
    job, done = submitted(), submitted("double")

    assert to("cancel", job) == (0, f"job {job} is CANCELLED\n", "")
    assert to("result", job) == (1, "", f"forebay: CANCELLED: job {job} was cancelled\n")
    assert to("cancel", done) == (1, "", f"forebay: job {done} had finished before: it is SUCCEEDED\n")


def test_jobs_are_listed(to, submitted):
    """As a table, or as objects for programs; by state and model, the newest first."""
    ids = [submitted(model, "--request-id", f"k{number}") for number, model in enumerate(("double", "slow", "double"))]
    lines = to("jobs").out.splitlines()

    assert lines[0].split() == ["ID", "STATE", "MODEL", "VERSION", "TRIES", "CREATED", "ENDED", "KEY"]
    assert [line.split()[0] for line in lines[1:]] == ids[::-1]
    assert lines[2].split() == [ids[1], "PENDING", "slow", "0", "2023-11-14", "22:13:20", "k1"]
    assert len(to("jobs", "--limit", "2").out.splitlines()) == 3
    (found,) = map(json.loads, to("jobs", "--state", "pending", "--state", "failed", "--json").out.splitlines())
    assert found == {
        "id": ids[1],
        "state": "PENDING",
        "model": "slow",
        "version": 0,
        "attempt": 0,
        "request_id": "k1",
        "create_time": "2023-11-14T22:13:20+00:00",
        "start_time": None,
        "end_time": None,
        "expire_time": None,
        "purge_time": None,
    }
    assert to("jobs", "--model", "nobody", "--json") == (0, "", "")


def test_a_failed_job_is_a_sentence(to, tmp_path):
    """Its own error, and exit code 1."""
    np.save(tmp_path / "bad.npy", np.array([[-2, 0]], np.float32))
    job = to("submit", "double", tmp_path / "bad.npy").out.strip()

    assert to("result", job) == (1, "", "forebay: INVALID_ARGUMENT (INVALID_TENSOR): bad tensor\n")
    assert to("jobs", "--state", "failed").out.splitlines()[1].split()[0] == job


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        (["result", "f" * 32], 1, "NOT_FOUND (JOB_NOT_FOUND): no such job"),
        (["watch", "f" * 32], 1, "NOT_FOUND (JOB_NOT_FOUND): no such job"),
        (["cancel", "f" * 32], 1, "NOT_FOUND (JOB_NOT_FOUND): no such job"),
        (["result", "x", "-o", "y.txt"], 2, "y.txt: results are written as .npz, .npy, .json, .csv"),
        (["submit", "double", "nowhere.npy"], 2, "nowhere.npy: No such file"),
        (["submit", "nobody", "x.npy"], 1, "NOT_FOUND: no such model"),
        (
            ["submit", "double", "x.npy", "--ttl", "nan"],
            2,
            "Invalid value for '--ttl': nan is not a positive number of seconds",
        ),
        (["submit", "double", "x.npy", "--webhook", "https://x"], 2, "--webhook and --webhook-secret go together"),
        (["submit", "double"], 2, "Missing argument"),
        (["jobs", "--state", "done"], 2, "Invalid value for '--state'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_what_is_wrong_is_one_sentence(to, x, monkeypatch, command, code, sentence):
    """And a code."""
    monkeypatch.chdir(x.parent)
    ended = to(*command)

    assert (ended.code, ended.out) == (code, "")
    assert ended.err.startswith(f"forebay: {sentence}")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (KEY_REUSED, "ALREADY_EXISTS (JOB_KEY_REUSED): the key stands for another payload"),
        (QUEUE_FULL, "RESOURCE_EXHAUSTED (QUEUE_FULL): too many jobs wait [retry after 0.25 s]"),
    ],
)
def test_what_the_server_refuses(to, server, x, fault, sentence):
    """Is its own sentence."""
    server.jobs.refusals = [fault]
    assert to("submit", "double", x) == (1, "", f"forebay: {sentence}\n")


@pytest.mark.parametrize(
    "command", [["submit", "double", "x.npy"], ["result", "x"], ["watch", "x"], ["cancel", "x"], ["jobs"]]
)
def test_a_server_without_jobs(forebay, x, monkeypatch, command):
    """What its operator has to do is said."""
    monkeypatch.chdir(x.parent)
    running = Running(keeps_jobs=False)
    ended = forebay(*command, "--address", running.address)
    running.stop()

    assert ended == (1, "", "forebay: the server keeps no jobs; start it with --jobs\n")
