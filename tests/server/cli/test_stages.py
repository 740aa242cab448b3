"""How far a build is, on a terminal: bars that come and go."""

import pytest

from forebay_server.cli.stages import Stop, interruptible, stages


def test_phases_are_bars_inside_each_other(monkeypatch, capsys):
    """Each with its steps; a phase that is done is taken away; Ctrl-C is handed on with the next step."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    stop = Stop()
    with stages(stop) as watcher:
        watcher.started("Building", None, 4)
        watcher.started("Timing", "Building", 2)
        assert watcher.advanced("Timing", 0)
        assert watcher.advanced("Building", 1)
        watcher._bars.refresh()
        shown = capsys.readouterr().err
        watcher.finished("Timing")
        watcher.finished("Timing")  # TensorRT's affair, not ours
        stop.set()
        assert not watcher.advanced("Building", 2)
        watcher._bars.refresh()
        left = capsys.readouterr().err
    assert "Building" in shown
    assert "  Timing" in shown
    assert "1/2" in shown
    assert "2/4" in shown
    assert "3/4" in left
    assert "Timing" not in left.rpartition("3/4")[0].rpartition("Building")[2]


def test_what_work_raises_comes_out():
    """As if it had been called here."""
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0, Stop())
    assert interruptible(lambda: 5, Stop()) == 5
