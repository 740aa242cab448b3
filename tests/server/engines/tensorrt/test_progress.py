"""What is told of a build."""

from forebay_server.engines.tensorrt.progress import Words, make_monitor
from tests.server.engines.tensorrt import fake_tensorrt


def test_the_outermost_phase_is_told_once_a_second():
    """Phases inside it are not, and its end is not the build's."""
    now, told = [0.0], []
    words = Words(told.append, lambda: False, clock=lambda: now[0])
    monitor = make_monitor(fake_tensorrt, words)
    monitor.phase_start("Building Engine", None, 10)
    monitor.phase_start("Timing", "Building Engine", 99)
    for step in range(10):
        now[0] = step * 0.4
        assert monitor.step_complete("Timing", step)
        assert monitor.step_complete("Building Engine", step)
    monitor.phase_finish("Timing")
    monitor.phase_finish("Building Engine")
    assert monitor.step_complete("Building Engine", 10)
    assert told == [f"building its plan: Building Engine, {step} of 10" for step in (1, 4, 7, 10)]


def test_a_build_that_nobody_wants_is_ended():
    """By the answer to the next step."""
    monitor = make_monitor(fake_tensorrt, Words(lambda _words: None, lambda: True))
    monitor.phase_start("Building Engine", None, 10)
    assert not monitor.step_complete("Building Engine", 0)
