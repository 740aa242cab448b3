"""Makes a folder of wheels importable without installing: those that fit this Python are unpacked into another folder.

Standard library only. Wheels are zip files; what lies under `NAME.data/purelib` or `platlib` belongs to the top.
"""

import re
import sys
import sysconfig
import zipfile
from pathlib import Path

_NAME = re.compile(
    r"(?P<name>[^-]+)-(?P<version>[^-]+)(-\d[^-]*)?-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<platform>[^-]+)\.whl"
)


def fits(file: str) -> bool:
    """Whether a wheel is for this Python and machine, by its name."""
    match = _NAME.fullmatch(file)
    if match is None:
        return False
    machine = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    _, _, architecture = machine.partition("_")
    if not any(each == "any" or each.endswith(architecture) for each in match["platform"].split(".")):
        return False
    major, minor = sys.version_info[:2]
    own = f"cp{major}{minor}"
    for python in match["python"].split("."):
        older = re.fullmatch(rf"cp{major}(\d+)", python)
        if python in {own, f"py{major}", f"py{major}{minor}"}:
            return match["abi"] in {"none", "abi3", own} or own in match["abi"].split(".")
        if older and int(older[1]) <= minor and match["abi"] == "abi3":
            return True
    return False


def unpack(folder: Path, target: Path) -> list[str]:
    """Unpacks the wheels of a folder that fit; gives their names."""
    used = []
    for file in sorted(folder.glob("*.whl")):
        if not fits(file.name):
            continue
        with zipfile.ZipFile(file) as archive:
            for member in archive.namelist():
                parts = member.split("/")
                inside = parts[2:] if parts[0].endswith(".data") and parts[1:2] in (["purelib"], ["platlib"]) else parts
                if member.endswith("/") or (parts[0].endswith(".data") and inside is parts) or ".." in inside:
                    continue
                place = target.joinpath(*inside)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(archive.read(member))
        used.append(file.name)
    return used
