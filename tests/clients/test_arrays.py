"""What the client takes for an array beside numpy's."""

import sys

import ml_dtypes
import numpy as np
import pytest

from forebay.v1 import tensor_pb2
from forebay_client import _tensors


class Foreign:
    """An array of another library, which speaks DLPack and nothing else."""

    def __init__(self, array):
        self.array = array
        self.exports = 0

    def __dlpack__(self, **options):
        self.exports += 1
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Distant(Foreign):
    """One in the memory of a device, which can be copied from there."""

    def __dlpack__(self, *, dl_device=None, copy=None, **options):
        if dl_device != (1, 0) or not copy:
            raise BufferError("it is on a device")
        return super().__dlpack__(**options)

    def __dlpack_device__(self):
        return (2, 0)


def test_arrays_that_speak_dlpack_are_sent():
    """Without a copy of their own on the way."""
    foreign = Foreign(np.arange(6, dtype=np.int32).reshape(2, 3))
    found = _tensors.encode("x", foreign)

    assert (found.data_type, list(found.shape), foreign.exports) == (tensor_pb2.DATA_TYPE_INT32, [2, 3], 1)
    assert found.data == np.arange(6, dtype="<i4").tobytes()
    assert np.shares_memory(_tensors.as_array("x", foreign), foreign.array)


def test_arrays_of_a_device_are_copied_from_there():
    """By the library that knows how."""
    found = _tensors.encode("x", Distant(np.ones(3, np.float32)))

    assert found.data == np.ones(3, "<f4").tobytes()


def test_an_array_that_cannot_be_copied_is_a_type_error():
    """It names the input and the reason."""

    class Stuck(Distant):
        def __dlpack__(self, **options):
            raise BufferError("it stays where it is")

    with pytest.raises(TypeError, match="input 'x': Stuck can't be read: it stays where it is"):
        _tensors.encode("x", Stuck(np.ones(3)))


def test_texts_keep_the_zeros_at_their_ends():
    """numpy's own texts would lose them."""
    found = _tensors.decode(_tensors.encode("x", ["a\0", "ü\0\0"]))

    assert found.tolist() == [b"a\0", "ü\0\0".encode()]


def test_byte_strings_keep_the_zeros_at_their_ends():
    """As numpy's own byte strings they would lose them, and an encoded image its last bytes."""
    found = _tensors.decode(_tensors.encode("x", [b"a\0\0", b"\0"]))

    assert found.tolist() == [b"a\0\0", b"\0"]


class Bits:
    """What torch gives for bfloat16, as far as the client uses it; for machines without torch."""

    dtype = "torch.bfloat16"

    def __init__(self, array):
        self.array = array

    def detach(self):
        return self

    cpu = contiguous = detach

    def view(self, dtype):
        assert dtype == "int16"
        return self

    def numpy(self):
        return self.array.view(np.int16)


def test_bfloat16_of_torch_is_sent_as_its_bits(monkeypatch):
    """numpy's DLPack does not know the type."""

    class Torch:
        int16 = "int16"

    monkeypatch.setitem(sys.modules, "torch", Torch)
    found = _tensors.encode("x", Bits(np.array([0.5, -1], ml_dtypes.bfloat16)))

    assert found.data_type == tensor_pb2.DATA_TYPE_BF16
    assert _tensors.decode(found).tolist() == [0.5, -1]


def test_tensors_of_torch_are_sent():
    """With a gradient, not contiguous, and of the type that numpy lacks."""
    torch = pytest.importorskip("torch")
    weights = torch.arange(6, dtype=torch.float32, requires_grad=True).reshape(2, 3).T

    assert _tensors.decode(_tensors.encode("x", weights)).tolist() == [[0, 3], [1, 4], [2, 5]]
    halves = torch.tensor([0.5, -1], dtype=torch.bfloat16)
    assert _tensors.decode(_tensors.encode("x", halves)).tolist() == [0.5, -1]
