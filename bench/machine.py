"""Describes the machine and the versions that a run was made with. It names no host and no path."""

import importlib.metadata
import os
from pathlib import Path
from typing import Any

import psutil

from bench import host

PACKAGES = ("forebay", "forebay-native", "grpcio", "numpy", "onnxruntime", "protobuf")


def describe() -> dict[str, Any]:
    """What a reader must know of the machine to judge the figures."""
    return {
        "cpu": host.cpu(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads": psutil.cpu_count(),
        "usable_threads": host.usable_threads(),
        "memory_gib": host.memory_gib(),
        "virtual": _virtual(),
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "kernel": host.kernel(),
        "python": host.python(),
        "packages": {name: _version(name) for name in PACKAGES},
        "load_average": round(os.getloadavg()[0], 2),
    }


def sentence(machine: dict[str, Any]) -> str:
    """The description in a line or two."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    virtual = "a virtual machine with " if machine["virtual"] else ""
    return (
        f"{virtual}{machine['cpu']}, {machine['cores']} cores ({machine['threads']} threads), "
        f"{machine['memory_gib']} GiB, {machine['kernel']}, {machine['python']}; {packages}; "
        f"load average at the start {machine['load_average']}"
    )


def _virtual() -> bool:
    return "hypervisor" in Path("/proc/cpuinfo").read_text()


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
