"""What spans and metrics have in common on their way out over OTLP: the standard variables.

Only what decides here is read here; where to send, headers, certificates, compression and times of the exporters are
read by these themselves, from the standard variables. Pure but for the environment that it is given.
"""

import logging
from collections.abc import Mapping
from enum import Enum
from math import inf
from typing import Final

from forebay_server.errors import ConfigError

AUTO: Final = "auto"
GRPC: Final = "grpc"
HTTP: Final = "http/protobuf"

_ELSEWHERE: Final = {"TRACES": ("none",), "METRICS": ("none", "prometheus")}
"""Exporters that may be asked for by name, and are not ours to start."""


class Signal(Enum):
    """What is sent; the value is its part of the variables' names."""

    TRACES = "TRACES"
    METRICS = "METRICS"


def wanted(signal: Signal, endpoint: str, environment: Mapping[str, str]) -> bool:
    """Whether anybody has said where a signal should go, or that it should go.

    Args:
        signal: Which one.
        endpoint: Of the settings, which are stronger than all variables but OTEL_SDK_DISABLED.
        environment: Variables.

    Raises:
        ConfigError: An exporter is asked for that is not known here.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    key, elsewhere = f"OTEL_{signal.value}_EXPORTER", _ELSEWHERE[signal.value]
    exporters = [name.strip() for name in environment.get(key, "").split(",") if name.strip()]
    for name in exporters:
        if name not in ("otlp", *elsewhere):
            raise ConfigError(f"{key}: {name!r} is none of otlp, {', '.join(elsewhere)}")
    if endpoint or "otlp" in exporters:
        return True
    return not exporters and any(environment.get(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT") for part in _parts(signal))


def protocol(signal: Signal, chosen: str, environment: Mapping[str, str]) -> str:
    """How to send: `grpc` or `http/protobuf`.

    Args:
        signal: What.
        chosen: Of the settings; `auto`: as the variables say.
        environment: Variables.

    Raises:
        ConfigError: It is neither.
    """
    if chosen != AUTO:
        return chosen
    keys = [f"OTEL_EXPORTER_OTLP_{part}PROTOCOL" for part in _parts(signal)]
    found = next((environment[key].strip() for key in keys if environment.get(key, "").strip()), GRPC)
    if found not in (GRPC, HTTP):
        raise ConfigError(f"{keys[-1]}: {found!r} is neither {GRPC} nor {HTTP}")
    return found


def number(key: str, environment: Mapping[str, str], default: float, *, least: float = 0.0, most: float = inf) -> float:
    """The value of a variable.

    Raises:
        ConfigError: It is no number between the least and the most.
    """
    text = environment.get(key, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        raise ConfigError(f"{key}: {text!r} is no number") from None
    if not least <= value <= most:
        raise ConfigError(f"{key}: {text} is not between {least:g} and {most:g}")
    return value


def url(signal: Signal, endpoint: str, spoken: str) -> str | None:
    """Where an exporter is to send; None: as the variables say.

    Args:
        signal: What.
        endpoint: Of the settings; empty: none.
        spoken: The protocol.
    """
    path = f"/v1/{signal.value.lower()}"
    if not endpoint or spoken == GRPC or endpoint.rstrip("/").endswith(path):
        return endpoint or None
    return endpoint.rstrip("/") + path


def hush() -> None:
    """Keeps the exporters' own words out of the log: a line for each try of an outage. We say it once."""
    quiet = logging.getLogger("opentelemetry")
    if not quiet.handlers:
        quiet.addHandler(logging.NullHandler())
        quiet.propagate = False


def _parts(signal: Signal) -> tuple[str, str]:
    """Of a variable's name: for this signal, which is stronger, and for all."""
    return f"{signal.value}_", ""
