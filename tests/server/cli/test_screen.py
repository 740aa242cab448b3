"""How a view looks: what is there, and that nothing is wider or longer than the terminal."""

from dataclasses import replace

import pytest

from forebay_client import JobState, JobStatistics
from forebay_server.cli import screen as module
from forebay_server.cli.screen import PLAIN, duration, number, screen, size, spark
from forebay_server.cli.watched import ModelView, Quantiles, View

TIMES = Quantiles(p50=0.0021, p99=0.0123)

MODEL = ModelView(
    model="digits",
    version=3,
    state="ready",
    engine="onnxruntime",
    instances=2,
    usable_instances=2,
    running_batches=1,
    queued_rows=12,
    held_bytes=4096,
    ok_rate=1234.0,
    failed_rate=0.0,
    busy=0.634,
    request=TIMES,
    queue=TIMES,
    compute=TIMES,
    rows_per_batch=7.25,
    batch_sizes=(30, 0, 60, 0, 0, 0, 0, 0, 0, 0, 1),
    dispatches={"idle": 60, "full": 31},
    errors={"QUEUE_FULL": 5, "DEADLINE_EXPIRED": 9},
)

VIEW = View(
    address="127.0.0.1:8500",
    lost_for=None,
    trouble="",
    restarted=False,
    release="1.2.3",
    front_end="native",
    uptime=93_784.0,
    draining=False,
    ok_rate=1234.0,
    failed_rate=2.5,
    request=TIMES,
    queued_rows=12,
    held_bytes=5 << 20,
    history=(0.0, 10.0, 20.0),
    models=[MODEL],
    jobs=JobStatistics(store="sqlite", available=True, states={JobState.PENDING: 1234, JobState.RUNNING: 1}),
)


def test_a_whole_screen():
    """Every figure of a view, at its place."""
    titles = "IN QUEUE P99  IN ENGINE P50  QUEUED  ROWS/BATCH  1 ... 512    BUSY"
    wide = "2.1 ms  12.3 ms       12.3 ms         2.1 ms      12        7.25  ▄ █       ▁   63%"

    assert screen(VIEW, width=130, height=30).plain.split("\n") == [
        "forebay top  127.0.0.1:8500  up 1 d 02:03:04  1.2.3 native",
        "req/s 1,234   fail/s 2.50    p50 2.1 ms  p99 12.3 ms  queued 12      held 5 MiB",
        " ▄█",
        "",
        f"MODEL     STATE  REQ/S  FAIL/S     P50      P99  {titles}",
        f"digits:3  ready  1,234       0  {wide}",
        "",
        "digits:3  onnxruntime, 2/2 instances, 1 running",
        "   rows  batches                          started because",
        "      1  ████████████ 30                  idle 66%",
        "      2   0                               full 34%",
        "    3-4  ████████████████████████ 60",
        *(f"{name:>7}   0" for name in ("5-8", "9-16", "17-32", "33-64", "65-128", "129-256", "257-512")),
        "  > 512  █ 1",
        " errors  DEADLINE_EXPIRED 9, QUEUE_FULL 5",
        "",
        "jobs  sqlite  pending 1,234  running 1",
    ]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 200])
@pytest.mark.parametrize("height", [3, 8, 14, 24, 60])
def test_nothing_is_outside_the_terminal(width, height):
    """However narrow and low it is; and what matters most is what stays."""
    view = replace(VIEW, models=[replace(MODEL, model=f"a-model-with-a-name-{number_}") for number_ in range(30)])
    lines = screen(view, width=width, height=height).plain.split("\n")

    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("forebay top  127.0.0"[:width])
    if width >= 60 and height >= 14:
        assert "REQ/S" in lines[4]
        assert "P99" in lines[4]
        assert lines[-1].startswith("jobs  sqlite")


def test_models_that_there_is_no_room_for_are_counted():
    """Those with most requests are shown, in their order; the others are a number."""
    models = [
        replace(MODEL, model=f"m{place:02}", ok_rate=float(place), batch_sizes=(), errors={}) for place in range(20)
    ]
    lines = screen(replace(VIEW, models=models), width=100, height=12).plain.split("\n")

    assert [line.split(":")[0] for line in lines[5:9]] == ["m16", "m17", "m18", "m19"]
    assert lines[9] == "and 16 more with fewer requests"


def test_a_server_that_does_not_answer_is_the_first_thing_to_see():
    """With the reason, for how long, and what was last known dimmed."""
    text = screen(replace(VIEW, lost_for=3.2, trouble="connection refused"), width=130, height=30)

    assert text.plain.split("\n")[0] == "forebay top  127.0.0.1:8500  NO ANSWER for 3 s: connection refused"
    assert any(span.style == "dim" and span.start > 70 for span in text.spans)


def test_draining_and_a_restart_are_told():
    """Beside the address."""
    assert "  DRAINING  up " in screen(replace(VIEW, draining=True), width=130, height=30).plain
    assert "  RESTARTED  up " in screen(replace(VIEW, restarted=True), width=130, height=30).plain


def test_trouble_with_instances_and_stores_is_told():
    """An instance that is stuck or lost; a store that does not answer."""
    stuck = replace(VIEW, models=[replace(MODEL, usable_instances=1)], jobs=replace(VIEW.jobs, available=False))
    lines = screen(stuck, width=130, height=30).plain.split("\n")

    assert "1/2 usable" in lines[5]
    assert "STORE DOES NOT ANSWER" in lines[-1]


def test_ascii_terminals_get_ascii():
    """Bars are made of what every terminal has."""
    assert screen(VIEW, width=130, height=30, ramp=PLAIN).plain.isascii()


def test_what_is_not_zero_is_seen():
    """One in ten thousand still has a bar; nothing at all has none."""
    assert spark([0, 1, 10_000], module.BLOCKS) == " ▁█"
    assert spark([0, 0], module.BLOCKS) == "  "
    assert spark([], module.BLOCKS) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (number(None), "-"),
        (number(0.0), "0"),
        (number(1.234), "1.23"),
        (number(12.34), "12.3"),
        (number(12345.6), "12,346"),
        (duration(None), "-"),
        (duration(0.000123), "0.12 ms"),
        (duration(0.01234), "12.3 ms"),
        (duration(0.9994), "999 ms"),
        (duration(1.25), "1.2 s"),
        (duration(250.0), "250 s"),
        (size(0), "0 B"),
        (size(1536), "1.50 KiB"),
        (size(3 << 30), "3 GiB"),
    ],
)
def test_figures(text, expected):
    """Three digits or so, with their unit."""
    assert expected == text
