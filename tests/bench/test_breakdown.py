"""The profile's sums."""

from bench.breakdown import shares


def test_samples_count_for_the_innermost_function_of_ours():
    """A stack belongs to the innermost frame inside the server, whatever library that has called; the rest is other."""
    raw = (
        "main (/x/run.py:1);take (/y/forebay_server/wire/native.py:10) 6\n"
        "turn (/y/forebay_server/scheduling/runner.py:5);infer (/y/forebay_server/engines/onnxruntime.py:9);"
        "run (/z/onnxruntime/session.py:3) 3\n"
        "idle (/x/threading.py:1) 1\n"
    )
    assert shares(raw) == {"wire.native.take": 0.6, "engines.onnxruntime.infer": 0.3, "other": 0.1}


def test_no_samples_are_no_shares():
    """An empty profile is empty, not an error."""
    assert shares("") == {}
