"""The example of a Locust user, under the real Locust."""

import importlib.util
import json
import subprocess

import pytest

from bench import server
from examples.digits import train
from forebay_client import Client
from tests.serving import Process
from tests.waiting import eventually

LOCUST = server.ROOT / "build" / "locust" / "bin" / "locust"
NAMES = {"Predict", "StreamPredict", "Submit and Result"}

pytestmark = [
    pytest.mark.skipif(not LOCUST.exists(), reason="Locust is not installed (`make locust`)"),
    pytest.mark.skipif(importlib.util.find_spec("forebay_native") is None, reason="native front end not installed"),
]


@pytest.fixture
def serving(tmp_path):
    """A server of the demo's model that takes jobs."""
    model = tmp_path / "digits.onnx"
    train(model)
    begun = Process([str(model), "--listen", "127.0.0.1:0", "--jobs", str(tmp_path / "jobs.db")], tmp_path, {})
    yield begun.ready()
    begun.kill()


def test_the_user_calls_and_nothing_fails(serving):
    """Until it has called often; what it reports to Locust are the calls that it made."""
    address = serving.addresses["public"]
    command = [str(LOCUST), "-f", "examples/locustfile.py", "--headless", "--json", "--host", address, "--users", "3"]

    def answered():
        (statistics,) = client.statistics("digits")
        return sum(outcome.requests for outcome in statistics.outcomes if outcome.code == "OK")

    with (
        Client(address) as client,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=server.ROOT) as locust,
    ):
        try:
            eventually(lambda: locust.poll() is not None or answered() >= 300, "calls", 100)
            locust.terminate()
            told, said = locust.communicate(timeout=60)
        finally:
            locust.kill()
        entries = {entry["name"]: entry for entry in json.loads(told)}
        assert locust.returncode == 0, said
        assert "Predict" in entries
        assert entries.keys() <= NAMES
        assert all(entry["num_failures"] == 0 < entry["num_requests"] for entry in entries.values())
        assert answered() >= sum(entry["num_requests"] for entry in entries.values())
