"""`forebay profile` on a real server under traffic."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from forebay_client import Client

PROFILE = [sys.executable, "-m", "forebay_server", "profile"]

pytestmark = pytest.mark.parametrize("front_end", ["grpc.aio"], indirect=True)


def profile(*arguments):
    return subprocess.run([*PROFILE, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def busy(process):
    """The process id of a server that has something to do."""
    server = process("synthetic:base_ms=1", "--name", "model").ready()
    ending = threading.Event()

    def send():
        with Client(server.addresses["public"]) as client:
            while not ending.is_set():
                client.predict("model", {"x": np.ones((1, 4), np.float32)})

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    yield server.popen.pid
    ending.set()
    for thread in threads:
        thread.join()


def test_a_profile_names_our_functions_by_thread(busy, tmp_path):
    """A flame graph for the browser, and a file for speedscope: the dispatcher's loop is in both."""
    graph, scope = tmp_path / "profile.svg", tmp_path / "profile.json"
    ended = profile("--pid", busy, "--seconds", "2", "-o", graph)
    if "may not be looked into" in ended.stderr:
        pytest.skip("this kernel lets no process look into another")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"{graph}: 2 s of process {busy}\n"
    assert profile("--pid", busy, "--seconds", "1", "--rate", "200", "-o", scope).returncode == 0

    text = graph.read_text()
    assert text.startswith("<?xml")
    assert "Dispatcher._loop (forebay_server/app/dispatcher.py" in text
    assert "forebay-dispatcher" in text
    found = json.loads(scope.read_text())
    frames = {frame["name"] for frame in found["shared"]["frames"]}
    assert frames & {"_loop", "Dispatcher._loop"}
    assert any("forebay-dispatcher" in thread["name"] for thread in found["profiles"])


def test_what_can_not_be_profiled_is_said_in_a_sentence(busy, tmp_path):
    """No such process, no Python, no such format: never a file that says nothing."""
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        nobody = profile("--pid", 2**22 + 1, "-o", tmp_path / "a.svg")
        other = profile("--pid", sleeper.pid, "--seconds", "1", "-o", tmp_path / "a.svg")
        format_ = profile("--pid", busy, "-o", tmp_path / "a.png")
    finally:
        sleeper.kill()
        sleeper.wait()

    assert (nobody.returncode, nobody.stderr) == (1, f"forebay: there is no process {2**22 + 1}\n")
    assert other.returncode == 1
    assert other.stderr.startswith("forebay: ")
    assert other.stderr.count("\n") == 1
    assert (format_.returncode, format_.stderr) == (
        2,
        f"forebay: {tmp_path / 'a.png'}: the name must end with one of .svg, .json, .txt\n",
    )
    assert list(tmp_path.glob("a.*")) == []
