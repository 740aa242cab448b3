"""Whether a package can run somewhere, decided by what it says."""

import pytest

from forebay_server.engines.torch import target
from forebay_server.engines.torch.target import Target

AVX512 = frozenset({"avx2", "fma", "f16c", "avx512f", "avx512dq", "avx512vl", "avx512bw", "popcnt"})
LAPTOP = Target(
    device="cpu",
    platform="linux",
    machine="x86_64",
    instructions=AVX512,
    compute_capability=None,
    torch="2.13.0+cu130",
)
H100 = Target(
    device="cuda:1",
    platform="linux",
    machine="x86_64",
    instructions=AVX512,
    compute_capability=(9, 0),
    torch="2.13.0+cu130",
)
CPU = {"AOTI_DEVICE_KEY": "cpu", "AOTI_PLATFORM": "linux", "AOTI_MACHINE": "x86_64", "AOTI_CPU_ISA": "AVX512"}
COMPILE = "; compile it on such a machine"
PLACED = "; engine.devices says where it runs"
CUDA = {**CPU, "AOTI_DEVICE_KEY": "cuda", "AOTI_COMPUTE_CAPABILITY": "90"}


@pytest.mark.parametrize(
    ("metadata", "torch", "built_with", "here"),
    [
        (CPU, "2.13.0", ["avx2", "popcnt"], LAPTOP),
        (CPU, "2.13.1+cpu", [], LAPTOP),
        ({**CPU, "AOTI_CPU_ISA": "INVALID_VEC_ISA"}, "2.13.0", [], LAPTOP),
        ({"AOTI_DEVICE_KEY": "cpu"}, "2.13.0", [], LAPTOP),
        (CUDA, "2.13.0", ["avx512bw"], H100),
    ],
)
def test_what_fits_is_not_complained_of(metadata, torch, built_with, here):
    """The positive control: such packages may run."""
    assert target.complaint(metadata, torch, built_with, here) == ""


@pytest.mark.parametrize(
    ("metadata", "torch", "built_with", "here", "sentence"),
    [
        (
            CUDA,
            "2.13.0",
            [],
            LAPTOP,
            "compiled for the device 'cuda', not for 'cpu'" + PLACED,
        ),
        (CPU, "2.13.0", [], H100, "compiled for the device 'cpu', not for 'cuda'" + PLACED),
        ({}, "2.13.0", [], LAPTOP, "compiled for the device '', not for 'cpu'" + PLACED),
        (
            {**CPU, "AOTI_MACHINE": "aarch64"},
            "2.13.0",
            [],
            LAPTOP,
            "compiled for aarch64, but this machine is x86_64",
        ),
        ({**CPU, "AOTI_PLATFORM": "darwin"}, "2.13.0", [], LAPTOP, "compiled for darwin, but this machine is linux"),
        (CPU, "2.12.1", [], LAPTOP, "compiled by torch 2.12.1, but here is 2.13.0+cu130; compile it again"),
        (
            {**CPU, "AOTI_CPU_ISA": "AVX512 AVX512_VNNI AMX_TILE"},
            "2.13.0",
            [],
            LAPTOP,
            "compiled for a processor with amx_bf16, amx_int8, amx_tile, avx512_vnni, which this one lacks" + COMPILE,
        ),
        (
            CPU,
            "2.13.0",
            ["avx2", "gfni"],
            LAPTOP,
            "compiled for a processor with gfni, which this one lacks" + COMPILE,
        ),
        (
            {**CPU, "AOTI_CPU_ISA": "NEWER"},
            "2.13.0",
            [],
            LAPTOP,
            "compiled for a processor with newer, which this one lacks" + COMPILE,
        ),
        (
            {**CUDA, "AOTI_COMPUTE_CAPABILITY": "80"},
            "2.13.0",
            [],
            H100,
            "compiled for compute capability 80, but cuda:1 has 90; compile it on such a GPU",
        ),
    ],
)
def test_each_misfit_has_its_sentence(metadata, torch, built_with, here, sentence):
    """One clear sentence, before any code of the package is loaded."""
    assert target.complaint(metadata, torch, built_with, here) == sentence


def test_instructions_of_x86():
    """Of the flags, those that compilers use by themselves."""
    text = "processor : 0\nflags\t\t: fpu sse4_2 ht avx2 avx512_bf16 md_clear amx_tile bmi1\n\nflags : nothing\n"
    assert target.instructions(text) == {"sse4_2", "avx2", "avx512_bf16", "amx_tile", "bmi1"}


def test_instructions_of_arm():
    """ARM calls them features."""
    assert target.instructions("Features\t: fp asimd sve sve2 i8mm bf16 cpuid\n") == {
        "asimd",
        "sve",
        "sve2",
        "i8mm",
        "bf16",
    }


def test_no_instructions():
    """What is not there is not needed."""
    assert target.instructions("") == frozenset()
