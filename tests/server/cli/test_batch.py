"""`forebay batch` against a real server: complete, in order, each chunk once, and resumable after anything."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from forebay_server.cli.batch import _digest
from forebay_server.cli.journal import Chunk, Journal
from tests.clients.job_service import QUEUE_FULL, UNAVAILABLE
from tests.clients.service import REJECTED
from tests.waiting import eventually

BOTH = pytest.mark.parametrize("via", ["jobs", "stream"])


@pytest.fixture
def send(forebay, server, tmp_path, monkeypatch):
    """Sends rows to the model `double` and gives how it ended."""
    monkeypatch.chdir(tmp_path)

    def run(rows, *options, output="y.npy", model="double"):
        if rows is not None:
            np.save("x.npy", np.asarray(rows, np.float32))
        return forebay("batch", "--address", server.address, model, "x.npy", "-o", output, *options)

    return run


def numbered(rows):
    return np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)


@BOTH
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_all_rows_come_back_in_order(send, tmp_path, via, size):
    """Whatever their number in a request, and nothing is left beside the output."""
    ended = send(numbered(100), "--via", via, "--rows", size)

    assert (ended.code, ended.out) == (0, "")
    assert ended.err.startswith("100 rows in ")
    assert ended.err.endswith(" rows/s, 0 failed\n")
    np.testing.assert_array_equal(np.load("y.npy"), numbered(100) * 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "y.npy"]


@BOTH
@pytest.mark.parametrize("output", ["y.npz", "y.npy", "y.json", "y.csv"])
def test_the_output_is_that_of_predict(send, forebay, server, via, output):
    """Byte by byte, in each format."""
    send(numbered(10), "--via", via, "--rows", "3", output=output)
    forebay("predict", "double", "x.npy", "--address", server.address, "--output", f"p{output}")

    with open(output, "rb") as ours, open(f"p{output}", "rb") as theirs:  # noqa: PTH123  # two at a time
        assert ours.read() == theirs.read()


def test_chunks_become_jobs_under_keys_of_their_own(send, server):
    """Of the run and the rows; for the version that the run was begun with."""
    send(numbered(10), "--rows", "4", "--priority", "low")

    keys = sorted(submit.request_id for submit in server.jobs.submits)
    run = keys[0].partition("-")[0]
    assert keys == sorted([f"{run}-0-4", f"{run}-4-8", f"{run}-8-10"])
    assert len(run) == 32
    assert {(submit.request.version, submit.request.priority) for submit in server.jobs.submits} == {("3", 3)}


@BOTH
def test_only_the_culprit_fails(send, via, tmp_path):
    """A chunk that fails is halved until the row is alone; the others are kept, and the failure is on record."""
    rows = numbered(64)
    rows[13, 0] = REJECTED
    ended = send(rows, "--via", via, "--rows", "32")

    assert (ended.code, ended.err.splitlines()[0]) == (1, "the rows without a result are in y.npy.failures.jsonl")
    assert ended.err.splitlines()[2:] == [
        "  1 rows: INVALID_ARGUMENT (INPUT_REJECTED): this row is refused",
        "forebay: 1 of 64 rows have no result",
    ]
    expected = rows * 2
    expected[13] = np.nan
    np.testing.assert_array_equal(np.load("y.npy"), expected)
    assert [json.loads(line) for line in (tmp_path / "y.npy.failures.jsonl").read_text().splitlines()] == [
        {
            "rows": [13, 14],
            "code": "INVALID_ARGUMENT",
            "reason": "INPUT_REJECTED",
            "message": "this row is refused",
        }
    ]
    rows[13, 0] = 1
    assert send(rows, "--via", via).code == 0
    assert not (tmp_path / "y.npy.failures.jsonl").exists()


def test_what_is_wrong_with_the_whole_chunk_is_not_halved(send, server):
    """A tensor that the model refuses."""
    ended = send([[-2, 0], [1, 0], [2, 0]], "--rows", "2")

    assert ended.code == 1
    assert len(server.jobs.submits) == 2
    np.testing.assert_array_equal(np.load("y.npy")[:, 0], [np.nan, np.nan, 4])


def test_a_full_queue_is_waited_for(send, server):
    """The backlog has a limit, and the command has time."""
    server.jobs.refusals = [UNAVAILABLE, *[QUEUE_FULL] * 3]
    assert send(numbered(4), "--rows", "2").code == 0


def test_a_lost_acknowledgement_makes_no_second_job(send, server):
    """The same key is sent again."""
    server.jobs.lost_answers = 2
    assert send(numbered(8), "--rows", "2").code == 0
    assert len(server.jobs.jobs) == 4


def test_an_interrupted_run_goes_on(send, server, tmp_path):
    """What is done is kept, what was handed over is fetched, and only the rest is sent."""
    assert send(numbered(20), "--rows", "2").code == 0
    expected = (tmp_path / "y.npy").read_bytes()
    before = len(server.jobs.submits)

    run = subprocess.Popen(
        [*command(server), "--rows", "2", "--in-flight", "1"], env=environment(), stderr=subprocess.PIPE, text=True
    )
    eventually(lambda: len(server.jobs.submits) >= before + 3)
    run.kill()
    run.communicate()
    handed_over = len(server.jobs.jobs)
    ended = send(None, "--rows", "2")

    assert ended.code == 0
    assert ended.err.startswith("going on: ")
    assert (tmp_path / "y.npy").read_bytes() == expected
    assert len(server.jobs.jobs) == before + 10 >= handed_over


def test_a_job_that_was_deleted_meanwhile_is_submitted_anew(send, server, tmp_path):
    """Its key stands for nothing any more."""
    np.save("x.npy", numbered(4))
    digest = begun()
    journal = Journal(tmp_path / "y.npy.journal")
    assert journal.open(digest)
    journal.submitted(Chunk(0, 2), "f" * 32)
    journal.close()
    ended = send(None, "--rows", "2")

    assert (ended.code, ended.err.splitlines()[0]) == (0, "going on: 0 of 4 rows are done")
    assert np.array_equal(np.load("y.npy"), numbered(4) * 2)


def begun():
    """As a run leaves it that begins and stops before anything is sent; gives what it was asked."""
    asked = {"model": "double", "version": "", "rows": 2, "input": _digest(("x.npy",))}
    journal = Journal(Path("y.npy.journal"))
    journal.begin(asked, "3", [Chunk(0, 2), Chunk(2, 4)])
    journal.close()
    return asked


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (True, ["--rows", "2"], "the input has changed since y.npy.journal was begun; restore it, or start over with"),
        (False, ["--rows", "3"], "y.npy.journal is of a run with --rows 2; go on with that, or start over with --rest"),
        (False, [], "y.npy.journal is of a run with --rows 2; go on with that, or start over with --restart"),
        (False, ["--rows", "2", "--version", "3"], "y.npy.journal is of a run with no --version; go on with that"),
    ],
)
def test_another_run_is_not_gone_on_with(send, server, change, options, sentence):
    """Neither with another input nor with other options; `--restart` starts over."""
    np.save("x.npy", numbered(4))
    begun()
    rows = numbered(4) + 1 if change else None
    ended = send(rows, *options)

    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"forebay: {sentence}")
    assert server.jobs.submits == []
    assert send(rows, *options, "--restart").code == 0
    assert np.array_equal(np.load("y.npy"), (numbered(4) + change) * 2)


def test_what_is_no_journal_is_not_touched(send, tmp_path):
    """It may be somebody's work."""
    (tmp_path / "y.npy.journal").write_text("dear diary, " * 100)
    ended = send(numbered(4))

    assert ended == (2, "", "forebay: y.npy.journal is not a journal of forebay batch, or is damaged\n")
    with sqlite3.connect(tmp_path / "other.npy.journal") as other:
        other.execute("CREATE TABLE diary (day)")
    other.close()
    ended = send(None, output="other.npy")
    assert ended == (2, "", "forebay: other.npy.journal is not a journal of this version of forebay batch\n")


def test_one_at_a_time_writes_an_output(send, server, tmp_path):
    """A second one is told; also with `--restart`."""
    np.save("x.npy", numbered(4))
    asked = begun()
    journal = Journal(tmp_path / "y.npy.journal")
    journal.open(asked)
    for options in ([], ["--restart"]):
        ended = send(None, "--rows", "2", *options)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err == "forebay: y.npy.journal is in use: another forebay batch writes this output\n"
    journal.close()


@BOTH
def test_a_server_that_stays_away_is_told_with_what_to_do(send, server, monkeypatch, via):
    """And nothing is lost."""
    monkeypatch.setattr("forebay_client._retries.OUTAGE", 0.3)
    monkeypatch.setattr("forebay_server.cli.chunks.OUTAGE", 0.3)
    monkeypatch.setattr("forebay_server.cli.chunks.SUBMIT_DEADLINE", 3.0)
    np.save("x.npy", numbered(4))
    if via == "jobs":
        server.jobs.refusals = [UNAVAILABLE] * 1000
    else:
        np.save("x.npy", np.full((4, 2), -4, np.float32))  # draining
    ended = send(None, "--via", via, "--rows", "2")

    assert (ended.code, ended.out) == (1, "")
    assert ended.err.endswith("; 0 of 4 rows are done, and the same command goes on with the rest\n")
    assert ended.err.startswith("forebay: UNAVAILABLE")


def test_a_stream_that_breaks_is_opened_anew(send, server):
    """The server drains after its first message, once."""
    server.log.script = "drain"
    ended = send(numbered(400), "--via", "stream", "--rows", "1", "--in-flight", "8")

    assert ended.code == 0
    assert np.array_equal(np.load("y.npy"), numbered(400) * 2)


def test_ctrl_c_says_how_to_go_on(send, server, tmp_path):
    """With the exit code of the other commands."""
    np.save("x.npy", numbered(4))
    run = subprocess.Popen(
        [*command(server, "slow"), "--rows", "2"], env=environment(), stderr=subprocess.PIPE, text=True
    )
    eventually(lambda: len(server.jobs.jobs) == 2)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=20)

    assert run.returncode == 130
    assert err.strip() == "interrupted: 0 of 4 rows are done; the same command goes on with the rest"
    for job in list(server.jobs.jobs):
        server.jobs.finish(job)
    ended = send(None, "--rows", "2", model="slow")
    assert ended.code == 0
    assert len(server.jobs.jobs) == 2  # One that was interrupted before its answer is submitted again, under its key.


def command(server, model="double", output="y.npy"):
    return [sys.executable, "-m", "forebay_server", "batch", "--address", server.address, model, "x.npy", "-o", output]


def environment():
    return {name: value for name, value in os.environ.items() if not name.startswith("FOREBAY_")}


@BOTH
@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.long)])
def test_killed_at_random_and_started_again(send, server, tmp_path, via, kills):
    """SIGKILL, anywhere, again and again: the output is that of an undisturbed run, and each chunk is one job."""
    rows = numbered(4 * (100 * kills + 300))
    rows[7, 0] = REJECTED
    options = ["--rows", "4", "--in-flight", "4", "--via", via]
    assert send(rows, *options).code == 1
    expected = (tmp_path / "y.npy").read_bytes()
    failures = (tmp_path / "y.npy.failures.jsonl").read_bytes()
    (tmp_path / "y.npy").unlink()
    server.jobs.forget()
    chance = random.Random(f"{via} {kills}")

    def progress():
        return len(server.jobs.submits) + len(server.jobs.results) + len(server.log.messages)

    killed = 0
    for _ in range(kills):
        before, least = progress(), chance.randrange(80)
        run = subprocess.Popen([*command(server), *options], env=environment(), stderr=subprocess.PIPE, text=True)
        eventually(lambda: progress() > before + least or run.poll() is not None)  # noqa: B023  # called in this turn
        time.sleep(chance.uniform(0, 0.01))
        run.kill()
        run.communicate()
        killed += run.returncode == -signal.SIGKILL
        assert not (tmp_path / "y.npy").exists() or run.returncode == 1
    ended = send(None, *options)

    assert killed >= kills / 2
    assert ended.code == 1
    assert ended.err.startswith("going on: ")
    assert (tmp_path / "y.npy").read_bytes() == expected
    assert (tmp_path / "y.npy.failures.jsonl").read_bytes() == failures
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "y.npy", "y.npy.failures.jsonl"]
    if via == "jobs":
        keys = [entry.job.request_id for entry in server.jobs.jobs.values()]
        assert len(set(keys)) == len(keys) == len(rows) / 4 + 4  # one of them was halved twice
