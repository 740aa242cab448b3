"""Who is telling: what spans and metrics are about. Imports OpenTelemetry."""

import os
import uuid
from importlib import metadata
from typing import Final

from opentelemetry.sdk.resources import Resource

SERVICE: Final = "forebay"
"""The service's name if nobody gives it another."""
INSTANCE: Final = str(uuid.uuid4())
"""Tells this process from others of the same service."""


def resource() -> Resource:
    """OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME first, then what we know ourselves."""
    own = {
        "service.name": SERVICE,
        "service.version": metadata.version("forebay"),
        "service.instance.id": INSTANCE,
    }
    said = {pair.partition("=")[0].strip() for pair in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")}
    if os.environ.get("OTEL_SERVICE_NAME"):
        said.add("service.name")
    return Resource.create({name: value for name, value in own.items() if name not in said})
