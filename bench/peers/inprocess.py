"""The bound: batched inference in this process, without a server.

`python -m bench.peers.inprocess MODEL.onnx` writes rows a second for each batch size, as JSON. `bench.run` calls it.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from bench.models import session

BATCH_SIZES = (1, 2, 4, 8, 16, 32)


def measure(path: Path, seconds: float) -> dict[int, float]:
    """Rows a second of the model at `path` for each batch size, each measured for `seconds`.

    The sizes take turns, so that a slow moment of the machine falls on all of them.
    """
    model = session(path)
    first = model.get_inputs()[0]
    row = tuple(first.shape[1:])
    random = np.random.default_rng(3)
    batches = {size: random.standard_normal((size, *row)).astype(np.float32) for size in BATCH_SIZES}
    for batch in batches.values():
        model.run(None, {first.name: batch})
    rows = dict.fromkeys(BATCH_SIZES, 0)
    spent = dict.fromkeys(BATCH_SIZES, 0.0)
    while min(spent.values()) < seconds:
        for size, batch in batches.items():
            start = time.perf_counter()
            until = start + min(seconds, 0.25)
            while (now := time.perf_counter()) < until:
                model.run(None, {first.name: batch})
                rows[size] += size
            spent[size] += now - start
    return {size: rows[size] / spent[size] for size in BATCH_SIZES}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Batched inference without a server, in rows a second.")
    parser.add_argument("model", type=Path, help="the ONNX file")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each batch size")
    arguments = parser.parse_args()
    print(json.dumps({"rows_per_second": measure(arguments.model, arguments.seconds)}))


if __name__ == "__main__":
    main()
