"""Finding engines by name, suffix, and form of the path."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from forebay_server.engines import registry
from forebay_server.engines.onnxruntime import OnnxRuntimeEngine
from forebay_server.engines.python import PythonEngine
from forebay_server.engines.synthetic import SyntheticEngine
from forebay_server.engines.torch import TorchEngine
from forebay_server.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "path", "factory", "given"),
    [
        ("auto", "folder/model.onnx", OnnxRuntimeEngine, Path("folder/model.onnx")),
        ("auto", "MODEL.ONNX", OnnxRuntimeEngine, Path("MODEL.ONNX")),
        ("onnxruntime", "weights.bin", OnnxRuntimeEngine, Path("weights.bin")),
        ("auto", "package.module:predict", PythonEngine, "package.module:predict"),
        ("auto", "folder/file.py:Model.predict", PythonEngine, "folder/file.py:Model.predict"),
        ("python", "module:predict", PythonEngine, "module:predict"),
        ("auto", "synthetic:base_ms=1,row_ms=2", SyntheticEngine, "base_ms=1,row_ms=2"),
        ("synthetic", "", SyntheticEngine, ""),
        ("auto", "folder/model.pt2", TorchEngine, Path("folder/model.pt2")),
        ("auto", "torch:folder/file.py:factory", TorchEngine, "folder/file.py:factory"),
        ("torch", "package.module:factory", TorchEngine, "package.module:factory"),
        ("torch", "10:30/a:model.pt2", TorchEngine, Path("10:30/a:model.pt2")),
        ("torch", "package", TorchEngine, Path("package")),
        ("synthetic", "synthetic:base_ms=1", SyntheticEngine, "base_ms=1"),
    ],
)
def test_found(name, path, factory, given):
    """The engine is the one that was named, or that the path asks for."""
    found = registry.find(name, path)
    assert (found.factory, found.path) == (factory, given)


def test_unknown_engines_and_suffixes_are_named():
    """The sentence says what there is instead."""
    with pytest.raises(
        ConfigError, match="no engine is called 'caffe'; installed are onnxruntime, python, synthetic, tensorrt, torch"
    ):
        registry.find("caffe", "model.onnx")
    with pytest.raises(ConfigError, match=r"model\.pb: no engine takes a file with the suffix '\.pb'"):
        registry.find("auto", "model.pb")


def test_a_broken_engine_does_not_hide_the_others(monkeypatch):
    """An engine that can't be imported matters only to those who need it."""
    broken = EntryPoint("broken", "no_such_package.engine:Engine", registry.GROUP)
    nothing = EntryPoint("nothing", "math:pi", registry.GROUP)
    points = [broken, nothing, *registry.entry_points(group=registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    assert registry.find("auto", "model.onnx").name == "onnxruntime"
    with pytest.raises(ConfigError, match="'broken' can't be imported from"):
        registry.find("broken", "x")
    with pytest.raises(ConfigError, match="doesn't say which suffixes it takes"):
        registry.find("nothing", "x")
