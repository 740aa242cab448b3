"""`python -m bench.gpu.generator ADDRESS MODEL FILE WARM_UP SECONDS WINDOW`: streams as fast as it is answered.

FILE is an npz with `items` (one a row) and `expected`; WINDOW is how many may be without an answer. It prints a line as
it begins to warm up, and at the end JSON: items answered in the measured time, that time, how many answers were wrong,
and the error that ended it, if one did. `part_throughput` starts several.
"""

import itertools
import json
import sys
import time
from collections.abc import Iterator

import numpy as np

from forebay_client import Client, ForebayError

DEADLINE = 60.0  # seconds
TOLERANCE = 2e-2


def main() -> None:
    """The command."""
    address, model, file = sys.argv[1:4]
    warm_up, seconds = map(float, sys.argv[4:6])
    window = int(sys.argv[6])
    with np.load(file) as data:
        items, expected = data["items"], data["expected"]
    scale = float(np.abs(expected).max())
    print("warming up", flush=True)
    begin = time.monotonic() + warm_up
    end = begin + seconds

    def source() -> Iterator[np.typing.NDArray[np.generic]]:
        for number in itertools.count():
            if time.monotonic() > end:
                return
            yield items[number % len(items)][None]

    answered = wrong = 0
    ended = ""
    with Client(address) as client:
        try:
            for number, prediction in enumerate(client.stream(model, source(), window=window, deadline=DEADLINE)):
                now = time.monotonic()
                if begin <= now <= end:
                    answered += 1
                if number % 97 == 0:  # looking at all of them would make the caller the slowest
                    difference = np.abs(prediction.array[0].astype("f4") - expected[number % len(items)]).max()
                    wrong += bool(difference > TOLERANCE * scale)
        except ForebayError as error:
            ended = f"{type(error).__name__}: {error}"
    print(json.dumps({"answered": answered, "seconds": seconds, "wrong": wrong, "ended": ended}))


if __name__ == "__main__":
    main()
