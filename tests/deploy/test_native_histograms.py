"""Samples as messages of protobuf, read by a real Prometheus that has native histograms switched on."""

import time

import pytest

from forebay_server.telemetry import names
from forebay_server.telemetry.exposition import expose
from forebay_server.telemetry.families import expose_families
from forebay_server.telemetry.formats import Format
from forebay_server.telemetry.histogram import Histogram
from forebay_server.telemetry.samples import durations, sizes
from forebay_server.telemetry.scrape import ScrapeServer
from tests.deploy.conftest import running_prometheus

SETTINGS = """
global: {{scrape_interval: 200ms}}
scrape_configs: [{{job_name: test, static_configs: [{{targets: ["{address}"]}}]}}]
"""
WEIRD = 'a "quoted" \\ name\nof Größe'
DURATION = "forebay_request_duration_seconds"


def histogram(*seconds):
    made = Histogram()
    for each in seconds:
        made.record(each)
    return made


SAMPLES = [
    (names.BATCHES, ("m", "1", "idle"), 4),
    (names.QUEUED_ROWS, (WEIRD, "1"), 7.5),
    (
        names.REQUEST_DURATION,
        ("m", "1", "Predict"),
        # Below the first bound, two in one bucket, one in the next, one far away, one above all bounds.
        durations(
            names.REQUEST_DURATION,
            histogram(1e-9, 0.75, 0.75, 0.9, 64.0, 5000.0),
            {0: (0.75, 0xA, 0xB, time.time()), 1: (5000.0, 0xC, 0xD, time.time())},
        ),
    ),
    (names.REQUEST_DURATION, ("empty", "1", "Predict"), durations(names.REQUEST_DURATION, Histogram())),
    (names.BATCH_ROWS, ("m", "1"), sizes(names.BATCH_ROWS, {1: 2, 3: 1, 9999: 1})),
]


@pytest.fixture(scope="module")
def found(promtool, tmp_path_factory):
    """A Prometheus that has scraped the samples; and the formats that it was given."""
    given = set()

    def render(chosen):
        given.add(chosen)
        if chosen is Format.PROTOBUF:
            return expose_families(SAMPLES, breathe=lambda: None)
        return expose(SAMPLES, openmetrics=chosen is Format.OPENMETRICS, breathe=lambda: None)

    scraped = ScrapeServer("127.0.0.1:0", render)
    scraped.start()
    settings = SETTINGS.format(address=scraped.address)
    features = ("native-histograms", "exemplar-storage")
    folder = tmp_path_factory.mktemp("prometheus")
    try:
        with running_prometheus(folder, settings, *features, until=lambda each: bool(each.query("up == 1"))) as made:
            made.given = given
            yield made
    finally:
        scraped.close()


def histograms(found, expression):
    """The native histograms of an expression, by the label `model`."""
    result = found.get("/api/v1/query", query=expression)["data"]["result"]
    return {series["metric"]["model"]: series["histogram"][1] for series in result}


def test_native_histograms_are_what_was_counted(found):
    """Every bucket that is not empty, with the bounds of the histogram itself."""
    made = histograms(found, DURATION)["m"]

    assert found.given == {Format.PROTOBUF}
    assert (made["count"], float(made["sum"])) == ("6", pytest.approx(5066.4))
    buckets = {(float(low), float(high)): int(count) for _, low, high, count in made["buckets"]}
    assert list(buckets.values()) == [1, 2, 1, 1, 1]
    zero, first, second, far, last = buckets
    assert zero == (-(2.0**-23), 2.0**-23)
    assert first == pytest.approx((2**-0.5, 2**-0.25))
    assert second == pytest.approx((2**-0.25, 1.0))
    assert far == pytest.approx((2**5.75, 64.0))
    assert last == pytest.approx((2.0**12, 2**12.25))


def test_a_histogram_without_requests_is_a_native_one_too(found):
    """So that the first request is seen as an increase."""
    assert histograms(found, DURATION)["empty"]["count"] == "0"
    assert found.query(f"{DURATION}_bucket") == []


def test_quantiles_of_native_histograms(found):
    """Within the width of a bucket."""
    (series,) = found.query(f'histogram_quantile(0.5, {DURATION}{{model="m"}})')
    assert 2**-0.5 <= float(series["value"][1]) <= 2**-0.25


def test_what_is_no_duration_is_as_in_text(found):
    """Counters, gauges, and histograms of sizes, whose buckets have bounds; labels of any characters."""
    (batches,) = found.query("forebay_batches_total")
    assert (batches["metric"]["reason"], batches["value"][1]) == ("idle", "4")
    (queued,) = found.query("forebay_queue_rows")
    assert (queued["metric"]["model"], queued["value"][1]) == (WEIRD, "7.5")
    rows = {series["metric"]["le"]: series["value"][1] for series in found.query("forebay_batch_rows_bucket")}
    assert {bound: rows[bound] for bound in ("1.0", "2.0", "4.0", "4096.0", "+Inf")} == {
        "1.0": "2", "2.0": "2", "4.0": "3", "4096.0": "3", "+Inf": "4",
    }  # fmt: skip
    assert [series["value"][1] for series in found.query("forebay_batch_rows_sum")] == [str(2 + 3 + 9999)]
