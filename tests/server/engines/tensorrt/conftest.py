"""A computer with a GPU and TensorRT, both make-believe; at the end nothing of them may be left."""

import gc
import hashlib
import json
import sys

import pytest

from forebay_server.config.tree import BatchingConfig, BucketsConfig
from forebay_server.engines.gpu import cuda
from forebay_server.engines.gpu.device import NoDevice
from forebay_server.engines.tensorrt import library
from forebay_server.engines.tensorrt.engine import TensorRtEngine
from forebay_server.models.loader import EngineSettings
from tests.server.engines.gpu.fake import FakeDevice
from tests.server.engines.tensorrt import fake_builder
from tests.server.engines.tensorrt.fake_builder import plan_of
from tests.server.engines.tensorrt.fake_tensorrt import Machine
from tests.server.engines.tensorrt.helpers import RANGE


@pytest.fixture
def device():
    """The GPU."""
    made = FakeDevice()
    yield made
    assert made.hazards == []
    assert made.lost or (made.open, made.used) == (0, 0)


@pytest.fixture
def install(device, monkeypatch):
    """Installs TensorRT, full and lean, in place of what there was, and gives the machine."""

    def put(version="10.16.1.11", *, full=True, lean=True):
        machine = Machine(device, version)
        for names, there, is_lean in ((library.FULL, full, False), (library.LEAN, lean, True)):
            module = fake_builder.module(machine, lean=is_lean) if there else None
            monkeypatch.setitem(sys.modules, names[0], module)
            monkeypatch.setitem(sys.modules, names[1], None)  # what is None there can't be imported
        monkeypatch.setattr(library, "_libraries", {})
        return machine

    def open_device(index):
        if index != device.index:
            raise NoDevice(f"there is no device cuda:{index}; the process sees 1 (see CUDA_VISIBLE_DEVICES)")
        device.use()
        return device

    monkeypatch.setattr(cuda, "devices", lambda: 1)
    monkeypatch.setattr(cuda, "open_device", open_device)
    yield put
    gc.collect()


@pytest.fixture
def machine(install):
    """TensorRT 10.16.1.11 on the GPU."""
    return install()


@pytest.fixture
def engine(machine, tmp_path):
    """Makes engines; closes them, and the instances that they made, at the end."""
    engines = []

    def make(path, *, batching=None, buckets=None, progress=lambda _words: None, memory=0, cache=True, **options):
        settings = EngineSettings(
            1,
            1,
            options,
            device="cuda:0",
            memory=memory,
            batching=BatchingConfig(**(batching or {})),
            buckets=BucketsConfig(**(buckets or {})),
            cache_dir=tmp_path / "cache" if cache else None,
            progress=progress,
        )
        made = TensorRtEngine(path, settings)
        made.instances = []
        instance = made.instance
        made.instance = lambda index=0: made.instances.append(instance(index)) or made.instances[-1]
        engines.append(made)
        return made

    yield make
    for made in engines:
        for instance in made.instances:
            instance.close()
        made.close()


@pytest.fixture
def plan(machine, onnx_models, tmp_path):
    """Puts a plan there as others have built it, with a sidecar that can be made wrong."""

    def put(model=None, profiles=({**RANGE},), *, data=None, header=(), **said):
        data = data or plan_of(model or onnx_models.make_linear_model(), machine, list(profiles), **dict(header))
        path = tmp_path / "model.plan"
        path.write_bytes(data)
        plain = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "size": len(data),
            "tensorrt": "10.16.1.11",
            "compute_capability": "9.0",
        }
        (tmp_path / "model.plan.json").write_text(json.dumps(plain | said))
        return path

    return put
