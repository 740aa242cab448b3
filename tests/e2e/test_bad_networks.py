"""Connections that are slow, half-open or full of garbage, through a fault proxy: others do not notice.

`bench` measures others' latency beside them; here everything is counted.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from bench.faults import BAD
from tests.serving import FRONT_ENDS, array_of, row
from tests.waiting import eventually

REPOSITORY = Path(__file__).parents[2]
CALLERS = 8
"""Bad ones of each kind."""
WIDE = 15_000
"""Elements of a request that takes a slow connection longer than anybody waits."""


class Faults:
    """The proxy in a process of its own, with its callers."""

    def __init__(self, to: str, callers: int, kinds: tuple[str, ...]) -> None:
        command = [sys.executable, "-m", "bench.faults", "--to", to, "--callers", str(callers), "--kinds", *kinds]
        self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
        self.ports: dict[str, int] = json.loads(self.popen.stdout.readline())
        assert self.popen.stdout.readline() == "called\n"

    def stop(self) -> dict[str, dict[str, int]]:
        """Ends it; what it has seen, by kind."""
        self.popen.terminate()
        return json.loads(self.popen.communicate(timeout=30)[0])

    def kill(self) -> None:
        """Leaves no process behind."""
        self.popen.kill()
        self.popen.communicate()


@pytest.fixture
def faults():
    """Starts fault proxies."""
    started = []

    def start(to, callers=0, kinds=BAD):
        started.append(Faults(to, callers, kinds))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def caller_at(call):
    """Callers by address."""

    class At:
        def __init__(self, address):
            self.addresses = {"public": address}

    return lambda address: call(At(address))


@pytest.mark.parametrize("front_end", FRONT_ENDS[:1], indirect=True)  # it is the proxy that is tested
def test_the_proxy_does_what_it_says(process, faults, caller_at):
    """The control: a good caller gets nowhere through each fault, and through none of them is answered."""
    proxy = faults(process("synthetic:shape=?", "--set", "models.0.name=wide").ready().addresses["public"])
    body = row(5, width=WIDE)
    through = {kind: caller_at(f"127.0.0.1:{port}") for kind, port in proxy.ports.items()}
    assert np.array_equal(array_of(through["none"].predict("wide", body).outputs[0]), body)
    for kind in BAD:
        with pytest.raises(grpc.RpcError) as caught:
            through[kind].predict("wide", body, timeout=2)
        assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE), kind


def test_others_do_not_notice(process, faults, caller_at):
    """Beside bad connections of all kinds every call of others is answered, rightly; then they are all gone."""
    server = process("synthetic:shape=?", "--set", "models.0.name=wide").ready()
    address = server.addresses["public"]
    looked_at = psutil.Process(server.popen.pid)

    def connections():
        return sum(each.status == psutil.CONN_ESTABLISHED for each in looked_at.net_connections("tcp"))

    callers = [caller_at(address) for _ in range(4)]
    for caller in callers:
        caller.predict("wide", row(1))
    before = connections()
    proxy = faults(address, CALLERS)
    # Those of garbage are closed at once.
    eventually(lambda: connections() >= before + 2 * CALLERS, "bad connections", 30)

    def predict(number):
        answer = callers[number % len(callers)].predict("wide", row(number), timeout=60)
        return np.array_equal(array_of(answer.outputs[0]), row(number))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(predict, range(400)))
    seen = proxy.stop()
    assert all(seen[kind]["connections"] >= CALLERS and seen[kind]["bytes"] > 0 for kind in BAD)
    assert seen["garbage"]["closed"] >= CALLERS
    eventually(lambda: connections() == before, "the bad connections are gone", 30)
    assert predict(7)


@pytest.mark.parametrize("front_end", FRONT_ENDS[:1], indirect=True)  # the limits of the other one are grpcio's
def test_the_server_hangs_up_on_the_dead(process, faults):
    """Nobody answers its pings on connections that are half-open, so it closes them itself."""
    server = process(
        "synthetic:shape=?",
        *("--set", "limits.keepalive_time_s=0.5"),
        *("--set", "limits.keepalive_timeout_s=0.5"),
    ).ready()
    proxy = faults(server.addresses["public"], CALLERS, ("half-open",))
    looked_at = psutil.Process(server.popen.pid)

    def connections():
        return sum(each.status == psutil.CONN_ESTABLISHED for each in looked_at.net_connections("tcp"))

    eventually(lambda: connections() == CALLERS, "bad connections", 30)
    eventually(lambda: connections() == 0, "they are closed", 60)
    assert proxy.stop()["half-open"] | {"bytes": 0} == {"connections": CALLERS, "bytes": 0, "closed": CALLERS}
