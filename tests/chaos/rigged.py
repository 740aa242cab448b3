"""`forebay` as tests of faults need it: `python rigged.py FOLDER serve ...`.

`FOLDER/skew` has the seconds by which the wall clock is put forward or back. On SIGUSR1 the fail point in `FOLDER/fail`
is armed (`NAME` or `NAME:PASSAGE`) and the file removed, so that a server has served before it dies.
"""

import signal
import sys
import time
from pathlib import Path

_real = time.time
_folder = Path(sys.argv.pop(1))


def _skewed() -> float:
    try:
        return _real() + float((_folder / "skew").read_text() or "0")
    except FileNotFoundError:
        return _real()


time.time = _skewed  # before the server's modules are imported

from forebay_server.cli import main  # noqa: E402  # see above
from forebay_server.jobs import failpoints  # noqa: E402  # see above


def _arm(*_: object) -> None:
    place = _folder / "fail"
    failpoints.arm(place.read_text())
    place.unlink()


signal.signal(signal.SIGUSR1, _arm)
sys.exit(main())
