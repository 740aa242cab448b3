"""What the package shows, and what it refuses to run on."""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import forebay_client
from forebay.v1 import tensor_pb2
from forebay_client import _grpcio, _tensors


def test_the_public_names_are_all_there_is():
    """`__all__` is what can be imported, sorted."""
    public = {
        name
        for name, value in vars(forebay_client).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)  # that somebody has imported
    }

    assert public == set(forebay_client.__all__)
    assert sorted(forebay_client.__all__) == forebay_client.__all__


def test_public_names_say_where_they_are_imported_from():
    """Tracebacks show no private module."""
    assert {getattr(forebay_client, name).__module__ for name in forebay_client.__all__} == {"forebay_client"}


def test_an_old_grpcio_is_refused():
    """With a sentence that says what to do."""
    _grpcio.require("1.84.0")
    _grpcio.require("2.0.0")
    with pytest.raises(ImportError, match=r"needs grpcio 1\.84 or newer, but 1\.83\.1 is installed; run: pip install"):
        _grpcio.require("1.83.1")


def test_every_type_of_the_contract_has_a_numpy_type():
    """A new type must be given one."""
    assert set(_tensors.DTYPES) == set(tensor_pb2.DataType.values()) - {tensor_pb2.DATA_TYPE_UNSPECIFIED}


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (tensor_pb2.Tensor(name="y", data_type=99), "unknown type 99"),
        (tensor_pb2.Tensor(name="y", data_type=14, shape=[1], data=b"\x05\0\0\0ab"), "runs over the end"),
        (tensor_pb2.Tensor(name="y", data_type=14, shape=[1], data=b"\x05\0"), "runs over the end"),
        (tensor_pb2.Tensor(name="y", data_type=14, shape=[2], data=bytes(4)), "1 elements, and its shape 2"),
        (tensor_pb2.Tensor(name="y", data_type=11, shape=[2], data=b"123"), "3 bytes"),
        (tensor_pb2.Tensor(name="y", data_type=11, shape=[-2, -2], data=bytes(16)), r"has the shape \(-2, -2\)"),
    ],
)
def test_tensors_that_contradict_themselves_are_refused(tensor, message):
    """Whatever a server sends, there is no wrong array."""
    with pytest.raises(ValueError, match=message):
        _tensors.decode(tensor)


def test_arrays_that_are_read_are_views():
    """One copy per tensor: out of the message, and no other."""
    array = _tensors.decode(_tensors.encode("y", [1.5, math.inf]))

    assert not array.flags.owndata
    assert not array.flags.writeable


def test_the_types_hold():
    """The examples of use pass the strict type checker."""
    root = Path(__file__).parents[2]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(root / ".mypy_cache"), "tests/clients/typing_examples.py"],
        cwd=root,
        env={**os.environ, "MYPYPATH": "gen/python:server:clients/python"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert checked.stdout.startswith("Success")
