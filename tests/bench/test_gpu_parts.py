"""The parts of the GPU check on a device that isn't there: that they look at what they say, and find what is wrong.

So they have been run before they meet a GPU. What they find here says nothing of one, and nothing here is reported.
"""

import importlib
import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from bench.gpu import part_device, part_engines, part_path, part_preparation, part_scheduler
from bench.gpu.outcome import FAILED, PASSED, Notes, NotExecuted, Outcome
from forebay_server.app.server import Server
from forebay_server.config.tree import Config, ExposureConfig, ModelConfig, ServerConfig
from forebay_server.engines import onnxruntime as onnx_engine
from forebay_server.engines.gpu import cuda, nvrtc
from tests.bench.machine import HostWork
from tests.server.engines.gpu.fake import FakeDevice, RealTime
from tests.server.engines.gpu.kernel import HostCompiler
from tests.server.engines.gpu.onnx_on_cuda import package


@pytest.fixture
def device(monkeypatch):
    """A fake device in the place of the first GPU."""

    def use(**how):
        made = FakeDevice(**{"bandwidth": 10e9, "total": 1 << 32, **how})
        monkeypatch.setattr(cuda, "devices", lambda: 1)
        monkeypatch.setattr(cuda, "open_device", lambda index: made)
        for module in (part_path, part_scheduler):
            monkeypatch.setattr(module, "Work", HostWork)
        return made

    return use


@pytest.fixture
def notes(tmp_path):
    """Where a part notes what it finds."""
    return Notes(tmp_path / "part.json", Outcome(part="part", title="a part"))


def wrong(notes):
    """What a part has found wrong."""
    notes.end(PASSED)
    return [finding.title for finding in notes.outcome.findings if finding.good is False]


def test_the_port(device, notes, monkeypatch):
    """Memory, events, graphs and refusals; all is given back."""
    monkeypatch.setattr(part_device, "SIZE", 1 << 20)
    made = device()
    part_device.run(notes)
    assert wrong(notes) == []
    assert len(notes.outcome.findings) == 14
    assert (made.used, made.open) == (0, 0)


def test_preparation(device, notes, tmp_path, monkeypatch):
    """Each pair of types goes through the kernel's text."""
    kernels = HostCompiler(tmp_path)
    monkeypatch.setattr(nvrtc.NvrtcCompiler, "__call__", lambda _, macros: kernels(macros))
    monkeypatch.setattr(part_preparation, "ROWS", 1)
    device()
    part_preparation.run(notes)
    assert wrong(notes) == []
    assert len([finding for finding in notes.outcome.findings if finding.good]) == len(part_preparation.CASES)


@pytest.fixture
def small(monkeypatch):
    """Rows of 4 KiB."""
    monkeypatch.setattr(part_path, "WIDTH", 1024)
    monkeypatch.setattr(part_path, "ROWS", 4)


@pytest.mark.usefixtures("small")
def test_overlap(device, notes):
    """Where neighbours overlap, the part says so, with the times of the events."""
    made = device()
    part_path.overlap(notes)
    assert wrong(notes) == []
    by_title = {finding.title: finding.value for finding in notes.outcome.findings}
    assert by_title["uploads that ran beside the computing of another batch"] >= 0.9
    assert by_title["time per batch over its longest step"] < 1.25
    assert made.hazards == []


@pytest.mark.usefixtures("small")
def test_overlap_that_is_none_is_found(device, notes, monkeypatch):
    """Positive control: with one batch at a time nothing runs beside anything."""
    instance = part_path.GpuInstance
    monkeypatch.setattr(part_path, "GpuInstance", lambda *given, **how: instance(*given, **{**how, "depth": 1}))
    device()
    part_path.overlap(notes)
    assert wrong(notes)[:2] == [
        "uploads that ran beside the computing of another batch",
        "downloads that ran beside the computing of another batch",
    ]  # and the time per batch is longer, by how much depends on the machine
    assert notes.outcome.state == FAILED


def test_graphs(device, notes):
    """Both forms answer rightly; which is faster here says nothing."""
    device()
    part_path.graphs(notes)
    assert [title for title in wrong(notes) if title != "plain launches over graph"] == []


def test_leaks(device, notes, monkeypatch):
    """Device memory that is taken and not given back is found. (The process is that of all tests here.)"""
    monkeypatch.setattr(part_path, "LEAK_BATCHES", 1600)
    device()
    part_path.leaks(notes)
    assert [title for title in wrong(notes) if "process" not in title] == []

    made = device()
    leak = iter(range(10**9))
    enqueue = HostWork.enqueue

    def leaky(work, *arguments):
        if next(leak) % 100 == 99:
            made.memory(4 << 20)
        enqueue(work, *arguments)

    monkeypatch.setattr(HostWork, "enqueue", leaky)
    part_path.leaks(notes)
    assert "device memory that is gone" in wrong(notes)


def test_wrong_answers_are_found(device, notes, monkeypatch):
    """A part looks at what comes back."""
    monkeypatch.setattr(part_path, "LEAK_BATCHES", 800)
    init = HostWork.__init__

    def lying(work, *given, **how):
        init(work, *given, **how)
        work.wrong = 1

    monkeypatch.setattr(HostWork, "__init__", lying)
    device()
    part_path.leaks(notes)
    assert "800 batches: every answer is right" in wrong(notes)


def test_the_scheduler(device, notes, monkeypatch):
    """Every request is answered; what it costs here says nothing."""
    monkeypatch.setattr(part_scheduler, "BATCHES", 30)
    device(clock=RealTime())
    part_scheduler.run(notes)
    assert [title for title in wrong(notes) if title != "what the scheduler adds to a batch"] == []
    assert len(notes.outcome.findings) == 6


def test_onnxruntime(device, notes, monkeypatch):
    """Each type in each bucket, and a layer with each way of graphs: the real ONNX Runtime on the fake device."""
    made = device()
    gpu = package(made)
    monkeypatch.setattr(onnx_engine, "_import", lambda: gpu)
    monkeypatch.setattr(onnxruntime, "get_available_providers", gpu.get_available_providers)
    part_engines.onnxruntime(notes)
    assert wrong(notes) == []
    exact = [finding for finding in notes.outcome.findings if "exact in the buckets" in finding.title]
    assert len(exact) == len(part_engines.ONNX_TYPES)
    # Ways of graphs, types, numbers of rows; and of two ways whether each type was captured.
    assert len(notes.outcome.findings) == len(exact) + 3 * 2 * 3 + 2 * 2
    assert (made.used, made.open, made.hazards) == (0, 0, [])


def test_a_package_without_the_provider_is_not_executed(device, notes):
    """The CPU's onnxruntime is no failure of ours."""
    device()
    with pytest.raises(NotExecuted, match="has no CUDAExecutionProvider"):
        part_engines.onnxruntime(notes)


def test_the_generator_counts_what_a_server_answers(tmp_path):
    """Items, and those whose answer is not what it should be."""
    config = Config(
        server=ServerConfig(public=ExposureConfig(address="127.0.0.1:0"), cache_dir=str(tmp_path)),
        models=[ModelConfig(path="synthetic:scale=2", name="echo")],
    )
    items = np.random.default_rng(0).standard_normal((8, 4)).astype("f4")
    server = Server(config)
    server.start()
    try:
        assert server.wait_ready(60)
        for name, expected, some in (("right", 2 * items, False), ("wrong", items, True)):
            np.savez(tmp_path / name, items=items, expected=expected)
            command = [sys.executable, "-m", "bench.gpu.generator", server.addresses["public"], "echo"]
            finished = subprocess.run(
                [*command, str(tmp_path / f"{name}.npz"), "0.1", "0.5", "64"],
                capture_output=True,
                text=True,
                check=True,
            )
            said, counted = finished.stdout.splitlines()
            assert said == "warming up"
            told = json.loads(counted)
            assert told["answered"] > 0
            assert (bool(told["wrong"]), told["ended"]) == (some, "")
    finally:
        server.close()


@pytest.mark.parametrize("name", ["part_engines", "part_faults", "part_throughput", "faulty", "serving", "generator"])
def test_parts_that_need_more_can_be_imported(name):
    """At least their names are right; what they call is checked by its types."""
    importlib.import_module(f"bench.gpu.{name}")
