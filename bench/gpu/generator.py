"""`python -m bench.gpu.generator ADDRESS MODEL FILE WARM_UP SECONDS`: streams items as fast as they are answered.

FILE is an npz with `items` (one a row) and `expected`. It prints JSON: items answered in the measured time, that time,
and how many answers were wrong. `part_throughput` starts several.
"""

import itertools
import json
import sys
import time
from collections.abc import Iterator

import numpy as np

from forebay_client import Client

WINDOW = 1024
TOLERANCE = 2e-2


def main() -> None:
    """The command."""
    address, model, file = sys.argv[1:4]
    warm_up, seconds = map(float, sys.argv[4:])
    with np.load(file) as data:
        items, expected = data["items"], data["expected"]
    scale = float(np.abs(expected).max())
    begin = time.monotonic() + warm_up
    end = begin + seconds

    def source() -> Iterator[np.typing.NDArray[np.generic]]:
        for number in itertools.count():
            if time.monotonic() > end:
                return
            yield items[number % len(items)][None]

    answered = wrong = 0
    with Client(address) as client:
        for number, prediction in enumerate(client.stream(model, source(), window=WINDOW, deadline=60.0)):
            now = time.monotonic()
            if begin <= now <= end:
                answered += 1
            if number % 97 == 0:  # looking at all of them would make the caller the slowest
                difference = np.abs(prediction.array[0].astype("f4") - expected[number % len(items)]).max()
                wrong += bool(difference > TOLERANCE * scale)
    print(json.dumps({"answered": answered, "seconds": seconds, "wrong": wrong}))


if __name__ == "__main__":
    main()
