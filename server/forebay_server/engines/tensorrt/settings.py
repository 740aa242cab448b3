"""How plans are built: the engine's options that matter for that. Read for serving and for `forebay build-plan`."""

from typing import Final, TypeVar, get_args

import msgspec

from forebay_server.engines.base import ModelLoadError
from forebay_server.engines.options import Options
from forebay_server.engines.tensorrt.profiles import Spread
from forebay_server.engines.tensorrt.sidecar import Hardware

LEVELS: Final = range(6)

Choice = TypeVar("Choice", bound=str)


class BuildSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan's key holds beside the network, the profiles and the GPU."""

    optimization_level: int = 3
    """How long TensorRT searches, 0 to 5."""
    workspace_mib: int = 0
    """The most memory that a layer may use beside its tensors; 0: all there is."""
    version_compatible: bool = False
    """For the lean runtime, of the same major version and not older."""
    hardware: Hardware = "same"
    spread: Spread = "bucket"
    best_rows: int = 0
    """The batch to be fastest at; 0: the largest."""
    tf32: bool = False
    """Whether FP32 products may be rounded to TF32."""
    external_data: bool = False
    """Whether weights may lie in other files of the model's folder."""


def read(options: Options) -> BuildSettings:
    """Takes the options that are about building.

    Raises:
        ModelLoadError: One is of the wrong type, or not among what it may be.
    """
    plain = BuildSettings()
    level = options.take("optimization_level", plain.optimization_level)
    if level not in LEVELS:
        raise ModelLoadError(f"engine option 'optimization_level' must be 0 to {LEVELS[-1]}, not {level}")
    workspace = options.take("workspace_mib", plain.workspace_mib)
    best = options.take("best_rows", plain.best_rows)
    for name, number in (("workspace_mib", workspace), ("best_rows", best)):
        if number < 0:
            raise ModelLoadError(f"engine option {name!r} must not be negative, but is {number}")
    return BuildSettings(
        optimization_level=level,
        workspace_mib=workspace,
        version_compatible=options.take("version_compatible", plain.version_compatible),
        hardware=_choice(options, "hardware", plain.hardware, get_args(Hardware)),
        spread=_choice(options, "profiles", plain.spread, get_args(Spread)),
        best_rows=best,
        tf32=options.take("tf32", plain.tf32),
        external_data=options.take("external_data", plain.external_data),
    )


def _choice(options: Options, name: str, default: Choice, choices: tuple[Choice, ...]) -> Choice:
    value = options.take(name, str(default))
    for choice in choices:
        if value == choice:
            return choice
    raise ModelLoadError(f"engine option {name!r} must be one of {', '.join(choices)}, not {value!r}")
