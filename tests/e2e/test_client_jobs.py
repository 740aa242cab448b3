"""Durable jobs as callers use them: both clients, and the commands, against a real server that may die."""

import json
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import forebay_client
from forebay_client import Client, JobState
from forebay_server.cli import main
from forebay_server.config.tree import BatchingConfig, ExposureConfig, JobsConfig
from tests.clients.surfaces import AsyncSurface, SyncSurface
from tests.serving import row, synthetic
from tests.waiting import eventually, free_port

BOTH = pytest.mark.parametrize("via", ["jobs", "stream"])


@pytest.fixture(params=[SyncSurface, AsyncSurface], ids=["sync", "async"])
def connect(request):
    """Makes clients of either surface, closed at the end."""
    clients = []

    def make(address, **options):
        clients.append(request.param(address, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def immortal(process, tmp_path):
    """A server with jobs on one port; called again, it is killed with SIGKILL and started anew."""
    address = f"127.0.0.1:{free_port()}"
    running = []

    def start(*arguments):
        if running:
            running[-1].signal(signal.SIGKILL)
            running.pop().kill()
        store = ["--jobs", str(tmp_path / "jobs.db")]
        running.append(process("--listen", address, *store, *(arguments or start.arguments), listen=False))
        start.arguments = arguments or start.arguments
        running[-1].ready()
        return address

    return start


def test_the_life_of_a_job(serve, connect, tmp_path):
    """Handed over, watched, fetched, listed; under its key it is one job, under another payload none."""
    server = serve(synthetic("double", scale=2.0), jobs=JobsConfig(store=str(tmp_path / "jobs.db")))
    client = connect(server.addresses["public"])
    job = client.submit("double", {"x": row(3)}, request_id="key", expire_after=60, ttl=600)
    result = client.result(job, timeout=20)

    assert np.array_equal(result.prediction["y"], row(6))
    assert (result.prediction.request_id, result.job.request_id, result.job.version) == ("key", "key", 1)
    done = client.job(job)
    assert (done.state, done.attempt, done.done) == (JobState.SUCCEEDED, 1, True)
    assert done.create_time <= done.start_time <= done.end_time < done.expire_time < done.purge_time
    assert list(client.watch(job)) == [done]
    assert client.cancel(job) == done
    assert client.submit("double", {"x": row(3)}, request_id="key").id == job.id
    with pytest.raises(forebay_client.JobKeyReused):
        client.submit("double", {"x": row(4)}, request_id="key")
    assert [found.id for found in client.jobs(states=["SUCCEEDED"], model="double")] == [job.id]
    with pytest.raises(forebay_client.JobNotFound):
        client.result("f" * 32)
    with pytest.raises(forebay_client.InvalidRequest):
        client.submit("double", {"x": np.zeros((1, 5), np.float32)})
    with pytest.raises(forebay_client.ModelNotFound):
        client.submit("nobody", {"x": row(1)})


def test_jobs_that_come_to_nothing(serve, connect, tmp_path):
    """Rejected, cancelled, expired: each is its own exception, with the job."""
    server = serve(
        synthetic("slow", base_ms=150, reject=13, batching=BatchingConfig(max_batch_size=1)),
        jobs=JobsConfig(store=str(tmp_path / "jobs.db")),
    )
    client = connect(server.addresses["public"])
    bad = client.submit("slow", row(13))
    with pytest.raises(forebay_client.InputRejected) as rejected:
        client.result(bad, timeout=20)
    assert (rejected.value.job.id, rejected.value.job.state) == (bad.id, JobState.FAILED)

    blocked = client.submit("slow", row(1))
    with pytest.raises(forebay_client.JobNotFinished):
        client.result(blocked, timeout=0)
    late = client.submit("slow", row(2), expire_after=0.05)
    cancelled = client.cancel(client.submit("slow", row(3)))
    assert cancelled.state is JobState.CANCELLED
    with pytest.raises(forebay_client.JobCancelled):
        client.result(cancelled)
    with pytest.raises(forebay_client.JobExpired):
        client.result(late, timeout=20)
    assert [change.state for change in client.watch(blocked)][-1] is JobState.SUCCEEDED


def test_tenants_do_not_see_each_other(serve, connect, tmp_path):
    """Another tenant's job is not there, in whatever way one asks."""
    server = serve(
        synthetic("double", scale=2.0),
        jobs=JobsConfig(store=str(tmp_path / "jobs.db")),
        server={"public": ExposureConfig(address="127.0.0.1:0", trusted=True)},
    )
    ours = connect(server.addresses["public"], tenant="ours")
    theirs = connect(server.addresses["public"], tenant="theirs")
    job = ours.submit("double", row(1), request_id="key")
    for ask in (theirs.result, theirs.job, theirs.cancel, lambda found: list(theirs.watch(found))):
        with pytest.raises(forebay_client.JobNotFound):
            ask(job)
    assert list(theirs.jobs()) == []
    assert theirs.submit("double", row(2), request_id="key").id != job.id


def test_clients_outlive_the_server(immortal, connect):
    """It is killed with jobs in it: who waits goes on waiting, who submits meanwhile is acknowledged later."""
    client = connect(address := immortal("synthetic:base_ms=30,scale=2", "--name", "slow", "--max-batch-size", "1"))
    jobs = [client.submit("slow", row(value), request_id=str(value)) for value in range(1, 31)]
    seen, late = [], []
    watcher = threading.Thread(target=lambda: seen.extend(client.watch(jobs[-1])))
    submitter = threading.Thread(target=lambda: late.append(client.submit("slow", {"x": row(99)}, deadline=60)))
    watcher.start()
    eventually(lambda: seen, "it is watched")
    killer = threading.Thread(target=immortal)
    killer.start()
    time.sleep(0.1)
    submitter.start()
    results = [client.result(job) for job in jobs]
    for thread in (watcher, killer, submitter):
        thread.join()

    assert [float(result.prediction["y"][0, 0]) for result in results] == [2.0 * value for value in range(1, 31)]
    assert seen[-1].state is JobState.SUCCEEDED
    assert float(client.result(late[0]).prediction["y"][0, 0]) == 198
    with Client(address) as other:
        assert len(list(other.jobs())) == 31


@BOTH
def test_a_batch_outlives_everybody(immortal, tmp_path, monkeypatch, via):
    """Server and command are killed at random; the output is that of an undisturbed run, and no job is double."""
    monkeypatch.chdir(tmp_path)
    address = immortal("synthetic:base_ms=4,scale=2,reject=13", "--name", "slow", "--max-batch-size", "16")
    rows = np.arange(6000, dtype=np.float32).reshape(1500, 4)
    rows[700, 0] = 13
    np.save("x.npy", rows)
    options = ["--address", address, "--via", via, "--rows", "4", "--in-flight", "16"]
    arguments = [sys.executable, "-m", "forebay_server", "batch", "slow", "x.npy", "-o", "y.npz", *options]
    chance = random.Random(via)
    for _ in range(2):
        run = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
        eventually(lambda: (tmp_path / "y.npz.journal").exists() or run.poll() is not None, "it begins", 30)  # noqa: B023  # called at once
        time.sleep(chance.uniform(0, 0.3))
        immortal()
        time.sleep(chance.uniform(0, 0.3))
        run.kill()
        run.communicate()
    assert main(arguments[3:]) == 1
    disturbed = (tmp_path / "y.npz").read_bytes()
    failures = [json.loads(line) for line in (tmp_path / "y.npz.failures.jsonl").read_text().splitlines()]

    assert [failure["rows"] for failure in failures] == [[700, 701]]
    if via == "jobs":
        with Client(address) as client:
            keys = [job.request_id for job in client.jobs(page_size=1000)]
        assert len(set(keys)) == len(keys) == 1500 / 4 + 4
    assert main(arguments[3:]) == 1
    assert (tmp_path / "y.npz").read_bytes() == disturbed
    expected = rows * 2
    expected[700] = np.nan
    with np.load("y.npz") as written:
        np.testing.assert_array_equal(written["y"], expected)


def test_the_commands(serve, forebay, tmp_path, monkeypatch):
    """As they are pasted from the documentation."""
    server = serve(synthetic("double", scale=2.0), jobs=JobsConfig(store=str(tmp_path / "jobs.db")))
    monkeypatch.setenv("FOREBAY_ADDRESS", server.addresses["public"])
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", row(3, rows=2))

    code, job, _ = forebay("submit", "double", "x.npy", "--request-id", "key")
    assert (code, len(job.strip())) == (0, 32)
    assert forebay("watch", job.strip())[0] == 0
    assert json.loads(forebay("result", job.strip())[1])["outputs"] == {"y": row(6, rows=2).tolist()}
    assert json.loads(forebay("jobs", "--json")[1])["request_id"] == "key"
    assert forebay("cancel", job.strip())[0] == 1
    assert json.loads(forebay("submit", "double", "x.npy", "--wait")[1])["rows"] == 2


def test_a_server_without_jobs_says_so(serve, forebay):
    """Whatever front end it has."""
    server = serve(synthetic("double"))
    ended = forebay("jobs", "--address", server.addresses["public"])

    assert ended == (1, "", "forebay: the server keeps no jobs; start it with --jobs\n")
