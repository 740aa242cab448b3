"""kill -9 of the server, at random and by a job: nothing that was acknowledged is lost."""

import random
import time
from collections import Counter

import grpc
import pytest

from forebay.v1 import job_pb2, job_service_pb2
from forebay_server.jobs.store import SUSPECT_CRASHES
from tests.chaos.audited import DEADLY
from tests.chaos.conftest import MAX_ATTEMPTS
from tests.serving import unpack
from tests.waiting import eventually


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
def test_a_job_that_kills_its_server_is_quarantined(victims, oracles, store_url):
    """After two deaths it runs alone, and after the last attempt it has FAILED with PAYLOAD_QUARANTINED.

    Its neighbours, which died with it, run again and succeed.
    """
    victim = victims(store_url)
    oracle = oracles(victim.address, threads=0)
    victim.start(row_seconds=0.002).await_serving()
    early = [oracle.submit_later(number) for number in range(100, 130)]
    eventually(lambda: sum(future.done() for future in early) > 10, "neighbours")
    culprit = oracle.submit_later(99, kind=DEADLY)
    for number in range(130, 160):
        oracle.submit_later(number)
    while True:
        eventually(lambda: not victim.running or (culprit.done() and ended(oracle, culprit.result())), "it acts", 30)
        if victim.running:
            break
        victim.reap()
        assert victim.deaths <= MAX_ATTEMPTS
        victim.start(row_seconds=0.002)
    result = oracle.stub.Result(job_service_pb2.ResultRequest(id=culprit.result()), timeout=10)
    assert result.job.state == job_pb2.JOB_STATE_FAILED
    assert unpack(result.error)[0] == "PAYLOAD_QUARANTINED"
    assert result.job.attempt == MAX_ATTEMPTS
    assert victim.deaths == MAX_ATTEMPTS
    oracle.check(victim.audit, max_attempts=MAX_ATTEMPTS, also=lambda number: number == 99)
    runs = Counter(int(line.split()[0]) for line in victim.audit.read_text().splitlines())
    assert runs.pop(99) == MAX_ATTEMPTS
    assert max(runs.values()) <= SUSPECT_CRASHES + 1, "a neighbour shared a batch with a suspect"


def ended(oracle, job_id: str) -> bool:
    """Whether a job has reached its final state."""
    try:
        job = oracle.stub.Result(job_service_pb2.ResultRequest(id=job_id), timeout=5).job
    except grpc.RpcError:
        return False
    return job.state not in (job_pb2.JOB_STATE_PENDING, job_pb2.JOB_STATE_RUNNING)
