"""The parts of the GPU check that want torch, with the real torch: on the CPU, and on a GPU that isn't there.

They have been run before they meet a GPU; what they find here says nothing of one.
"""

import os
from pathlib import Path

import pytest

from bench.gpu import models, part_engines, part_throughput
from bench.gpu.outcome import PASSED, Notes, Outcome
from forebay_server.engines.gpu import cuda, nvrtc
from tests.server.engines.gpu.fake import FakeDevice
from tests.server.engines.gpu.kernel import HostCompiler
from tests.torch import on_cuda

ROOT = Path(__file__).parents[2]
LESS = {"LAYERS: Final = 12": "LAYERS: Final = 1", "BLOCKS: Final = (3, 4, 6, 3)": "BLOCKS: Final = (1, 1, 1, 1)"}


@pytest.fixture
def notes(tmp_path):
    """Where a part notes what it finds."""
    return Notes(tmp_path / "part.json", Outcome(part="part", title="a part"))


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU that isn't there, and torch on it."""
    device = FakeDevice(total=1 << 32, bandwidth=10e9)
    kernels = HostCompiler(tmp_path)
    monkeypatch.setattr(cuda, "devices", lambda: 1)
    monkeypatch.setattr(cuda, "open_device", lambda index: device)
    monkeypatch.setattr(nvrtc.NvrtcCompiler, "__call__", lambda _, macros: kernels(macros))
    device.torch = on_cuda.install(device, monkeypatch.setattr)
    return device


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Models of the same operations, and fewer of them; in a file, because servers load it as well."""
    text = Path(models.__file__).read_text()
    for much, less in LESS.items():
        assert much in text
        text = text.replace(much, less)
    file = tmp_path / "small_models.py"
    file.write_text(text)
    for module in (part_engines, part_throughput):
        monkeypatch.setattr(module, "MODELS", file)
    monkeypatch.setattr(models, "LAYERS", 1)
    monkeypatch.setattr(models, "BLOCKS", (1, 1, 1, 1))


def wrong(notes):
    """What a part has found wrong."""
    notes.end(PASSED)
    return [(finding.title, finding.value) for finding in notes.outcome.findings if finding.good is False]


@pytest.mark.usefixtures("small")
def test_torch(gpu, notes):
    """Each type in each bucket, and two models whose batches are graphs and whose inputs the device prepares."""
    part_engines.torch(notes)
    assert wrong(notes) == []
    assert len(notes.outcome.findings) == len(part_engines.TORCH_TYPES) + 2 * 2
    assert gpu.torch.cuda.replays > 0
    gpu.torch.give_back()
    assert (gpu.used, gpu.open, gpu.hazards) == (0, 0, [])


def test_a_package(notes, monkeypatch):
    """Exported, compiled and loaded for real, for the CPU; that it has no graphs there is all that is wrong."""
    monkeypatch.setattr(cuda, "devices", lambda: 1)
    monkeypatch.setattr(part_engines, "DEVICE", "cpu")
    part_engines.torch_package(notes)
    assert wrong(notes) == [("batches go through the GPU's data path as they are", None)]
    assert len(notes.outcome.findings) == 1 + len(part_engines.ROWS) + 1


@pytest.mark.usefixtures("small", "gpu")
@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_throughput(name, notes, monkeypatch):
    """In-process, then a server on such a machine with callers around it; how much it is says nothing here."""
    monkeypatch.setattr(part_throughput, "LARGEST", {"bert": 4, "resnet": 4})
    for constant, seconds in (("SECONDS", 2.0), ("WARM_UP", 1.0), ("IN_PROCESS", 0.05)):
        monkeypatch.setattr(part_throughput, constant, seconds)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests" / "bench" / "rehearsal"), str(ROOT)]))
    monkeypatch.setenv("FOREBAY_REHEARSAL_TORCH", "1")
    getattr(part_throughput, name)(notes)
    assert [found for found in wrong(notes) if found[0] != "served over in-process"] == []
    assert {"graphs", "served", "served answers are the model's own", "rows in a batch, mean"} <= {
        finding.title for finding in notes.outcome.findings
    }
