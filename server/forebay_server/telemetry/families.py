"""Samples as messages for Prometheus: families of metrics (`io.prometheus.client.MetricFamily`), length-delimited.

The one format that has native histograms, which are exactly what is counted here (`histogram`). Buckets with bounds go
beside them, for who reads those. Written as bytes, because the generated code is in no package, and because protobuf's
objects would take several times as long, with the GIL kept. Fields have the numbers of metrics.proto in
https://github.com/prometheus/client_model; `tests/deploy/test_prometheus.py` has a real Prometheus read them. Runs in
an exporter's thread, as `exposition` does, and lets others have the GIL likewise.
"""

from collections.abc import Callable, Iterable, Sequence
from struct import Struct
from typing import Final

from forebay_server.telemetry.exposition import PORTION, by_metric
from forebay_server.telemetry.histogram import FIRST, SCALE, SMALLEST, Histogram
from forebay_server.telemetry.metric import Kind, Metric
from forebay_server.telemetry.samples import Distribution, Sample
from forebay_server.telemetry.statistics import Exemplar
from forebay_server.varint import piece, tag, varint

_INTEGER, _EIGHT_BYTES = 0, 1
"""How a field is written; part of its tag."""
_DOUBLE: Final = Struct("<cd")

# MetricFamily
_NAME, _HELP, _TYPE, _METRIC = 1, 2, tag(3, _INTEGER), 4
_TYPES: Final = {Kind.COUNTER: 0, Kind.GAUGE: 1, Kind.HISTOGRAM: 4}
# Metric; a Gauge and a Counter have their value alike.
_LABEL, _HISTOGRAM = 1, 7
_VALUES: Final = {Kind.GAUGE: 2, Kind.COUNTER: 3}
_VALUE: Final = tag(1, _EIGHT_BYTES)
# Histogram
_COUNT, _SUM, _BUCKET, _SCHEMA = tag(1, _INTEGER), tag(2, _EIGHT_BYTES), 3, tag(5, _INTEGER)
_THRESHOLD, _ZEROS, _SPAN, _DELTAS = tag(6, _EIGHT_BYTES), tag(7, _INTEGER), 12, 13
# Bucket
_CUMULATIVE, _BOUND, _EXEMPLAR = tag(1, _INTEGER), tag(2, _EIGHT_BYTES), 3
# BucketSpan
_OFFSET, _LENGTH = tag(1, _INTEGER), tag(2, _INTEGER)
# Exemplar, and google.protobuf.Timestamp in it
_OF_EXEMPLAR, _EXEMPLAR_VALUE, _TIME = 1, tag(2, _EIGHT_BYTES), 3
_SECONDS, _NANOS = tag(1, _INTEGER), tag(2, _INTEGER)


def expose_families(samples: Iterable[Sample], *, breathe: Callable[[], None]) -> bytes:
    """All samples, by metric.

    Args:
        samples: In any order; no two of the same metric and labels.
        breathe: Called often; gives up the GIL.
    """
    out: list[bytes] = []
    written = 0
    for metric, found in by_metric(samples):
        head = piece(_NAME, metric.prometheus.encode()) + piece(_HELP, metric.help.encode())
        family = [head + _TYPE + varint(_TYPES[metric.kind])]
        bounds = [_double(_BOUND, float(bound)) for bound in metric.bounds]
        for _, values, value in found:
            written += 1
            if written % PORTION == 0:
                breathe()
            labels = b"".join(_label(_LABEL, *pair) for pair in zip(metric.labels, values, strict=True))
            family.append(piece(_METRIC, labels + _value(metric, bounds, value)))
        body = b"".join(family)
        out += (varint(len(body)), body)
    return b"".join(out)


def _value(metric: Metric, bounds: Sequence[bytes], value: float | Distribution) -> bytes:
    if not isinstance(value, Distribution):
        return piece(_VALUES[metric.kind], _double(_VALUE, value))
    parts = [_COUNT, varint(value.buckets[-1]), _double(_SUM, value.sum)]
    # The last bucket, which has no bound, may be left out; it is there if it has an exemplar.
    for place, (bound, count) in enumerate(zip((*bounds, _double(_BOUND, float("inf"))), value.buckets, strict=True)):
        exemplar = value.exemplars.get(place)
        if place < len(bounds) or exemplar is not None:
            body = _CUMULATIVE + varint(count) + bound
            parts.append(piece(_BUCKET, body if exemplar is None else body + piece(_EXEMPLAR, _exemplar(exemplar))))
    if value.exact is not None:
        parts += _native(value.exact)
    return piece(_HISTOGRAM, b"".join(parts))


def _native(histogram: Histogram) -> list[bytes]:
    """The buckets as they are counted, those that are not empty: runs of them, and how each differs from the last one.

    The first is that of zero; the upper bound of the one with the index i is `2 ** (i / 4)`.
    """
    zeros, *counts = histogram.counts
    parts = [_SCHEMA, varint(_signed(SCALE)), _double(_THRESHOLD, SMALLEST), _ZEROS, varint(zeros)]
    deltas: list[bytes] = []
    ended, place, before = -FIRST - 1, 0, 0  # the index after the last run, counted from the first bucket's
    while place < len(counts):
        if not counts[place]:
            place += 1
            continue
        begun = place
        while place < len(counts) and counts[place]:
            deltas.append(varint(_signed(counts[place] - before)))
            before = counts[place]
            place += 1
        span = _OFFSET + varint(_signed(begun - ended)) + _LENGTH + varint(place - begun)
        parts.append(piece(_SPAN, span))
        ended = place
    if deltas:
        parts.append(piece(_DELTAS, b"".join(deltas)))  # packed
    return parts


def _exemplar(exemplar: Exemplar) -> bytes:
    seconds, trace_id, span_id, at = exemplar
    whole = int(at)
    time = _SECONDS + varint(whole) + _NANOS + varint(int((at - whole) * 1e9))
    return b"".join(
        (
            _label(_OF_EXEMPLAR, "trace_id", f"{trace_id:032x}"),
            _label(_OF_EXEMPLAR, "span_id", f"{span_id:016x}"),
            _double(_EXEMPLAR_VALUE, seconds),
            piece(_TIME, time),
        )
    )


def _label(field: int, name: str, value: str) -> bytes:
    return piece(field, piece(1, name.encode()) + piece(2, value.encode()))


def _double(tagged: bytes, value: float) -> bytes:
    return _DOUBLE.pack(tagged, value)


def _signed(number: int) -> int:
    """How protobuf writes integers of which many are near zero (sint64): 0, -1, 1, -2 as 0, 1, 2, 3."""
    return number << 1 if number >= 0 else (-number << 1) - 1
