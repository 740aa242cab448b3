"""Samples as text, read back by an independent parser."""

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from forebay_server.scheduling.events import NOBODY
from forebay_server.telemetry import names
from forebay_server.telemetry.exposition import expose
from forebay_server.telemetry.samples import of_version, sizes
from forebay_server.telemetry.statistics import Statistics

KEY = ("m", 1)
CODES = {"OK": "OK", "CANCELLED": "CANCELLED", "QUEUE_FULL": "RESOURCE_EXHAUSTED"}


def text(samples, *, modern=False):
    return expose(samples, openmetrics=modern, breathe=lambda: None).decode()


def values(found):
    """By name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in found
        for sample in family.samples
    }


def figures():
    statistics = Statistics(CODES)
    statistics.absorb(
        [
            ("batch", KEY, 3, 2, 4, 2, 0.1, 0.2),
            ("served", KEY, 0, 10.5, 11.0, [10.0, 10.25]),
            ("refused", KEY, 1, "QUEUE_FULL", ""),
            ("exemplar", KEY, 0, 0.75, 0xA, 0xB, 1700000000.5),
        ]
    )
    return list(of_version(KEY, statistics.of(KEY), CODES))


@pytest.mark.parametrize("modern", [False, True])
def test_what_is_written_is_what_is_read(modern):
    """By the parsers of the reference client, in both formats."""
    parse = openmetrics.text_string_to_metric_families if modern else text_string_to_metric_families
    found = values(parse(text(figures(), modern=modern)))

    model = (("model", "m"), ("version", "1"))
    duration = "forebay_request_duration_seconds"
    method = (("method", "Predict"), *model)
    assert found["forebay_requests_total", tuple(sorted((*method, ("code", "OK"), ("reason", ""))))] == 2
    refused = (("code", "RESOURCE_EXHAUSTED"), ("method", "StreamPredict"), ("reason", "QUEUE_FULL"), *model)
    assert found["forebay_requests_total", tuple(sorted(refused))] == 1
    bucket = {bound: found[f"{duration}_bucket", tuple(sorted((*method, ("le", bound))))] for bound in ("0.5", "1.0")}
    assert bucket == {"0.5": 0, "1.0": 2}
    assert found[f"{duration}_sum", tuple(sorted(method))] == 1.75
    assert found["forebay_batch_rows_bucket", (("le", "2.0"), *model)] == 0
    assert found["forebay_batch_rows_bucket", (("le", "4.0"), *model)] == 1
    assert found["forebay_batch_rows_sum", model] == 3
    assert found["forebay_compute_prediction_ratio_bucket", (("le", "2.0"), *model)] == 1
    assert found["forebay_compute_prediction_ratio_bucket", (("le", "1.4142135623730951"), *model)] == 0
    assert found["forebay_padding_rows_total", model] == 1
    assert found["forebay_batches_total", (("model", "m"), ("reason", "idle"), ("version", "1"))] == 1


def test_exemplars_carry_traces():
    """In OpenMetrics, on the bucket into which the request fell."""
    found = [
        (sample.labels["le"], sample.exemplar)
        for family in openmetrics.text_string_to_metric_families(text(figures(), modern=True))
        for sample in family.samples
        if sample.exemplar is not None
    ]

    ((bound, exemplar),) = found
    assert bound == "1.0"
    assert (exemplar.labels, exemplar.value) == ({"trace_id": "0" * 31 + "a", "span_id": "0" * 15 + "b"}, 0.75)
    assert float(exemplar.timestamp) == 1700000000.5
    assert "trace_id" not in text(figures())


def test_labels_are_escaped():
    """Whatever an operator calls a model."""
    name = 'a"b\\c\nd'
    statistics = Statistics(CODES)
    statistics.absorb([("refused", (name, 1), 0, "QUEUE_FULL", "")])
    samples = list(of_version((name, 1), statistics.of((name, 1)), CODES))

    for parse, modern in ((openmetrics.text_string_to_metric_families, True), (text_string_to_metric_families, False)):
        families = list(parse(text(samples, modern=modern)))
        assert {sample.labels["model"] for family in families for sample in family.samples} == {name}


def test_requests_for_nobody_have_a_name_of_their_own():
    """An empty version tells them from a model that is called `other`."""
    statistics = Statistics(CODES)
    statistics.absorb([("refused", NOBODY, 0, "QUEUE_FULL", "")])

    found = list(of_version(NOBODY, statistics.of(NOBODY), CODES))

    assert found[0] == (names.REQUESTS, ("other", "", "Predict", "RESOURCE_EXHAUSTED", "QUEUE_FULL"), 1)
    assert [sample[0] for sample in found] == [names.REQUESTS, names.REFUSALS]


def test_sizes_beyond_all_bounds_count():
    """The last bucket has everything."""
    found = sizes(names.BATCH_ROWS, {1: 2, 4096: 1, 100_000: 1})
    assert (found.buckets[0], found.buckets[-2], found.buckets[-1], found.sum) == (2, 3, 4, 104_098)


def test_others_get_their_turn():
    """The GIL is given up every so many samples."""
    turns = []
    expose(
        [(names.QUEUED_ROWS, (f"m{number}", "1"), number) for number in range(320)],
        openmetrics=False,
        breathe=lambda: turns.append(1),
    )
    assert len(turns) == 10
