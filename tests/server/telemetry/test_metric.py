"""Names for Prometheus, and what all metrics have in common."""

from itertools import pairwise

import pytest

from forebay.v1 import inference_pb2
from forebay_server.scheduling.events import REASONS
from forebay_server.scheduling.request import Reason
from forebay_server.telemetry import metric
from forebay_server.telemetry.metric import Kind
from forebay_server.telemetry.names import LABELS, METRICS


@pytest.mark.parametrize(
    ("made", "family", "prometheus"),
    [
        (metric.counter("forebay.requests", "{request}", "."), "forebay_requests", "forebay_requests_total"),
        (metric.counter("forebay.busy", "s", "."), "forebay_busy_seconds", "forebay_busy_seconds_total"),
        (metric.counter("forebay.share", "1", "."), "forebay_share", "forebay_share_total"),
        (metric.gauge("forebay.held", "By", "."), "forebay_held_bytes", "forebay_held_bytes"),
        (metric.gauge("forebay.held.bytes", "By", "."), "forebay_held_bytes", "forebay_held_bytes"),
        (metric.gauge("forebay.margin", "1", "."), "forebay_margin_ratio", "forebay_margin_ratio"),
        (metric.gauge("forebay.rows", "{row}", "."), "forebay_rows", "forebay_rows"),
        (metric.durations("forebay.queue.duration", "."), "forebay_queue_duration_seconds", None),
        (metric.ratios("forebay.prediction", "."), "forebay_prediction_ratio", None),
        (metric.sizes("forebay.batch.rows", "{row}", "."), "forebay_batch_rows", None),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_name_for_prometheus(made, family, prometheus):
    """By OpenTelemetry's rules: the unit in words at the end, once; `_total` for counters, which are no ratios."""
    assert (made.family, made.prometheus) == (family, prometheus or family)
    assert family.endswith(made.word)


def test_buckets_are_for_microseconds_to_minutes():
    """Powers of two from 8 microseconds to 512 seconds; ratios around one; sizes up to 4096."""
    durations = metric.durations("d", ".").bounds
    assert (durations[0], durations[-1], len(durations)) == (2.0**-17, 512.0, 27)
    assert all(above == 2 * below for below, above in pairwise(durations))
    assert 1.0 in metric.ratios("r", ".").bounds
    assert metric.sizes("s", "{row}", ".").bounds == tuple(2**power for power in range(13))


def test_all_metrics_are_well_formed():
    """Unique, with labels that are described, and buckets for histograms alone."""
    prometheus = [each.prometheus for each in METRICS]
    assert len(set(prometheus)) == len(prometheus)
    assert {label for each in METRICS for label in each.labels} == set(LABELS)
    for each in METRICS:
        assert bool(each.bounds) == (each.kind is Kind.HISTOGRAM), each.name
        assert list(each.bounds) == sorted(each.bounds)
        assert each.help.endswith(".")
        assert not (each.places and each.sizes)


def test_reasons_of_batches_have_the_numbers_of_the_contract():
    """The scheduler's, those of telemetry, and the contract's are one."""
    assert {reason.value: reason.name.lower() for reason in Reason} == REASONS
    contract = {
        number: name.removeprefix("DISPATCH_REASON_").lower() for name, number in inference_pb2.DispatchReason.items()
    }
    assert {number: name for number, name in contract.items() if number} == REASONS
