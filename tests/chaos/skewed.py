"""`forebay` with a wall clock that a file puts forward or back: `python skewed.py FILE serve ...`.

What the server asks for the time must get the changed one before its modules are imported.
"""

import sys
import time
from pathlib import Path

_real = time.time
_file = Path(sys.argv.pop(1))


def _skewed() -> float:
    try:
        return _real() + float(_file.read_text() or "0")
    except FileNotFoundError:
        return _real()


time.time = _skewed

from forebay_server.cli import main  # noqa: E402 - see above

main()
