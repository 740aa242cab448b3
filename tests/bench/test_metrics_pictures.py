"""The pictures of the metrics page: which panels they show, and that they can be drawn."""

import pytest

from bench import metrics_pictures
from bench.errors import BenchError
from bench.metrics_pictures import DASHBOARDS, FIGURES, Series, draw, filled, named, panel


def test_every_panel_is_one_of_its_dashboard():
    """And its expressions have nothing left that Prometheus would not understand."""
    for uid, titles in FIGURES.values():
        for title in titles:
            for expression, _ in panel(uid, title)[3]:
                assert "$" in expression
                assert "$" not in filled(expression)


def test_a_panel_that_is_not_there_is_said():
    """A title that was changed in the dashboard is to be changed here."""
    with pytest.raises(BenchError, match="no panel 'Nothing'"):
        panel("forebay-requests", "Nothing")


def test_legends_have_the_values_of_labels():
    """As Grafana fills them in."""
    assert named("{{code}} {{reason}}", {"code": "OK", "reason": "", "model": "m"}) == "OK "
    assert named("p99", {}) == "p99"


@pytest.mark.parametrize("name", FIGURES)
def test_a_picture_has_its_panels(name, tmp_path, monkeypatch):
    """Titles, legends and phases as text that can be read; the same figures make the same file."""
    monkeypatch.setitem(metrics_pictures.mpl.rcParams, "svg.fonttype", "none")
    uid, titles = FIGURES[name]
    panels = [(panel(uid, title), [Series("a line", [0.0, 60.0], [0.5, 1.0])]) for title in titles]
    for copy in ("one", "two"):
        draw(DASHBOARDS[uid][0], panels, tmp_path / f"{copy}.svg")
    text = (tmp_path / "one.svg").read_text()

    assert text == (tmp_path / "two.svg").read_text()
    for told in (DASHBOARDS[uid][0], "a line", *titles, *(phase.title for phase in metrics_pictures.PHASES)):
        assert told in text
