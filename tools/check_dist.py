"""Looks into the distributions: the wheel holds the three import packages, typed, and the sdist no build output."""

import sys
import tarfile
import zipfile
from pathlib import Path

WANTED = [
    "forebay/v1/inference_service_pb2.py",
    "forebay/v1/inference_service_pb2_grpc.pyi",
    "forebay_server/app/server.py",
    "forebay_server/py.typed",
    "forebay_client/__init__.py",
    "forebay_client/testing.py",
    "forebay_client/py.typed",
]


def main() -> None:
    """Exits with a sentence if something is missing or does not belong."""
    folder = Path(sys.argv[1])
    (wheel,) = folder.glob("forebay-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    missing = [name for name in WANTED if name not in names]
    if missing:
        sys.exit(f"{wheel.name} lacks {', '.join(missing)}")
    tops = {name.split("/")[0] for name in names}
    strange = {top for top in tops if not top.startswith("forebay")}
    if strange:
        sys.exit(f"{wheel.name} would install {', '.join(sorted(strange))}")
    (sdist,) = folder.glob("forebay-*.tar.gz")
    with tarfile.open(sdist) as archive:
        stray = [name for name in archive.getnames() if "/target/" in name or "/build/" in name or name.endswith(".so")]
    if stray:
        sys.exit(f"{sdist.name} holds build output: {stray[0]}")
    print(f"{wheel.name}: {len(names)} files")


if __name__ == "__main__":
    main()
