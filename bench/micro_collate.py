"""Measures how long it takes to put a batch together and to take it apart: `python bench/micro_collate.py`.

32 requests of one row, 64 FP32 in and 10 out, and some other sizes. Best of several runs, microseconds per batch.
"""

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from forebay_server.engines.collate import Collator
from forebay_server.engines.synthetic import SyntheticEngine
from forebay_server.models.loader import EngineSettings
from forebay_server.scheduling.request import Part, Request
from forebay_server.tensors import FREE, Array, DataType, ModelSpec, TensorSpec


def best(call: Callable[[], object], seconds: float = 0.2) -> float:
    """Microseconds of a call: the best of five runs."""
    call()
    begin = time.perf_counter()
    call()
    number = max(1, int(seconds / 5 / max(time.perf_counter() - begin, 1e-7)))
    results = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(number):
            call()
        results.append((time.perf_counter() - begin) / number)
    return min(results) * 1e6


def split(collator: Collator, result: Array, requests: int) -> None:
    take = collator.outputs([result], requests).data
    for row in range(requests):
        take(0, row, 1)


def main() -> None:
    engine = SyntheticEngine("", EngineSettings(1, 1, {}))
    engine.load()
    instance = engine.instance(0)
    print(f"{'requests':>8} {'bytes in':>10} {'bytes out':>10} {'collate':>9} {'outputs + data':>15}   microseconds")
    for requests, width, out in ((1, 64, 10), (32, 64, 10), (128, 64, 10), (32, 4096, 1000), (8, 150_000, 1000)):
        spec = ModelSpec(
            inputs=(TensorSpec(name="x", data_type=DataType.FP32, shape=(FREE, width)),),
            outputs=(TensorSpec(name="y", data_type=DataType.FP32, shape=(FREE, out)),),
            batched=True,
        )
        collator = Collator(spec)
        bucket = ((width,),)
        data = [np.full(width, float(number), "<f4").tobytes() for number in range(requests)]
        parts = [Part(Request(None, 1, len(piece), 0.0, [piece], arrival=0.0), 0, 1) for piece in data]  # type: ignore[arg-type]  # no lane needed
        result = np.zeros((requests, out), "<f4")

        put = partial(collator.collate, parts, bucket, requests, instance, None)
        take = partial(split, collator, result, requests)
        print(f"{requests:8} {width * 4:10} {out * 4:10} {best(put):9.2f} {best(take):15.2f}")


if __name__ == "__main__":
    main()
