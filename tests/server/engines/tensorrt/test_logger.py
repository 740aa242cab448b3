"""TensorRT's messages: into our log, never to stdout; its errors, to whoever asks."""

import pytest
import structlog

from forebay_server.engines.tensorrt.logger import KEPT, LONGEST, Errors, make_logger, make_recorder, sentence
from tests.server.engines.tensorrt import fake_tensorrt
from tests.server.engines.tensorrt.fake_tensorrt import ErrorCodeTRT, ILogger


@pytest.fixture
def recorder():
    """(recorder, errors)."""
    errors = Errors()
    return make_recorder(fake_tensorrt, errors), errors


@pytest.mark.parametrize(
    ("severity", "level"),
    [("INTERNAL_ERROR", "error"), ("ERROR", "error"), ("WARNING", "warning"), ("INFO", "debug"), ("VERBOSE", None)],
)
def test_messages_go_into_the_log(capfd, severity, level):
    """At the level that they deserve; not the thousands at VERBOSE."""
    with structlog.testing.capture_logs() as logs:
        make_logger(fake_tensorrt).log(ILogger.Severity[severity], "two\nlines\x00.\n")
    assert logs == ([{"event": "tensorrt", "text": "two lines?", "log_level": level}] if level else [])
    assert capfd.readouterr() == ("", "")


def test_errors_wait_for_whoever_asks(recorder):
    """The first is the cause; asked once, all are forgotten."""
    made, errors = recorder
    assert errors.take() == "it does not say why"
    assert made.report_error(ErrorCodeTRT.INVALID_ARGUMENT, "the cause.") is True
    assert made.report_error(ErrorCodeTRT.INTERNAL_ERROR, "what follows") is True
    assert (made.num_errors(), made.get_num_errors()) == (2, 2)
    assert (made.get_error_code(1), made.get_error_desc(1)) == (ErrorCodeTRT.INTERNAL_ERROR, "what follows")
    assert (made.get_error_code(2), made.get_error_desc(-1)) == (ErrorCodeTRT.SUCCESS, "")
    assert errors.take() == "the cause"
    assert made.num_errors() == 0


def test_a_storm_of_errors_is_bounded(recorder):
    """The newest stay, and it is known that others were there."""
    made, errors = recorder
    for number in range(KEPT):
        made.report_error(ErrorCodeTRT.INTERNAL_ERROR, str(number))
    assert not made.has_overflowed()
    made.report_error(ErrorCodeTRT.INTERNAL_ERROR, "one more")
    assert made.has_overflowed()
    assert (made.num_errors(), made.get_error_desc(0)) == (KEPT, "1")
    made.clear()
    assert (made.has_overflowed(), errors.all()) == (False, [])


@pytest.mark.parametrize(
    ("code", "text", "memory"),
    [
        ("FAILED_ALLOCATION", "Requested size was 5 bytes", True),
        ("INTERNAL_ERROR", "CUDA runtime error: out of memory", True),
        ("FAILED_EXECUTION", "an illegal memory access was encountered", False),
    ],
)
def test_what_is_no_memory(recorder, code, text, memory):
    """By its code, or by its words."""
    made, errors = recorder
    made.report_error(ErrorCodeTRT[code], text)
    assert errors.no_memory() is memory


def test_sentences_are_short_and_printable():
    """They stand in logs and in errors of one line."""
    assert sentence(" a\n b\t\x1b[31m. ") == "a b ?[31m"
    assert len(sentence("x" * 1000)) == LONGEST
