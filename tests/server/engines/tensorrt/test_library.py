"""Finding TensorRT: by any of its names, and one sentence where something is missing."""

import sys

import pytest

from forebay_server.engines.base import ModelLoadError
from forebay_server.engines.tensorrt import library
from forebay_server.engines.tensorrt.library import numbers


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Nothing is installed but what a test puts there as a file."""
    for name in (*library.FULL, *library.LEAN):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(library, "_libraries", {})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(library, "FULL", ("trt_test_handed_on", "trt_test_bindings"))
    yield tmp_path
    for name in ("trt_test_handed_on", "trt_test_bindings"):
        sys.modules.pop(name, None)


MODULE = """
class Severity:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

class ILogger:
    Severity = Severity

__version__ = {version!r}
"""


def refusal(device):
    with pytest.raises(ModelLoadError) as caught:
        library.library(device)
    return str(caught.value)


def test_the_bindings_alone_will_do(alone, device):
    """A package that hands them on need not be there; the second call finds the first one's."""
    (alone / "trt_test_bindings.py").write_text(MODULE.format(version="11.4.0.106"))
    found = library.library(device)
    assert (found.version, found.lean) == ("11.4.0.106", False)
    assert library.library(device) is found


def test_nothing_is_there(alone, device):
    """The sentence says what to install."""
    assert refusal(device) == (
        "TensorRT is not installed (pip install 'forebay[tensorrt]'; docs/tensorrt.md says from where)"
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "raise ImportError('libnvinfer.so.11: cannot open shared object file')",
            "libnvinfer.so.11: cannot open shared",
        ),
        ("raise OSError('libnvonnxparser.so.11: invalid ELF header')", "libnvonnxparser.so.11: invalid ELF header"),
        ("import trt_test_missing", "No module named 'trt_test_missing'"),
    ],
)
def test_a_library_that_it_needs_is_missing(alone, device, text, why):
    """Which one is told; it is not taken for not installed."""
    (alone / "trt_test_handed_on.py").write_text(text)
    assert refusal(device).startswith(f"trt_test_handed_on is installed, but can't be imported: {why}")


@pytest.mark.parametrize("version", ["10.12.0.36", "8.6.1", "10.9.0.34"])
def test_too_old(alone, device, version):
    """Its interface lacks what is used; 10.9 is older than 10.13."""
    (alone / "trt_test_bindings.py").write_text(MODULE.format(version=version))
    assert refusal(device) == f"TensorRT {version} is too old: it takes 10.13 or newer"


def test_numbers_of_versions():
    """To compare, not to show."""
    assert numbers("10.14.1.48.post1") == (10, 14, 1, 48, 1)
    assert numbers("9.0") < numbers("10.0")
