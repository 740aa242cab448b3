"""The model of the fault tests: its answer is a function of the row, and each row that runs leaves a line in a file.

The server imports it as `audited:scramble`. Rows are (number, kind): kind ORDINARY, SLOW, which takes SLOW_SECONDS, or
DEADLY, which ends the process as `kill -9` would. Rows of other kinds (those of the warm-up) leave no line.
"""

import os
import signal
import time

import numpy as np

from forebay_server.engines.python import model

ORDINARY, SLOW, DEADLY = 7001, 7002, 7666
SLOW_SECONDS = 0.5
FACTOR, MASK = 2654435761, (1 << 40) - 1

_audit = os.open(os.environ["AUDIT_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT) if "AUDIT_FILE" in os.environ else -1
_seconds_per_row = float(os.environ.get("AUDIT_ROW_SECONDS", "0"))


def answer(number: int) -> int:
    """What the model says to a row."""
    return (number * FACTOR) & MASK


@model(inputs={"x": ("INT64", (-1, 2))}, outputs={"y": ("INT64", (-1,))})
def scramble(x):
    """The model."""
    for number, kind in x.tolist():
        if kind in (ORDINARY, SLOW, DEADLY):
            os.write(_audit, b"%d %d\n" % (number, os.getpid()))
        if kind == SLOW:
            time.sleep(SLOW_SECONDS)
        if kind == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
    if _seconds_per_row:
        time.sleep(_seconds_per_row * len(x))
    return (x[:, 0] * np.int64(FACTOR)) & np.int64(MASK)
