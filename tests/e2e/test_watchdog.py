"""A dispatcher that stands still ends its process; one that is only busy does not."""

import pytest

from tests.serving import row

CODE = (
    "import time\nfrom forebay_server.engines.python import model\n"
    "@model(inputs={'x': ('FP32', (-1, 4))}, outputs={'y': ('FP32', (-1, 4))})\n"
    "class Model:\n"
    "    def infer(self, x):\n"
    "        if x[0, 0] == 7:\n"
    "            until = time.monotonic() + 600\n"
    "            while time.monotonic() < until: pass\n"
    "        if x[0, 0] == 5: time.sleep(2.5)\n"
    "        return x\n"
)


def start(process, tmp_path, *arguments):
    (tmp_path / "e2e_watched.py").write_text(CODE)
    settings = ["--set", "server.watchdog_s=1", "--max-batch-size", "1", "--run", "inline", *arguments]
    return process("python:e2e_watched.py:Model", *settings)


def test_an_endless_inline_batch_ends_the_process(process, call, tmp_path, front_end):
    """Exit code 70 (1 on grpc.aio) and all stacks on stderr, soon after the budget."""
    server = start(process, tmp_path, "--set", "models.0.engine.max_execution_s=0.5").ready()
    caller = call(server)
    assert caller.predict("Model", row(1)).outputs
    caller.later("Model", row(7))
    assert server.wait(10) == (70 if front_end == "native" else 1)
    assert "e2e_watched.py" in server.stderr, "the stacks show where it stands"
    assert "forebay-dispatcher" in server.stderr or "most recent call first" in server.stderr


def test_a_batch_that_may_be_slow_is_not_killed(process, call, tmp_path):
    """An inline batch within what the model may take does not end the process, whatever the watchdog's own budget."""
    server = start(process, tmp_path, "--set", "models.0.engine.max_execution_s=20").ready()
    caller = call(server)
    assert caller.predict("Model", row(5)).outputs
    assert caller.predict("Model", row(1)).outputs
    assert server.popen.poll() is None


@pytest.mark.parametrize("seconds", [2.5])
def test_loading_may_hold_everything_up(process, call, tmp_path, seconds):
    """While a model loads the watchdog rests, even if the load holds the GIL."""
    (tmp_path / "e2e_loads.py").write_text(
        CODE + f"    def load(self):\n        import re\n        until = time.monotonic() + {seconds}\n"
        "        while time.monotonic() < until: re.match('(a+)+$', 'a' * 22 + 'b')\n"
    )
    server = process("python:e2e_loads.py:Model", "--set", "server.watchdog_s=0.5").ready()
    assert call(server).predict("Model", row(1)).outputs
