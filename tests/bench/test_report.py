"""The report's arithmetic and its page."""

import pytest

from bench.report import Sample, markdown, notes, row, rows, summaries, values
from bench.targets import BEST, TARGETS, Point, Target

OURS = Point("unary", "forebay", "32 in flight")
THEIRS = Point("unary", "grpc_aio", "32 in flight")
FIFTEEN = Target(title="faster", top=OURS, bottom=THEIRS, bound="at least", value=15)


MACHINE = {
    **dict.fromkeys(["cpu", "kernel", "python", "memory_gib", "cores", "threads", "load_average"], "?"),
    "virtual": False,
    "packages": {},
}
RUN = {"date": "2030-01-01", "machine": MACHINE, "server_core": 0, "load_core": 1, "repeats": 1, "seconds": 1}


def sample(column, repeat, rps, *, load="32 in flight", **more):
    return Sample(case="unary", column=column, load=load, repeat=repeat, metrics={"rps": rps, **more})


def test_a_ratio_is_of_medians_and_its_spread_of_single_repeats():
    """The measured figure is the ratio of medians; the spread is that of the ratios within each repeat."""
    samples = [sample("forebay", n, rps) for n, rps in enumerate([300, 330, 600])]
    samples += [sample("grpc_aio", n, rps) for n, rps in enumerate([20, 22, 30])]
    made = row(samples, FIFTEEN)
    assert (made.measured, made.low, made.high, made.reached) == (15.0, 15.0, 20.0, True)


def test_at_most_is_reached_from_below():
    """A bound from above is reached by a figure below it, and missed by one above it."""
    target = Target(title="start", top=OURS, bound="at most", value=1.5, unit=" s")
    assert row([sample("forebay", 0, 1.5)], target).reached is True
    missed = row([sample("forebay", 0, 1.6)], target)
    assert (missed.reached, missed.target, missed.unit) == (False, "at most 1.5 s", " s")


def test_unequal_repeats_are_put_against_the_median():
    """Where a side was measured once only, each repeat of the other is put against it."""
    samples = [sample("forebay", n, rps) for n, rps in enumerate([100, 200, 400])] + [sample("grpc_aio", 0, 10)]
    made = row(samples, FIFTEEN)
    assert (made.measured, made.low, made.high) == (20.0, 10.0, 40.0)


def test_best_is_the_load_with_the_best_median():
    """BEST picks one load by its median, not the best single repeat of any load."""
    samples = [sample("forebay", n, rps, load="1x") for n, rps in enumerate([10, 10, 90])]
    samples += [sample("forebay", n, rps, load="2x") for n, rps in enumerate([20, 30, 20])]
    assert values(samples, Point("unary", "forebay", BEST)) == [20, 30, 20]


def test_repeats_are_paired_by_number_whatever_the_order():
    """Columns take turns, so samples come in any order; values come by repeat."""
    assert values([sample("forebay", 1, 5), sample("forebay", 0, 4)], OURS) == [4, 5]


def test_a_row_without_samples_is_left_out():
    """What was not measured is neither reached nor missed."""
    assert row([sample("forebay", 0, 5)], FIFTEEN).measured is None
    assert rows([sample("forebay", 0, 5)], [FIFTEEN]) == []


def test_a_server_that_answered_nothing_makes_no_ratio():
    """A median of zero below the line gives no figure, and no exception."""
    assert row([sample("forebay", 0, 5), sample("grpc_aio", 0, 0)], FIFTEEN).measured is None


def test_every_target_has_a_title_of_its_own():
    """Rows are told apart by their titles."""
    titles = [target.title for target in TARGETS]
    assert len(set(titles)) == len(titles)


def test_summaries_are_medians_with_their_spread():
    """A summary has the median, the least and the greatest of the repeats."""
    (summary,) = summaries([sample("forebay", n, rps) for n, rps in enumerate([3, 1, 2])])
    assert (summary.medians, summary.spreads, summary.repeats) == ({"rps": 2}, {"rps": (1, 3)}, 3)


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"failures": 3}, "3 requests failed"),
        ({"generator_share": 0.95}, "the generator used 95% of its core"),
        ({"foreign_share": 0.2}, "others used 20% of the server's core"),
        ({"load_foreign_share": 0.3}, "others used 30% of the generator's core"),
        ({"spans_lost_share": 0.5}, "50% of the spans were dropped"),
        ({"spans_lost_share": 1.0}, None),
        ({"failures": 0, "generator_share": 0.9, "foreign_share": 0.05, "load_foreign_share": 0.2}, None),
    ],
)
def test_doubts_are_said(metrics, words):
    """Whatever makes a figure doubtful stands in the report."""
    found = notes([sample("forebay", 0, 1, **metrics)])
    assert found == [] if words is None else words in found[0]


def test_the_page_says_what_was_reached():
    """The page has a line for each row, with its verdict, and a table for each case."""
    samples = [sample("forebay", 0, 100.0), sample("grpc_aio", 0, 10.0)]
    page = markdown(RUN, samples, ["x.svg"])
    title = "unary, small model, 32 in flight: requests/s over grpc.aio"
    assert f"| {title} | 10.00 | 10.00-10.00 | at least 15 | **no** |" in page
    assert "| forebay | 32 in flight | 100 |" in page
    assert "![x.svg](x.svg)" in page
    assert "Reports of other tools" not in page


def test_the_page_leads_to_reports_of_other_tools():
    """Each once, whichever samples name it."""
    other = sample("forebay", 0, 100.0)
    other.detail["files"] = ["2030/ghz/a.json", "2030/ghz/a.html"]
    page = markdown(RUN, [other, other], [])
    assert page.count("* [2030/ghz/a.json](2030/ghz/a.json)") == page.count("* [2030/ghz/a.html](2030/ghz/a.html)") == 1
