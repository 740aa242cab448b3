"""The cost model: exact values."""

import pytest

from forebay_server.scheduling.latency import CostModel, Point

BUCKET = ((4,),)


def test_rungs_are_medians_with_lines_between_them():
    """Each rung is the median of its timings; between, below and beyond, the costs follow straight lines."""
    costs = CostModel([
        (BUCKET, 1, 3.0), (BUCKET, 4, 5.0), (BUCKET, 1, 1.0), (BUCKET, 8, 13.0), (BUCKET, 1, 2.0),
    ])  # fmt: skip
    assert [costs.predict(BUCKET, rows) for rows in (1, 2, 4, 6, 8, 10)] == [2.0, 3.0, 5.0, 9.0, 13.0, 17.0]
    assert CostModel([(BUCKET, 4, 5.0)]).predict(BUCKET, 2) == 5.0
    assert CostModel([(BUCKET, 4, 5.0)]).predict(BUCKET, 8) == 10.0


def test_larger_batches_never_cost_less():
    """Rungs out of order are pooled."""
    costs = CostModel([(BUCKET, 1, 1.0), (BUCKET, 2, 4.0), (BUCKET, 4, 2.0), (BUCKET, 8, 8.0)])
    assert [costs.predict(BUCKET, rows) for rows in (1, 2, 4, 8)] == [1.0, 3.0, 3.0, 8.0]


def test_a_batch_corrects_its_rung():
    """new = old + step x (seen - old): a quarter, a fifth, ..., a twentieth; and the neighbours by their nearness."""
    costs = CostModel([(BUCKET, 1, 1.0), (BUCKET, 4, 4.0)])
    costs.observe(BUCKET, 4, 6.0)
    assert costs.predict(BUCKET, 4) == pytest.approx(4.5)
    costs.observe(BUCKET, 4, 6.0)
    assert costs.predict(BUCKET, 4) == pytest.approx(4.8)
    for _ in range(14):
        costs.observe(BUCKET, 4, 4.8)
    costs.observe(BUCKET, 4, 6.8)
    assert costs.predict(BUCKET, 4) == pytest.approx(4.9)
    costs.observe(BUCKET, 4, 6.9)
    assert costs.predict(BUCKET, 4) == pytest.approx(5.0)
    costs = CostModel([(BUCKET, 2, 2.0), (BUCKET, 6, 6.0)])
    costs.observe(BUCKET, 3, 6.0)
    assert costs.predict(BUCKET, 2) == pytest.approx(2.0 + 0.25 * 0.75 * 2.0)
    assert costs.predict(BUCKET, 6) == pytest.approx(6.0 + 0.25 * 0.25 * 6.0)


def test_hiccups_are_counted_not_learned_unless_they_go_on():
    """Over five times the prediction is ignored, until the eighth in a row."""
    costs = CostModel([(BUCKET, 1, 1.0)])
    for _ in range(7):
        costs.observe(BUCKET, 1, 5.1)
    assert (costs.predict(BUCKET, 1), costs.outliers) == (1.0, 7)
    costs.observe(BUCKET, 1, 1.0)
    for _ in range(8):
        costs.observe(BUCKET, 1, 6.0)
    assert (costs.predict(BUCKET, 1), costs.outliers) == (6.0, 15)


def test_unknown_buckets_are_learned():
    """Nothing is predicted before the first batch; then new sizes become rungs."""
    costs = CostModel()
    assert costs.predict(BUCKET, 1) is None
    costs.observe(BUCKET, 4, 4.0)
    assert costs.predict(BUCKET, 1) == 4.0
    costs.observe(BUCKET, 8, 6.0)
    costs.observe(BUCKET, 1, 1.0)
    assert costs.points() == [Point(BUCKET, 1, 1.0, 1), Point(BUCKET, 4, 4.0, 1), Point(BUCKET, 8, 6.0, 1)]


def test_points_make_the_same_model_again():
    """What is saved can be loaded."""
    costs = CostModel([(BUCKET, 1, 1.0), (BUCKET, 4, 4.0), (((8,),), 1, 2.0)])
    costs.observe(BUCKET, 4, 5.0)
    again = CostModel(point[:3] for point in costs.points())
    assert [point[:3] for point in again.points()] == [point[:3] for point in costs.points()]


def test_the_best_size_is_the_smallest_near_the_highest_rate():
    """Rates 100, 167, 250, 254 rows/s: 4 is within 4 % of the best, 2 is not; the limit cuts."""
    costs = CostModel([(BUCKET, 1, 0.010), (BUCKET, 2, 0.012), (BUCKET, 4, 0.016), (BUCKET, 8, 0.0315)])
    assert costs.best_size(BUCKET, 8) == 4
    assert costs.best_size(BUCKET, 3) == 3
    assert costs.best_size(BUCKET, 1) == 1
    assert costs.best_size(((9,),), 16) == 16


def test_the_best_size_counts_what_rows_cost_elsewhere():
    """With 10 ms a row beside the engine the rates are 50, 63, 71, 72 rows/s: less is gained by size."""
    costs = CostModel([(BUCKET, 1, 0.010), (BUCKET, 2, 0.012), (BUCKET, 4, 0.016), (BUCKET, 8, 0.0315)])
    assert costs.best_size(BUCKET, 8, per_row=0.010) == 4
    assert costs.best_size(BUCKET, 8, per_row=0.010, within=0.85) == 2


def test_the_best_size_counts_what_batches_cost_elsewhere():
    """Rows of 1 ms gain nothing by company, unless a batch costs 1 ms beside it: 500, 667, 800, 889 rows/s."""
    costs = CostModel([(BUCKET, size, 0.001 * size) for size in (1, 2, 4, 8)])
    assert costs.best_size(BUCKET, 8) == 1
    assert costs.best_size(BUCKET, 8, per_batch=0.001) == 8
    assert costs.best_size(BUCKET, 8, per_batch=0.001, within=0.85) == 4


def test_patience_is_30_s_then_ten_times_the_slowest():
    """Until 100 samples 30 s; then at least 5 s, and ten times the tail."""
    costs = CostModel([(BUCKET, 1, 0.4)])
    for _ in range(99):
        costs.observe(BUCKET, 1, 0.4)
    assert costs.patience(BUCKET, 1) == 30.0
    costs.observe(BUCKET, 1, 0.4)
    assert costs.patience(BUCKET, 1) == 5.0
    costs.observe(BUCKET, 1, 1.6)
    assert costs.patience(BUCKET, 1) == pytest.approx(10 * 4.0 * costs.predict(BUCKET, 1))


def test_the_number_of_buckets_is_bounded():
    """The oldest make room."""
    costs = CostModel()
    for length in range(1100):
        costs.observe(((length,),), 1, 1.0)
    assert len(costs.points()) == 1024
    assert costs.predict(((0,),), 1) is None


def test_a_larger_size_is_tried_unless_it_is_far_from_good():
    """Rates 100, 125, 94, 57 rows/s: 4 may be as good as 2, 8 can't be as good as 4; above all there is the double."""
    costs = CostModel([(BUCKET, 1, 0.010), (BUCKET, 2, 0.016), (BUCKET, 4, 0.0425), (BUCKET, 8, 0.14)])
    assert [costs.trial_size(BUCKET, size, 128) for size in (1, 2, 4, 8)] == [2, 4, 4, 16]
    assert [costs.trial_size(BUCKET, 2, limit) for limit in (2, 3, 4)] == [2, 3, 4]
    assert costs.trial_size(((9,),), 2, 128) == 2
