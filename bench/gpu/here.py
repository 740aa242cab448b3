"""What the GPU check runs on: hardware, driver and versions, as the report says them. Standard library only.

No host names and no paths.
"""

import importlib.metadata
import subprocess
import sys
from typing import Any, Final

from bench import host

PACKAGES: Final = (
    "forebay", "forebay-native", "torch", "triton", "onnxruntime-gpu", "onnxruntime", "onnx", "tensorrt-cu13-bindings",
    "tensorrt-cu13-libs", "tensorrt-lean-cu13-bindings", "cuda-bindings", "nvidia-cuda-runtime", "nvidia-cuda-nvrtc",
    "nvidia-cublas", "nvidia-cudnn-cu13", "numpy", "grpcio", "protobuf",
)  # fmt: skip
_QUERY: Final = {
    "name": "name",
    "driver": "driver_version",
    "memory_mib": "memory.total",
    "compute_capability": "compute_cap",
    "power_limit_w": "power.limit",
    "max_sm_clock_mhz": "clocks.max.sm",
    "pcie_generation": "pcie.link.gen.max",
    "pcie_width": "pcie.link.width.max",
}


def describe(path: list[str]) -> dict[str, Any]:
    """Hardware and versions.

    Args:
        path: Where packages are looked for beside where this process finds them.
    """
    return {
        "gpus": gpus(),
        "cpu": host.cpu(),
        "cores": host.usable_threads(),
        "memory_gib": host.memory_gib(),
        "kernel": host.kernel(),
        "python": host.python(),
        "packages": {name: version for name in PACKAGES if (version := _version(name, path))},
    }


def gpus() -> list[dict[str, str]]:
    """What the driver's own tool says of each GPU; none without it."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY.values())}", "--format=csv,noheader,nounits"]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if finished.returncode != 0:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in finished.stdout.splitlines() if line.strip()]
    return [dict(zip(_QUERY, row, strict=False)) for row in rows]


def sentence(described: dict[str, Any]) -> str:
    """The description in a few lines."""
    found = [
        f"{gpu['name']} ({gpu.get('memory_mib', '?')} MiB, driver {gpu.get('driver', '?')})"
        for gpu in described["gpus"]
    ]
    packages = ", ".join(f"{name} {version}" for name, version in described["packages"].items())
    return (
        f"{'; '.join(found) or 'No GPU'}. {described['cpu']}, {described['cores']} usable cores, "
        f"{described['memory_gib']} GiB, {described['kernel']}, {described['python']}. "
        f"{packages or 'None of the packages'}."
    )


def _version(package: str, path: list[str]) -> str:
    for found in importlib.metadata.distributions(name=package, path=[*path, *sys.path]):
        return found.version
    return ""
