"""What events add up to."""

from forebay_server.telemetry import statistics
from forebay_server.telemetry.statistics import Statistics

KEY = ("m", 1)
CODES = {"QUEUE_FULL": "RESOURCE_EXHAUSTED", "BYTES_LIMIT": "RESOURCE_EXHAUSTED"}


def test_batches():
    """Sizes, reasons, padding and time in the engine."""
    figures = Statistics(CODES)
    figures.absorb([("batch", KEY, 3, 2, 4, 2, 0.1, 0.2), ("batch", KEY, 3, 3, 3, 1, None, 0.4)])

    found = figures.of(KEY)
    assert (found.batch_sizes, found.dispatches, found.padded_rows) == ({3: 2}, {2: 1, 1: 1}, 1)
    assert (found.compute_time.count, round(found.compute_time.sum, 9)) == (2, 0.6)


def test_outcomes():
    """Accepted requests have times, refused ones are only counted, by version."""
    figures = Statistics(CODES)
    figures.absorb(
        [
            ("served", KEY, 0, 10.5, 11.0, [10.0]),
            ("done", ("m", 2), 1, "CANCELLED", 0.5, 1.0),
            ("refused", KEY, 0, "QUEUE_FULL", ""),
        ]
    )

    found = figures.of(KEY)
    assert found.outcomes == {"OK": 1, "QUEUE_FULL": 1}
    assert (found.queue_time.sum, found.request_time.sum, found.request_time.count) == (0.5, 1.0, 1)
    assert figures.of(("m", 2)).outcomes == {"CANCELLED": 1}
    assert figures.code("QUEUE_FULL") == "RESOURCE_EXHAUSTED"


def test_nothing_done():
    """A version that has done nothing has zeros, and is not remembered for having been asked about."""
    figures = Statistics(CODES)

    assert figures.of(KEY).outcomes == {}
    assert not figures._models


def test_labels_are_bounded(monkeypatch):
    """Reasons, sizes and versions have a bounded number of values, whatever comes."""
    monkeypatch.setattr(statistics, "MAX_BATCH_SIZES", 4)
    monkeypatch.setattr(statistics, "MAX_MODELS", 2)
    figures = Statistics(CODES)
    figures.absorb([("refused", KEY, 0, f"reason {number}", f"tenant {number}") for number in range(100)])
    figures.absorb([("batch", KEY, rows, 1, rows, 1, None, 0.1) for rows in range(1, 101)])
    figures.absorb([("refused", ("m", version), 0, "QUEUE_FULL", "") for version in range(100)])

    found = figures.of(KEY)
    assert found.outcomes == {"UNKNOWN": 100, "QUEUE_FULL": 1}
    assert found.batch_sizes == {1: 1, 2: 1, 3: 1, 4: 1, 8: 4, 16: 8, 32: 16, 64: 32, 128: 36}
    assert len(figures._models) == 2
    assert figures.tenant_refusals == {"other": 102}


def test_forget():
    """A version that is gone leaves nothing."""
    figures = Statistics(CODES)
    figures.absorb([("refused", KEY, 0, "QUEUE_FULL", "")])

    figures.forget(KEY)

    assert figures.of(KEY).outcomes == {}


def test_methods_and_tenants_are_kept_apart():
    """Requests by how they came in, refusals by the tenants of the settings."""
    figures = Statistics(CODES, tenants=["alice"])
    figures.absorb(
        [
            ("served", KEY, 0, 10.5, 11.0, [10.0] * 30),
            ("served", KEY, 1, 10.5, 12.0, [10.0]),
            ("refused", KEY, 2, "QUEUE_FULL", "alice"),
            ("refused", KEY, 2, "QUEUE_FULL", "mallory"),
        ]
    )

    found = figures.of(KEY)
    assert found.outcomes_by == ({"OK": 30}, {"OK": 1}, {"QUEUE_FULL": 2})
    assert [times.count for times in found.request_times] == [30, 1, 0]
    assert [round(times.sum, 6) for times in found.request_times] == [30.0, 2.0, 0.0]
    assert (found.queue_time.count, found.refusals) == (31, {"QUEUE_FULL": 2})
    assert figures.tenant_refusals == {"alice": 1, "other": 1}


def test_exemplars():
    """The last of each power of two is kept, of so many powers."""
    figures = Statistics(CODES)
    figures.absorb([("exemplar", KEY, 0, 2.0**power, power, 1, 100.0 + power) for power in range(40)])
    figures.absorb([("exemplar", KEY, 0, 2.0**39, 15, 2, 200.0)])

    kept = figures.of(KEY).exemplars[0]
    assert len(kept) == statistics.MAX_EXEMPLARS
    assert (figures.of(KEY).outcomes, figures.of(KEY).request_time.count) == ({}, 0), "another event counts the request"
    assert kept[39] == (2.0**39, 15, 2, 200.0)
    assert 0 not in kept


def test_a_copy_stands_still():
    """What was taken for an exporter does not move."""
    figures = Statistics(CODES)
    figures.absorb([("batch", KEY, 3, 2, 4, 2, 0.1, 0.2), ("served", KEY, 0, 10.5, 11.0, [10.0])])
    copied = figures.of(KEY).copy()
    figures.absorb([("batch", KEY, 3, 2, 4, 2, 0.1, 0.2), ("served", KEY, 0, 10.5, 11.0, [10.0])])

    assert (copied.outcomes, copied.batch_sizes, copied.batch_requests) == ({"OK": 1}, {3: 1}, {2: 1})
    assert (copied.padded_rows, copied.dispatches, copied.accuracy.count) == (1, {2: 1}, 1)
    assert (copied.queue_time.count, copied.request_time.count, copied.compute_time.count) == (1, 1, 1)
