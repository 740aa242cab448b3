"""The sidecar of a plan: a small JSON file beside it (`model.plan.json`) that says for what it was built.

It is read and checked before TensorRT sees a byte of the plan: a plan of another version or GPU, or a damaged one, can
make TensorRT do worse than refuse. It guards against mistakes, not against whoever can write to the folder: who can
replace the plan can replace the sidecar.
"""

import hashlib
from pathlib import Path
from typing import Final, Literal

import msgspec

from forebay_server.engines.base import ModelLoadError
from forebay_server.engines.files import replace
from forebay_server.engines.gpu.device import Device
from forebay_server.engines.tensorrt.library import numbers

FORMAT: Final = 1
AMPERE: Final = (8, 0)

Hardware = Literal["same", "ampere+"]
"""On which GPUs a plan runs: on those of its own compute capability, or on any from Ampere on."""


class Sidecar(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a plan."""

    sha256: str
    """Of the plan, in hexadecimal digits."""
    size: int
    """Its bytes."""
    tensorrt: str
    """The version that built it."""
    compute_capability: str
    """Of the GPU that it was built on, such as `9.0`."""
    hardware: Hardware = "same"
    version_compatible: bool = False
    """Whether the lean runtime runs it, of the same major version and not older."""
    batched: bool | None = None
    """Whether dimension 0 is the batch, as it was when it was built; null: not known."""
    gpu: str = ""
    """The product that it was built on; its timings are best there."""
    onnx_sha256: str = ""
    """Of what it was built from."""
    built: str = ""
    """When, RFC 3339."""
    format: int = FORMAT


def path_of(plan: Path) -> Path:
    """Where the sidecar of a plan is."""
    return plan.with_name(plan.name + ".json")


def read(plan: Path) -> Sidecar:
    """Reads the sidecar of a plan.

    Raises:
        ModelLoadError: It is missing, or not a sidecar.
    """
    file = path_of(plan)
    try:
        sidecar = msgspec.json.decode(file.read_bytes(), type=Sidecar)
    except FileNotFoundError as error:
        raise ModelLoadError(
            f"{plan}: its sidecar {file.name} is missing; `forebay build-plan` writes it, for plans of others too"
        ) from error
    except OSError as error:
        raise ModelLoadError(f"{file}: can't be read: {error.strerror or error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{file}: not the sidecar of a plan: {error}") from error
    if sidecar.format != FORMAT:
        raise ModelLoadError(f"{file}: its format is {sidecar.format}, and this Forebay reads {FORMAT}")
    return sidecar


def write(plan: Path, sidecar: Sidecar) -> None:
    """Writes the sidecar of a plan; an old one is replaced whole."""
    replace(path_of(plan), msgspec.json.format(msgspec.json.encode(sidecar), indent=2) + b"\n")


def check_place(sidecar: Sidecar, plan: Path, device: Device, version: str) -> None:
    """Whether a plan is for this GPU and this TensorRT.

    Args:
        sidecar: What is said of it.
        plan: Its path, for the sentence.
        device: Where it is to run.
        version: Of the library that is to run it; of the lean one if the plan is version-compatible.

    Raises:
        ModelLoadError: It is not.
    """
    have = device.compute_capability
    built_for = numbers(sidecar.compute_capability)
    here = f"{device.label} ({device.name}) has {have[0]}.{have[1]}"
    if sidecar.hardware == "ampere+":
        if have < AMPERE:
            raise ModelLoadError(f"{plan}: built for compute capability 8.0 or higher, but {here}")
    elif built_for != have:
        raise ModelLoadError(
            f"{plan}: built for compute capability {sidecar.compute_capability}, but {here}; build it on this GPU"
        )
    if sidecar.version_compatible:
        if numbers(sidecar.tensorrt)[:1] != numbers(version)[:1] or numbers(sidecar.tensorrt) > numbers(version):
            raise ModelLoadError(
                f"{plan}: built by TensorRT {sidecar.tensorrt}, and takes a runtime of the same major version that is "
                f"not older; {version} is installed"
            )
    elif sidecar.tensorrt != version:
        raise ModelLoadError(
            f"{plan}: built by TensorRT {sidecar.tensorrt}, but {version} is installed; build it with that"
        )


def check_bytes(sidecar: Sidecar, plan: Path, data: bytes) -> None:
    """Whether the bytes of a plan are those that the sidecar speaks of. Releases the GIL while it reads them.

    Raises:
        ModelLoadError: They are not.
    """
    if len(data) != sidecar.size:
        less = "cut off" if len(data) < sidecar.size else "another one"
        raise ModelLoadError(f"{plan}: it has {len(data)} bytes and its sidecar says {sidecar.size}: it is {less}")
    if hashlib.sha256(data).hexdigest() != sidecar.sha256:
        raise ModelLoadError(f"{plan}: its SHA-256 is not that of its sidecar: it is damaged, or another one")
