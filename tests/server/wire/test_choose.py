"""Which adapter serves."""

import importlib.util
import sys

import pytest

from forebay_server.errors import ConfigError
from forebay_server.wire.choose import open_wire
from forebay_server.wire.port import Failure, Refusals, WireConfig

NONE = Failure(13, "")
CONFIG = WireConfig(
    methods=[],
    exposures=[],
    refusals=Refusals(
        message_too_large=NONE,
        response_too_large=NONE,
        bytes_held=NONE,
        deadline_expired=NONE,
        slow_reader=NONE,
        slow_sender=NONE,
        draining=NONE,
        compressed=NONE,
    ),
)


@pytest.fixture
def without_native(monkeypatch):
    """Makes `forebay_native` impossible to import."""
    monkeypatch.setitem(sys.modules, "forebay_native", None)


def test_auto_falls_back(without_native):
    """Without the native front end `auto` is grpc.aio."""
    assert open_wire("auto", CONFIG).name == "grpc.aio"


def test_native_must_be_installed(without_native):
    """Asking for the native front end where it is missing is one clear sentence."""
    with pytest.raises(ConfigError, match="not installed"):
        open_wire("native", CONFIG)


def test_grpc_aio_is_taken_where_asked_for():
    """`grpc.aio` is never replaced by the native one."""
    assert open_wire("grpc.aio", CONFIG).name == "grpc.aio"


@pytest.mark.native
@pytest.mark.skipif(importlib.util.find_spec("forebay_native") is None, reason="native front end not installed")
@pytest.mark.parametrize("choice", ["auto", "native"])
def test_native_is_taken_where_it_is_installed(choice):
    """With the native front end installed, it is the default."""
    assert open_wire(choice, CONFIG).name == "native"
