"""Whether a compiled package can run here: it is native code, for one device, machine and set of instructions.

Pure: `complaint` compares what the package says with a `Target`. `instructions` reads the processor's. No torch here.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CPUINFO: Final = Path("/proc/cpuinfo")

_INSTRUCTIONS: Final = re.compile(r"(avx|amx|bmi|sse|sve|asimd)\w*|ssse3|fma|f16c|popcnt|abm|movbe|gfni|bf16|i8mm")
"""Of the processor's flags, those that a compiler makes use of by itself."""

_VECTORS: Final[Mapping[str, Collection[str]]] = {
    "AVX2": ("avx2", "fma", "f16c"),
    "AVX512": ("avx512f", "avx512dq", "avx512vl", "avx512bw", "fma"),
    "AVX512_VNNI": ("avx512_vnni",),
    "AMX_TILE": ("amx_tile", "amx_bf16", "amx_int8"),
    "ASIMD": ("asimd",),
    "INVALID_VEC_ISA": (),
}
"""What the words of `AOTI_CPU_ISA` stand for. Others are looked for by their own name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What there is to run a package on."""

    device: str
    """`cpu`, `cuda:0`."""
    platform: str
    """As `sys.platform` says."""
    machine: str
    """As `platform.machine()` says."""
    instructions: frozenset[str]
    compute_capability: tuple[int, int] | None
    """Of the device, if it is a GPU."""
    torch: str
    """The version of torch."""


def instructions(cpuinfo: str) -> frozenset[str]:
    """The extensions that the first processor of a `/proc/cpuinfo` has, of those that compilers use by themselves."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    return frozenset(flag for flag in (found[1].split() if found else ()) if _INSTRUCTIONS.fullmatch(flag))


def complaint(metadata: Mapping[str, str], torch: str, built_with: Collection[str], target: Target) -> str:
    """Why a package can't run, as the end of a sentence about it, or nothing.

    Args:
        metadata: What torch has written into the package.
        torch: The version of torch that has compiled it.
        built_with: The instructions that its compiler may have used.
        target: Where it is to run.
    """
    device = metadata.get("AOTI_DEVICE_KEY", "")
    kind = target.device.partition(":")[0]
    if device != kind:
        return f"compiled for the device {device!r}, not for {kind!r}; engine.devices says where it runs"
    for key, here in (("AOTI_PLATFORM", target.platform), ("AOTI_MACHINE", target.machine)):
        there = metadata.get(key, here)
        if there != here:
            return f"compiled for {there}, but this machine is {here}"
    if _series(torch) != _series(target.torch):
        return f"compiled by torch {torch}, but here is {target.torch}; compile it again"
    vectors = {
        flag for word in metadata.get("AOTI_CPU_ISA", "").split() for flag in _VECTORS.get(word, (word.lower(),))
    }
    if missing := sorted((vectors | set(built_with)) - target.instructions):
        return f"compiled for a processor with {', '.join(missing)}, which this one lacks; compile it on such a machine"
    if kind == "cuda":
        there, here = (
            metadata.get("AOTI_COMPUTE_CAPABILITY", ""),
            "{}{}".format(*target.compute_capability or ("?", "?")),
        )
        if there != here:
            return f"compiled for compute capability {there}, but {target.device} has {here}; compile it on such a GPU"
    return ""


def _series(version: str) -> tuple[str, ...]:
    """`2.13` of `2.13.1+cu130`: packages of one series fit its runtime."""
    return tuple(version.partition("+")[0].split(".")[:2])
