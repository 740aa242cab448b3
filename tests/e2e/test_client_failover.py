"""The Python client when a replica is killed or drained in the middle of its work: no call fails."""

import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from forebay_client import Client
from tests.clients.surfaces import AsyncSurface, SyncSurface
from tests.serving import FRONT_ENDS

pytestmark = pytest.mark.parametrize("front_end", FRONT_ENDS[:1], indirect=True)  # it is the client that is tested

MEBIBYTE = 1 << 18  # elements of FP32
SLOW = "synthetic:base_ms=20,shape=?"


@pytest.fixture
def replicas(process):
    """Two servers, each in a process of its own."""
    found = [process(SLOW, "--set", "models.0.name=slow") for _ in range(2)]
    for server in found:
        server.ready()
    return found


@pytest.mark.parametrize("surface", [SyncSurface, AsyncSurface], ids=["sync", "async"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "drained"])
def test_no_call_fails_when_a_replica_goes_away(replicas, surface, how):
    """Calls of 1 MiB that were in flight on it are made again on the other one, and later ones go there."""
    client = surface([server.addresses["public"] for server in replicas])
    body = np.arange(MEBIBYTE, dtype=np.float32).reshape(1, -1)

    def call(number):
        if number == 40:
            replicas[0].signal(how)
        found = client.predict("slow", {"x": body + number}, deadline=20)["y"]
        return bool((found[0, :2] == [number, number + 1]).all()) and found.shape == body.shape

    try:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(call, range(120)))
    finally:
        client.close()

    assert answers == [True] * 120


def busy(server):
    """Whether it has answered anything."""
    with Client(server.addresses["public"]) as client:
        (found,) = client.statistics("slow")
    return bool(found.outcomes)


@pytest.mark.long
@pytest.mark.parametrize("surface", [SyncSurface, AsyncSurface], ids=["sync", "async"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "drained"])
def test_a_stream_goes_on_when_a_replica_goes_away(replicas, surface, how):
    """Every item has its own answer, once, in order, whichever replica gave it."""
    client = surface([server.addresses["public"] for server in replicas])

    def items():
        for value in range(400):
            yield {"x": np.full((1, 4), value, np.float32)}

    found = []
    try:
        for prediction in client.stream("slow", items(), window=32):
            found.append(float(prediction["y"][0, 0]))
            if len(found) == 50:
                next(server for server in replicas if busy(server)).signal(how)
    finally:
        client.close()

    assert found == [float(value) for value in range(400)]
