"""Which GPU has how much memory free: asked in a process of its own."""

import pytest

from forebay_server.engines.gpu import cuda, memory
from forebay_server.engines.gpu.device import NoDevice
from tests.server.engines.gpu.fake import FakeDevice


def test_without_a_gpu_the_sentence_is_the_ports(monkeypatch):
    """No process is started to find that out."""

    def none():
        raise NoDevice("there is no NVIDIA driver here")

    monkeypatch.setattr(cuda, "devices", none)
    monkeypatch.setattr(memory.subprocess, "run", None)
    with pytest.raises(NoDevice, match="there is no NVIDIA driver here"):
        memory.free_memory()


def test_a_process_that_cannot_answer_is_one_sentence(monkeypatch):
    """Here the process finds no driver, though this one was told that there is a GPU."""
    try:
        cuda.devices()
    except NoDevice:
        monkeypatch.setattr(cuda, "devices", lambda: 1)
        with pytest.raises(NoDevice, match=r"can't be asked for: .*; name one, such as cuda:0"):
            memory.free_memory()
    else:
        assert len(memory.free_memory()) == cuda.devices()


def test_the_process_asks_each_gpu(monkeypatch):
    """One that somebody has for himself has nothing free; what was opened is closed."""
    devices = [FakeDevice(0, total=100), None, FakeDevice(2, total=300)]
    closed = []

    def open_device(index):
        if devices[index] is None:
            raise NoDevice("the device cuda:1 can't be used")
        devices[index].close = lambda: closed.append(index)
        return devices[index]

    monkeypatch.setattr(cuda, "devices", lambda: 3)
    monkeypatch.setattr(cuda, "open_device", open_device)
    devices[2].used = 50
    assert memory._asked() == [100, 0, 250]
    assert closed == [0, 2]
