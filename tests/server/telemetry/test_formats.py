"""Which format an asker gets."""

import pytest

from forebay_server.telemetry.formats import Format, accepted

PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
MODERN = "application/openmetrics-text;version=1.0.0"
OLDER = "application/openmetrics-text;version=0.0.1"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", Format.TEXT),
        ("*/*", Format.TEXT),
        ("text/html, application/json", Format.TEXT),
        ("text/plain;version=0.0.4", Format.TEXT),
        (MODERN, Format.OPENMETRICS),
        # Prometheus 2.42, and the same with native histograms.
        (f"{MODERN},{OLDER};q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", Format.OPENMETRICS),
        (f"{PROTOBUF},{MODERN};q=0.8,{OLDER};q=0.75,text/plain;q=0.5,*/*;q=0.1", Format.PROTOBUF),
        # Prometheus 3, which may like text better.
        (f"{PROTOBUF};escaping=allow-utf-8;q=0.6,{MODERN};escaping=allow-utf-8;q=0.5,*/*;q=0.1", Format.PROTOBUF),
        (f"{MODERN};q=0.6,{PROTOBUF};q=0.5", Format.OPENMETRICS),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text", Format.TEXT),
        ("application/vnd.google.protobuf", Format.TEXT),
        (f"{MODERN};q=0,text/plain;q=0.1", Format.TEXT),
        (f"{MODERN};q=best", Format.TEXT),
    ],
)  # fmt: skip
def test_the_format(header, expected):
    """The one of the greatest quality among those that there are."""
    assert accepted(header) is expected
