"""kill -9 of the server, at random and at every place that matters: nothing that was acknowledged is lost."""

import random
import time

import grpc
import pytest

from forebay.v1 import job_pb2, job_service_pb2
from forebay_server.jobs.failpoints import NAMES
from tests.chaos.audited import DEADLY
from tests.chaos.conftest import MAX_ATTEMPTS
from tests.e2e.conftest import eventually, unpack

ELSEWHERE = ("payload.", "purge.", "release.", "renew.", "webhook.")
"""Places that plain load of small jobs does not lead to, or not often enough."""


def kill_at_random(victim, oracle, cycles: int, seed: int) -> None:
    """Kills the server and starts it again, so many times, under load."""
    chance = random.Random(seed)
    for _ in range(cycles):
        victim.start(row_seconds=0.001).await_serving()
        time.sleep(chance.uniform(0.05, 0.8))
        victim.kill()
    victim.start().await_serving()


def test_random_kills_lose_nothing(victims, oracles, store_url):
    """Five deaths under load: every acknowledged job ends once, with its own answer."""
    victim = victims(store_url)
    oracle = oracles(victim.address).start()
    kill_at_random(victim, oracle, 5, seed=1)
    oracle.stop()
    assert victim.deaths == 5
    # A job may be in flight at each death, and then once more.
    assert oracle.check(victim.audit, max_attempts=MAX_ATTEMPTS + 1) > 50


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(10))
def test_many_random_kills_lose_nothing(victims, oracles, store_url, seed):
    """Two hundred deaths, twenty at a time."""
    victim = victims(store_url)
    oracle = oracles(victim.address, pace=0.005).start()
    kill_at_random(victim, oracle, 20, seed)
    oracle.stop()
    oracle.check(victim.audit, max_attempts=MAX_ATTEMPTS + 1)


@pytest.mark.long
@pytest.mark.parametrize("place", sorted(name for name in NAMES if not name.startswith(ELSEWHERE)))
def test_a_death_at_each_place_loses_nothing(victims, oracles, store_url, place):
    """The server dies at the third passage of a place; its successor leaves nothing undone."""
    victim = victims(store_url)
    oracle = oracles(victim.address, threads=2, pace=0.002)
    if place.startswith("reap."):
        leave_something_to_reap(victim, oracle)
    victim.start(failpoint=place if place.startswith("reap.") else f"{place}:3")
    oracle.start()
    try:
        eventually(lambda: not victim.running, f"{place} is reached", 30)
    finally:
        victim.kill()
    assert victim.deaths == 1, f"{place} was never reached: {victim.log.read_text()[-2000:]}"
    victim.start().await_serving()
    eventually(lambda: len(oracle.ledger.jobs) > 5, "load after the death")
    oracle.stop()
    oracle.check(victim.audit, max_attempts=2)


def leave_something_to_reap(victim, oracle) -> None:
    """Claims whose owner is gone."""
    victim.start(row_seconds=0.2).await_serving()
    for number in range(500, 510):
        oracle.submit(number)
    eventually(victim.audit.read_text, "jobs run")
    victim.kill()
    victim.deaths = 0


@pytest.mark.long
def test_a_job_that_kills_its_server_is_quarantined(victims, oracles, store_url):
    """A deadly payload dies alone: it FAILS with PAYLOAD_QUARANTINED, and all others, its neighbours too, succeed."""
    victim = victims(store_url)
    oracle = oracles(victim.address, threads=1)
    victim.start(row_seconds=0.002).await_serving()
    for number in range(100, 130):
        oracle.submit(number)
    deadly = oracle.submit(99, DEADLY)
    for number in range(130, 160):
        oracle.submit(number)
    while True:
        eventually(lambda: not victim.running or ended(oracle, deadly), "the deadly job acts", 30)
        if victim.running:
            break
        victim.reap()
        assert victim.deaths <= MAX_ATTEMPTS
        victim.start(row_seconds=0.002)
    result = oracle.stub.Result(job_service_pb2.ResultRequest(id=deadly), timeout=10)
    assert result.job.state == job_pb2.JOB_STATE_FAILED
    assert unpack(result.error)[0] == "PAYLOAD_QUARANTINED"
    assert result.job.attempt == MAX_ATTEMPTS
    assert victim.deaths == MAX_ATTEMPTS
    oracle.check(victim.audit, max_attempts=MAX_ATTEMPTS, also=lambda number: number == 99)


def ended(oracle, job_id: str) -> bool:
    """Whether a job has reached its final state."""
    try:
        job = oracle.stub.Result(job_service_pb2.ResultRequest(id=job_id), timeout=5).job
    except grpc.RpcError:
        return False
    return job.state not in (job_pb2.JOB_STATE_PENDING, job_pb2.JOB_STATE_RUNNING)
