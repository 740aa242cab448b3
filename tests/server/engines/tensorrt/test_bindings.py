"""The make-believe TensorRT is held to the real lean bindings, which import without a driver.

What loads and runs plans is in them: classes, methods, arguments, enumerations. So code that passes the other tests
calls what there is, as it is. Nothing of TensorRT is made here: without a device its objects crash the process.
"""

import enum
import hashlib
import inspect
import json
import re
import subprocess
import sys

import pytest
import structlog

from forebay_server.engines.gpu import cuda
from forebay_server.engines.gpu.device import NoDevice
from forebay_server.engines.gpu.pool import Budget
from forebay_server.engines.tensorrt import library
from forebay_server.engines.tensorrt.allocator import OutputMemory, make_allocator
from forebay_server.engines.tensorrt.logger import Errors, make_logger, make_recorder
from tests.server.engines.gpu.fake import FakeDevice
from tests.server.engines.tensorrt import fake_builder
from tests.server.engines.tensorrt.fake_tensorrt import Machine

trt = pytest.importorskip("tensorrt_lean_bindings", reason="the lean bindings are for Linux on x86-64")

FAKE = fake_builder.module(Machine(None), lean=True)

CLASSES = [name for name, made in vars(FAKE).items() if inspect.isclass(made) and not issubclass(made, enum.Enum)]
ENUMS = [name for name, made in vars(FAKE).items() if inspect.isclass(made) and issubclass(made, enum.Enum)]


def methods(made):
    """The public methods that a make-believe class has itself."""
    return {
        name: function
        for name, function in vars(made).items()
        if inspect.isfunction(function) and not name.startswith("_")
    }


def signatures(function):
    """The argument names of each overload, read from the docstring of a binding."""
    found = re.findall(rf"{function.__name__}\((.*?)\) -> ", function.__doc__ or "", re.DOTALL)
    split = [re.findall(r"(?:^|, )(\w+):", text) for text in found]
    return [[name for name in names if name != "self"] for names in split]


def test_there_is_something_to_compare():
    """Positive control."""
    assert {"Runtime", "ICudaEngine", "IExecutionContext", "IOutputAllocator", "ILogger"} <= set(CLASSES)
    assert {"DataType", "TensorIOMode", "TensorLocation", "ErrorCodeTRT"} <= set(ENUMS)
    assert library.numbers(trt.__version__) >= library.OLDEST


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_as_theirs(name):
    """Each method is there, with an overload that takes its arguments by their names."""
    fake, real = getattr(FAKE, name), getattr(trt, name)
    for method, function in methods(fake).items():
        wanted = [argument for argument in inspect.signature(function).parameters if argument != "self"]
        theirs = signatures(getattr(real, method))
        assert theirs, f"{name}.{method}: {getattr(real, method).__doc__}"
        assert wanted in theirs, f"{name}.{method}"
    for attribute, value in vars(fake).items():
        if isinstance(value, property):
            assert isinstance(getattr(real, attribute), property), f"{name}.{attribute}"


@pytest.mark.parametrize("name", ["Runtime", "ICudaEngine", "IExecutionContext"])
def test_what_is_set_can_be_set(name):
    """A recorder on each object, and the host code of a runtime."""
    assert isinstance(getattr(trt, name).error_recorder, property)
    assert getattr(trt, name).error_recorder.fset is not None
    assert trt.Runtime.engine_host_code_allowed.fset is not None


@pytest.mark.parametrize("name", ENUMS)
def test_enumerations_are_as_theirs(name):
    """Each member is there, with its number; its name is found as ours is."""
    fake, real = getattr(FAKE, name), getattr(trt, name)
    for member in fake:
        theirs = getattr(real, member.name)
        assert (theirs.name, int(theirs)) == (member.name, member.value)
    for member in FAKE.ILogger.Severity:
        assert int(getattr(trt.ILogger.Severity, member.name)) == member.value


def test_our_classes_can_be_made_of_theirs(capfd):
    """A logger, a recorder and an allocator are no objects of the GPU: they are made, and called as TensorRT does."""
    errors = Errors()
    recorder = make_recorder(trt, errors)
    with structlog.testing.capture_logs() as logs:
        make_logger(trt).log(trt.ILogger.Severity.WARNING, "x")
        assert recorder.report_error(trt.ErrorCodeTRT.FAILED_ALLOCATION, "none left") is True
    assert [log["event"] for log in logs] == ["tensorrt", "tensorrt reports"]
    assert (errors.all(), errors.no_memory()) == ([("FAILED_ALLOCATION", "none left")], True)
    assert recorder.get_error_code(0) == trt.ErrorCodeTRT.FAILED_ALLOCATION
    assert isinstance(make_allocator(trt, OutputMemory(FakeDevice(), Budget())), trt.IOutputAllocator)
    assert capfd.readouterr() == ("", "")


def test_the_library_is_found(monkeypatch):
    """By the name that its wheel has, and once."""
    monkeypatch.setattr(library, "_libraries", {})
    found = library.library(object(), lean=True)
    assert (found.trt.__name__ in library.LEAN, found.lean) == (True, True)
    assert found.trt.Runtime is trt.Runtime
    assert sys.modules[library.LEAN[1]] is trt


def test_without_a_driver_a_plan_is_a_sentence(tmp_path):
    """A real process with the real bindings: they would crash it if anything of theirs were made."""
    try:
        cuda.devices()
    except NoDevice as error:
        why = str(error)
    else:
        pytest.skip("there is a GPU here")
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"plan")
    said = {"sha256": hashlib.sha256(b"plan").hexdigest(), "size": 4, "tensorrt": trt.__version__}
    said |= {"compute_capability": "9.0", "version_compatible": True}
    (tmp_path / "model.plan.json").write_text(json.dumps(said))
    ended = subprocess.run(
        [sys.executable, "-m", "forebay_server", "check", plan],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 1
    assert f"can't be served: {why}" in ended.stdout
    assert ended.stderr == "forebay: 1 of 1 models can't be served\n"
