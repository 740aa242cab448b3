"""Archives like those of AOTInductor, without the code in them: what can be judged before torch is touched."""

import json
import platform
import sys
import zipfile

from forebay_server.engines.torch import library, profile
from forebay_server.engines.torch.profile import Profile, Range, Tensor

TORCH = "2.13.0+cu130"


def profile_like(**changes):
    """A profile of `x FP32[batch, 4], ids INT64[batch, s]` to `y FP32[batch, s]`, batches of 1 to 8 rows."""
    fields = {
        "format": profile.FORMAT,
        "torch": TORCH,
        "instructions": (),
        "inputs": (Tensor("x", "FP32", ("b", 4)), Tensor("ids", "INT64", ("b", "s"))),
        "outputs": (Tensor("y", "FP32", ("b", "s")),),
        "dimensions": {"b": Range(1, 8), "s": Range(1, 512)},
    }
    return Profile(**{**fields, **changes})


def metadata_like(made=None, **changes):
    """What is written into a package that was compiled on this machine."""
    metadata = {
        "AOTI_DEVICE_KEY": "cpu",
        "AOTI_PLATFORM": sys.platform,
        "AOTI_MACHINE": platform.machine(),
        "AOTI_CPU_ISA": "INVALID_VEC_ISA",
        "AOTI_COMPUTE_CAPABILITY": "",
        profile.KEY: profile.encode(made or profile_like(instructions=tuple(sorted(library.instructions_here())))),
        **changes,
    }
    return {key: value for key, value in metadata.items() if value is not None}


def write_package(path, metadata, *, model="model", folder="data/aotinductor", more=()):
    """Writes an archive with this metadata."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem}/archive_format", "pt2")
        text = metadata if isinstance(metadata, str | bytes) else json.dumps(metadata)
        archive.writestr(f"{path.stem}/{folder}/{model}/abc.wrapper_metadata.json", text)
        archive.writestr(f"{path.stem}/{folder}/{model}/abc.wrapper.so", b"\x7fELF" + bytes(1000))
        for name in more:
            archive.writestr(f"{path.stem}/{name}", "{}")
    return path
