"""What answers of a server mean: rates, quantiles, restarts and outages, at exact instants."""

import datetime as dt
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay_client import JobState, JobStatistics, Latency, ModelStatistics, Outcome, ServerStatistics
from forebay_server.cli.watched import HISTORY, Quantiles, Watch
from forebay_server.telemetry.histogram import BOUNDS, GROWTH, Histogram

NOTHING = Quantiles(p50=None, p99=None)
STARTED = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
EMPTY = Latency(count=0, total=0.0, p50=0.0, p90=0.0, p99=0.0)


def latency(buckets):
    return replace(EMPTY, buckets=buckets, growth=4.0)


def model(name="m", *, ok=0, outcomes=(), **fields):
    return ModelStatistics(
        **{
            "model": name,
            "version": 1,
            "outcomes": (Outcome(code="OK", reason="", requests=ok), *outcomes),
            "batch_sizes": {},
            "dispatches": {},
            "padded_rows": 0,
            "queue_time": EMPTY,
            "compute_time": EMPTY,
            "request_time": EMPTY,
            "costs": (),
            "queued_rows": 0,
            "held_bytes": 0,
            "wait_margin": 1.0,
            "state": "ready",
            "engine": "synthetic",
            "instances": 2,
            "usable_instances": 2,
            "running_batches": 0,
            "busy": 0.0,
            **fields,
        }
    )


def server(uptime, *models, **fields):
    return ServerStatistics(
        **{
            "start_time": STARTED,
            "uptime": uptime,
            "release": "1.2.3",
            "front_end": "native",
            "draining": False,
            "held_bytes": 0,
            "jobs": None,
            "models": models,
            **fields,
        }
    )


def seen(*answers, now=100.0):
    watch = Watch("there:1")
    for answer in answers:
        watch.answered(answer, now=now)
    return watch.view(now=now)


def test_rates_are_differences_over_the_clock_of_the_server():
    """Requests and errors a second between the last two answers; a cancellation is no error."""
    refused = Outcome(code="RESOURCE_EXHAUSTED", reason="QUEUE_FULL", requests=6)
    cancelled = Outcome(code="CANCELLED", reason="", requests=50)
    view = seen(
        server(1.0, model(ok=1000)),
        server(2.0, model(ok=10)),
        server(4.0, model(ok=50, outcomes=[refused, cancelled]), model("n", ok=10)),
    )
    (m, n) = view.models

    assert (m.ok_rate, m.failed_rate) == (20.0, 3.0)
    assert (n.ok_rate, n.failed_rate) == (None, None)  # new: there is nothing to compare
    assert (view.ok_rate, view.failed_rate) == (20.0, 3.0)
    assert m.errors == {"QUEUE_FULL": 6}


def test_one_answer_has_no_rates_but_all_that_was_done():
    """Nobody knows how fast it was, but which batches there were since the start."""
    view = seen(server(1.0, model(ok=10, batch_sizes={1: 3}, request_time=latency({0.004: 1}))))
    (only,) = view.models

    assert (view.ok_rate, only.ok_rate, only.busy) == (None, None, None)
    assert only.batch_sizes[:2] == (3, 0)
    assert view.request == Quantiles(p50=0.002, p99=0.002)
    assert view.history == ()


def test_busy_is_a_share_of_all_instances():
    """1.5 s of work in 1 s on 2 instances are 75 %; what is off by a copy is cut to 0 and 1."""
    assert seen(server(1, model(busy=1.0)), server(2, model(busy=2.5))).models[0].busy == 0.75
    assert seen(server(1, model(busy=1.0)), server(2, model(busy=0.9))).models[0].busy == 0.0
    assert seen(server(1, model(busy=1.0)), server(2, model(busy=4.0))).models[0].busy == 1.0
    assert seen(server(1, model(instances=0)), server(2, model(instances=0))).models[0].busy is None


def test_durations_are_those_of_the_window():
    """What is older than ten seconds is taken off, and quantiles are the geometric middle of their bucket."""
    answers = [server(float(second), model(request_time=latency({1.0: 1000, 0.004: second}))) for second in range(21)]
    view = seen(*answers, server(21.0, model(request_time=latency({1.0: 1000, 0.004: 20, 0.064: 89}))))

    assert view.request == Quantiles(p50=0.032, p99=0.032)  # 9 of 0.004, 89 of 0.064; none of 1.0
    assert view.models[0].request == view.request


def test_batches_and_reasons_are_those_of_the_window():
    """By how much their counts have grown; sizes by powers of two."""
    before = model(batch_sizes={1: 5, 3: 2}, dispatches={"idle": 7})
    after = model(batch_sizes={1: 5, 2: 1, 3: 4, 4: 1, 512: 1, 600: 2}, dispatches={"idle": 9, "full": 3})
    (found,) = seen(server(1, before), server(2, after)).models

    assert found.batch_sizes == (0, 1, 3, 0, 0, 0, 0, 0, 0, 1, 2)
    assert found.dispatches == {"idle": 2, "full": 3}
    assert found.rows_per_batch == pytest.approx((2 + 2 * 3 + 4 + 512 + 1200) / 7)


def test_a_server_that_starts_again_begins_anew():
    """Nothing is compared with another process, and the restart is told for ten seconds."""
    watch = Watch("there:1")
    watch.answered(server(50.0, model(ok=10_000)), now=1.0)
    watch.answered(server(51.0, model(ok=10_100)), now=2.0)
    watch.answered(server(0.5, model(ok=7), start_time=STARTED + dt.timedelta(seconds=52)), now=3.0)
    fresh = watch.view(now=3.0)
    watch.answered(server(1.5, model(ok=9), start_time=STARTED + dt.timedelta(seconds=52)), now=4.0)

    assert (fresh.ok_rate, fresh.restarted, fresh.uptime) == (None, True, 0.5)
    assert watch.view(now=12.9).restarted
    assert not watch.view(now=13.0).restarted
    assert watch.view(now=4.0).ok_rate == 2.0
    assert watch.view(now=4.0).history == (100.0, 2.0)


def test_a_server_that_does_not_answer():
    """What was known stays, with for how long it is out of date; the next answer ends the outage."""
    watch = Watch("there:1")
    watch.answered(server(1.0, model(ok=1)), now=1.0)
    watch.answered(server(2.0, model(ok=5)), now=2.0)
    watch.failed("connection refused", now=3.5)
    lost = watch.view(now=4.0)
    watch.answered(server(5.0, model(ok=5)), now=5.0)
    back = watch.view(now=5.0)

    assert (lost.lost_for, lost.trouble, len(lost.models)) == (2.0, "connection refused", 1)
    assert lost.history == (4.0, 0.0)
    assert (back.lost_for, back.trouble, back.ok_rate) == (None, "", 0.0)


def test_a_server_that_has_never_answered():
    """There is nothing to see but since when."""
    watch = Watch("there:1")
    watch.failed("connection refused", now=10.0)
    watch.failed("connection refused", now=11.0)
    view = watch.view(now=12.0)

    assert (view.lost_for, view.models, view.release, view.request) == (2.0, [], "", NOTHING)


def test_the_figures_of_now_are_those_of_the_last_answer():
    """Rows that wait over all models; the server's bytes and jobs."""
    jobs = JobStatistics(store="sqlite", available=True, states={JobState.PENDING: 3})
    view = seen(
        server(1.0, model(queued_rows=100)),
        server(2.0, model(queued_rows=3), model("n", queued_rows=4), held_bytes=9, jobs=jobs, draining=True),
    )

    assert (view.queued_rows, view.held_bytes, view.jobs, view.draining) == (7, 9, jobs, True)


def test_the_history_is_bounded():
    """A view that runs for days holds no more than a screen shows."""
    watch = Watch("there:1")
    for second in range(HISTORY + 50):
        watch.answered(server(float(second), model(ok=second)), now=float(second))

    assert len(watch.view(now=0.0).history) == HISTORY
    assert len(watch._answers) <= 12


@given(st.lists(st.floats(1e-6, 60), min_size=1, max_size=60), st.lists(st.floats(1e-6, 60), min_size=1, max_size=60))
def test_quantiles_of_a_difference_are_those_of_what_came_between(before, between):
    """Histograms of a server, subtracted, tell the quantiles of the interval to within a bucket."""
    histogram = Histogram()

    def told():
        buckets = {bound: count for bound, count in zip(BOUNDS, histogram.counts, strict=False) if count}
        return replace(EMPTY, buckets=buckets, growth=GROWTH)

    histogram.record_all(before)
    first = told()
    histogram.record_all(between)
    view = seen(server(1, model(request_time=first)), server(2, model(request_time=told())))
    between.sort()
    exact = [between[max(0, -(-int(100 * fraction * len(between)) // 100) - 1)] for fraction in (0.5, 0.99)]

    for found, wanted in zip((view.request.p50, view.request.p99), exact, strict=True):
        assert wanted / GROWTH <= found <= wanted * GROWTH
