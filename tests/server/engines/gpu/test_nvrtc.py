"""The real compiler makes machine code of our kernels, for every kind of GPU that may be met, without one."""

from pathlib import Path

import pytest

from forebay_server.config.tree import InputConfig
from forebay_server.engines.gpu.device import NoDevice
from forebay_server.engines.gpu.nvrtc import machine_code
from forebay_server.engines.gpu.preparation import defines, source_text
from forebay_server.engines.preparation import plan
from forebay_server.tensors import FREE, DataType, ModelSpec, TensorSpec

pytest.importorskip("nvidia.cu13", reason="nvidia-cuda-nvrtc is not installed")

CAPABILITIES = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
ELF = b"\x7fELF"

PIXELS = InputConfig(data_type="UINT8", layout="channels_last", mean=[1.0, 2.0, 3.0])
PAIRS = [
    *((data_type, PIXELS) for data_type in (DataType.FP16, DataType.BF16, DataType.FP32, DataType.FP64)),
    *(
        (DataType.INT64, InputConfig(data_type=sent))
        for sent in ("UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32")
    ),
    (DataType.UINT64, InputConfig(data_type="UINT32")),
    (DataType.FP32, InputConfig(layout="channels_last")),
]


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_the_kernel_compiles_for_each_gpu(capability):
    """Machine code that holds the function, for pixels and for ids."""
    for config in (("unsigned char", "unsigned int", 1), ("signed int", "signed long long", 0)):
        source, target, pixels = config
        macros = (f"SOURCE={source}", f"TARGET={target}", f"PIXELS={pixels}")
        code = machine_code(source_text(), macros, capability)
        assert code.startswith(ELF)
        assert b"prepare" in code


@pytest.mark.parametrize(("taken", "config"), PAIRS)
def test_the_kernel_compiles_for_each_pair_of_types(taken, config):
    """Whatever a model may take and a caller may send."""
    tensor = TensorSpec(name="x", data_type=taken, shape=(FREE, 3, 4, 4))
    _, (made,) = plan(ModelSpec(inputs=(tensor,), outputs=(), batched=True), {"x": config})
    assert machine_code(source_text(), defines(made), (9, 0)).startswith(ELF)


def test_the_check_compiles():
    """So does what `make gpu-check` computes."""
    text = (Path(__file__).parents[4] / "bench" / "gpu" / "work.cu").read_text()
    assert b"work" in machine_code(text, ("ILLEGAL=-700.0f", "ENDLESS=-702.0f"), (9, 0))


@pytest.mark.parametrize(
    ("text", "capability", "sentence"),
    [
        ("nonsense", (9, 0), "NVRTC can't compile the kernel .*storage class"),
        ("", (1, 0), "NVRTC can't compile the kernel .*gpu-architecture"),
    ],
)
def test_what_it_refuses_is_said(text, capability, sentence):
    """With its own words: a GPU that is newer than it, say."""
    with pytest.raises(NoDevice, match=sentence):
        machine_code(text, (), capability)
