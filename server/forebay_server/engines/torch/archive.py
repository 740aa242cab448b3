"""Reads what a `.pt2` file says of itself, without torch and without touching the code in it.

Such a file is a zip archive; what AOTInductor has compiled lies in `data/aotinductor/NAME/`, beside a JSON with its
metadata. A program of `torch.export.save` has the same suffix, but nothing compiled in it.
"""

import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from forebay_server.engines.base import ModelLoadError
from forebay_server.engines.torch import profile
from forebay_server.engines.torch.profile import Profile

MODEL: Final = "model"
"""What the one model of a package is called inside."""

_METADATA: Final = re.compile(r"(?:[^/]+/)?data/aotinductor/([^/]+)/[^/]*_metadata\.json")
_PROGRAM: Final = re.compile(r"(?:[^/]+/)?(?:models/[^/]+\.json|serialized_exported_program\.json)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """What a package says of itself."""

    metadata: Mapping[str, str]
    """What torch has written: `AOTI_DEVICE_KEY`, `AOTI_CPU_ISA`, ..."""
    profile: Profile


def read(path: Path) -> Package:
    """Reads a package and checks that it is whole.

    Raises:
        ModelLoadError: It is no package, damaged, or not made by `forebay compile`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = _metadata(path, archive)
            if damaged := archive.testzip():  # torch unpacks what it can, and dies of what it could not
                raise ModelLoadError(f"{path}: damaged: {damaged} is not what was written")
    except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path}: not a torch package, or not all of one") from error
    if profile.KEY not in found:
        raise ModelLoadError(
            f"{path}: it doesn't say what it takes, and would take batches of any size; make it with `forebay compile`"
        )
    try:
        return Package(metadata=found, profile=profile.decode(found[profile.KEY]))
    except ValueError as error:
        raise ModelLoadError(f"{path}: {error}; make it again with `forebay compile`") from error


def is_compiled(names: Iterable[str]) -> bool:
    """Whether an archive with files of these names holds something that AOTInductor has compiled."""
    return any(_METADATA.fullmatch(name) for name in names)


def _metadata(path: Path, archive: zipfile.ZipFile) -> dict[str, str]:
    names = archive.namelist()
    by_model = {found[1]: name for name in names if (found := _METADATA.fullmatch(name))}
    if not by_model and any(_PROGRAM.fullmatch(name) for name in names):
        raise ModelLoadError(f"{path}: an exported program, which is not compiled yet; `forebay compile` does that")
    if not by_model:
        raise ModelLoadError(f"{path}: not a torch package: nothing compiled is in it")
    if list(by_model) != [MODEL]:
        raise ModelLoadError(f"{path}: it holds {', '.join(sorted(by_model))}, but one model called 'model' is served")
    try:
        return msgspec.json.decode(archive.read(by_model[MODEL]), type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path}: its metadata can't be read: {error}") from error
