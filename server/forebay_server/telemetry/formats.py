"""The formats in which metrics can be asked for, and which one an asker likes best."""

from enum import Enum
from typing import Final

_PROTOBUF: Final = "application/vnd.google.protobuf"
_MESSAGE: Final = "io.prometheus.client.MetricFamily"


class Format(Enum):
    """A format; the value is its content type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    """Prometheus' own."""
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    """Has exemplars and units."""
    PROTOBUF = f"{_PROTOBUF}; proto={_MESSAGE}; encoding=delimited"
    """Has native histograms, too. Prometheus asks for it if these are switched on."""


_NAMES: Final = {"application/openmetrics-text": Format.OPENMETRICS, "text/plain": Format.TEXT, "*/*": Format.TEXT}


def accepted(header: str) -> Format:
    """The format that an Accept header prefers: that of the greatest quality, of equals the first; else text."""
    best, most = Format.TEXT, 0.0
    for each in header.split(","):
        name, *pairs = (part.strip() for part in each.split(";"))
        parameters = {key.strip(): value.strip() for key, _, value in (pair.partition("=") for pair in pairs)}
        found = _NAMES.get(name)
        if name == _PROTOBUF and (parameters.get("proto"), parameters.get("encoding")) == (_MESSAGE, "delimited"):
            found = Format.PROTOBUF
        if found is None:
            continue
        try:
            quality = float(parameters.get("q", "1"))
        except ValueError:
            quality = 0.0
        if quality > most:
            best, most = found, quality
    return best
