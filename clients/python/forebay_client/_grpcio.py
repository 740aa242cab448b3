"""Refuses a grpcio that is too old, before anything else of the package is imported."""

import grpc

LEAST = (1, 84)
"""Below it, messages over the limit are buffered whole before they are refused."""


def require(version: str) -> None:
    """Checks a version of grpcio.

    Raises:
        ImportError: It is too old.
    """
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < LEAST:
        raise ImportError(
            f"forebay_client needs grpcio {LEAST[0]}.{LEAST[1]} or newer, but {version} is installed; "
            "run: pip install --upgrade grpcio"
        )


require(grpc.__version__)
