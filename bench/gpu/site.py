"""What the processes of the check need to find: the checkout, wheels, and the engines' entry points. Standard library.

Nothing is installed: all of it lies in a folder that lives as long as the check, on PYTHONPATH.
"""

import os
import sys
import tomllib
from pathlib import Path
from typing import Final

from bench.gpu import wheels

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = (ROOT, ROOT / "server", ROOT / "gen" / "python", ROOT / "clients" / "python")


def make(folder: Path, wheel_folder: Path | None) -> tuple[dict[str, str], list[str]]:
    """Fills a folder.

    Args:
        folder: Empty.
        wheel_folder: Wheels to make importable; None: what is installed has to do.

    Returns:
        The environment for the processes, and the names of the wheels that are used.
    """
    used = wheels.unpack(wheel_folder, folder) if wheel_folder is not None else []
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    engines = {**project["entry-points"]["forebay.engines"], "check": "bench.gpu.engine:CheckEngine"}
    # As if the checkout were installed: the server asks for its version, and engines are found by entry points.
    information = folder / f"forebay-{project['version']}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: forebay\nVersion: {project['version']}\n")
    lines = ["[forebay.engines]", *(f"{name} = {place}" for name, place in engines.items())]
    (information / "entry_points.txt").write_text("\n".join(lines) + "\n")
    path = [str(folder), *map(str, SOURCES), os.environ.get("PYTHONPATH", "")]
    # Python's own search does not tell the system's loader of the libraries in wheels.
    libraries = [str(place) for place in sorted(folder.glob("nvidia/**/lib"))]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [*libraries, os.environ.get("LD_LIBRARY_PATH", "")])),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "FOREBAY_GPU_CHECK": str(folder),
    }
    return environment, used


def python() -> str:
    """The interpreter of the processes: this one."""
    return sys.executable
