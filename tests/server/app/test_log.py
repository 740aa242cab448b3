"""Storms of lines: what is left out, and what is told of it."""

import pytest
import structlog
from structlog.testing import capture_logs

from forebay_server.app.log import SampleStorms
from forebay_server.services.complaints import SAMPLED
from forebay_server.telemetry.sampling import Sampler


@pytest.fixture
def storms():
    """Two lines of a kind at once, and none after them."""
    return SampleStorms(Sampler(burst=2, rate=0.0))


def written(storms, event, level, **fields):
    """The line, or None if it is left out."""
    try:
        return storms(None, level, {"event": event, "level": level, **fields})
    except structlog.DropEvent:
        return None


@pytest.mark.parametrize("level", ["warning", "error", "critical"])
def test_a_storm_of_one_kind(storms, level):
    """The first lines are written, the rest is left out; another kind has its own."""
    assert [written(storms, "engine is dead", level) is not None for _ in range(5)] == [True, True, False, False, False]
    assert written(storms, "certificate expires", level) == {"event": "certificate expires", "level": level}


@pytest.mark.parametrize("level", ["debug", "info"])
def test_what_is_no_complaint_is_always_written(storms, level):
    """A server's own life has few lines."""
    assert all(written(storms, "model_ready", level) for _ in range(10))


def test_lines_that_were_sampled_before_are_written(storms):
    """Those of requests are sampled by their reason, where they are made; the mark of it is not in the line."""
    for _ in range(10):
        assert written(storms, "request_refused", "warning", **{SAMPLED: True}) == {
            "event": "request_refused",
            "level": "warning",
        }


def test_what_was_left_out_is_told(storms):
    """At the end, by kind; and once."""
    for _ in range(5):
        written(storms, "engine is dead", "error")
    with capture_logs() as lines:
        storms.settle(at_once=True)
        storms.settle(at_once=True)

    (line,) = lines
    assert (line["event"], line["of"], line["suppressed"]) == ("lines_not_written", "engine is dead", 3)


def test_the_next_line_says_how_many_were_left_out():
    """When the storm is over."""
    storms = SampleStorms(Sampler(burst=1, rate=1e9))
    sampler = storms._sampler
    assert written(storms, "a", "error")
    found = sampler._kinds["a"]
    found.level, found.suppressed = 0.0, 7

    line = written(storms, "a", "error")
    assert line is not None
    assert line["suppressed"] == 7
