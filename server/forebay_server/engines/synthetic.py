"""The synthetic engine: programmable latency, failures and hangs, without a model.

For tests, docs and benchmarks. Its one output `y` is its one input `x` (times `scale`, for numbers), so every answer
can be checked. It is asked for by a path such as `synthetic:base_ms=5,row_ms=0.2`, by options, or both (the path is
stronger). Values that make a row special are compared with the row's first element.

| option | what it does | default |
|---|---|---|
| `data_type` | of `x` and `y` | `FP32` |
| `shape` | of one row: `64`, `3x224x224`, `?` for a free dimension, or empty | `4` |
| `batched` | whether dimension 0 is the batch | true |
| `scale` | factor from `x` to `y` | 1 |
| `base_ms`, `row_ms` | a batch takes base + rows x row; padding counts | 0 |
| `busy` | spend that time computing (with the GIL) instead of sleeping | false |
| `failure_rate`, `seed` | part of the batches that raise; the sequence is fixed by the seed | 0, 0 |
| `poison` | a batch with such a row raises | none |
| `reject` | such rows are refused with a text for the caller | none |
| `hang` | a batch with such a row does not return until `release` or `close` | none |
| `hang_after` | after this many batches of an instance, the next one hangs | never |
| `oom_above` | batches of more rows raise OutOfMemory | never |
| `dies`, `dies_after` | such a row, or so many batches, end the instance for good | none, never |
| `coupled` | rows see each other: `y` is `x` plus the batch's mean; for the isolation check | false |
| `from_start` | fail by chance, count or size in the thread that made the instance (at warm-up) too | false |
| `worker` | never run inline (set by itself if something can hang) | false |

Beside the CPU it runs on the devices `fake:0`, `fake:1`, ..., which are there to try out how models are placed.
"""

import math
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from forebay_server.engines.base import (
    EngineBatch,
    EngineDead,
    EngineOptions,
    Instance,
    ModelLoadError,
    OutOfMemory,
    ParameterValue,
    RejectInput,
)
from forebay_server.engines.options import Options
from forebay_server.tensors import FREE, Array, DataType, ModelSpec, TensorSpec


class SyntheticFailure(Exception):
    """A failure that was asked for."""


class Behaviour:
    """The options, read."""

    def __init__(self, options: Options) -> None:
        self.data_type = options.take("data_type", "FP32")
        self.shape = options.take("shape", "4")
        self.batched = options.take("batched", default=True)
        self.scale = options.take("scale", 1.0)
        self.base = options.take("base_ms", 0.0) / 1e3
        self.per_row = options.take("row_ms", 0.0) / 1e3
        self.busy = options.take("busy", default=False)
        self.failure_rate = options.take("failure_rate", 0.0)
        self.seed = options.take("seed", 0)
        self.poison = options.take("poison", math.nan)  # NaN: equal to nothing
        self.reject = options.take("reject", math.nan)
        self.hang = options.take("hang", math.nan)
        self.hang_after = options.take("hang_after", -1)
        self.oom_above = options.take("oom_above", -1)
        self.dies = options.take("dies", math.nan)
        self.dies_after = options.take("dies_after", -1)
        self.coupled = options.take("coupled", default=False)
        self.from_start = options.take("from_start", default=False)
        self.worker = options.take("worker", default=False) or self.hang_after >= 0 or not math.isnan(self.hang)
        self.looks = not all(math.isnan(value) for value in (self.poison, self.reject, self.hang, self.dies))
        options.done()


class SyntheticEngine:
    """Echoes its input, with the behaviour that its options describe."""

    suffixes: ClassVar[Sequence[str]] = ()
    devices: ClassVar[Sequence[str]] = ("cpu", "fake")

    name = "synthetic"
    version = "1"

    def __init__(self, path: Path | str, options: EngineOptions) -> None:
        self._path = str(path)
        self.device = options.device
        self._options = options
        self._behaviour: Behaviour | None = None
        self._released = threading.Event()
        self.always_worker = False
        self.batch_sizes: Sequence[int] = ()
        self.holds_gil = False
        self.gives_way = False
        self.max_batch_size = 0

    def load(self) -> ModelSpec:
        """Reads the options."""
        behaviour = Behaviour(Options(self.name, {**self._options.options, **_parse(self._path)}))
        if behaviour.data_type not in DataType.__members__:
            raise ModelLoadError(f"engine option 'data_type': there is no {behaviour.data_type!r}")
        data_type = DataType[behaviour.data_type]
        if data_type is DataType.BYTES and (behaviour.looks or behaviour.coupled or behaviour.scale != 1.0):
            raise ModelLoadError("engine options: rows of BYTES can only be echoed")
        try:
            row = tuple(FREE if part == "?" else int(part) for part in behaviour.shape.split("x") if part)
        except ValueError:
            raise ModelLoadError(f"engine option 'shape': {behaviour.shape!r} is not like 3x224x224") from None
        shape = (FREE, *row) if behaviour.batched else row
        self._behaviour = behaviour
        self.always_worker = behaviour.worker
        return ModelSpec(
            inputs=(TensorSpec(name="x", data_type=data_type, shape=shape),),
            outputs=(TensorSpec(name="y", data_type=data_type, shape=shape),),
            batched=behaviour.batched,
        )

    def instance(self, index: int) -> Instance:
        """Makes an instance, with a random sequence of its own."""
        if self._behaviour is None:
            raise ModelLoadError("instance() before load()")
        return SyntheticInstance(self._behaviour, index, self._released)

    def release(self) -> None:
        """Lets everything that hangs go on, and nothing hang any more. From any thread."""
        self._released.set()

    def close(self) -> None:
        """Releases what hangs."""
        self._released.set()


class SyntheticInstance:
    """Runs batches as the options say."""

    def __init__(self, behaviour: Behaviour, index: int, released: threading.Event) -> None:
        self._behaviour = behaviour
        self._random = random.Random(behaviour.seed + index)  # noqa: S311  # repeatable, not secret
        self._released = released
        self._loader = None if behaviour.from_start else threading.get_ident()
        self._batches = 0
        self._dead = False

    def stage(self, shapes: Sequence[tuple[int, ...]]) -> None:  # the port's name
        """Any memory will do."""

    def infer(self, batch: EngineBatch) -> Sequence[Array]:
        """Waits, or fails, or hangs; then echoes."""
        behaviour = self._behaviour
        x = batch.inputs[0]
        rows = len(x) if behaviour.batched else 1
        if self._dead:
            raise EngineDead("a synthetic death")
        if threading.get_ident() != self._loader:
            self._misbehave(rows)
        if behaviour.looks:
            self._look(x, batch.rows)
        self._spend(behaviour.base + behaviour.per_row * rows)
        return [self._answer(x)]

    def close(self) -> None:
        """Nothing to let go of; `SyntheticEngine.close` releases what hangs."""

    def _misbehave(self, rows: int) -> None:
        behaviour = self._behaviour
        self._batches += 1
        if 0 <= behaviour.dies_after < self._batches:
            self._dead = True
            raise EngineDead("a synthetic death")
        if 0 <= behaviour.oom_above < rows:
            raise OutOfMemory
        if 0 <= behaviour.hang_after < self._batches:
            self._released.wait()
        if behaviour.failure_rate and self._random.random() < behaviour.failure_rate:
            raise SyntheticFailure("a failure by chance")

    def _look(self, x: Array, rows: int) -> None:
        behaviour = self._behaviour
        first = x.reshape(len(x), -1)[:rows, 0] if behaviour.batched else x.reshape(-1)[:1]
        if (first == behaviour.hang).any():
            self._released.wait()
        if (first == behaviour.dies).any():
            self._dead = True
            raise EngineDead("a synthetic death")
        if (refused := np.flatnonzero(first == behaviour.reject)).size:
            raise RejectInput("the synthetic engine refuses this row", refused.tolist())
        if (first == behaviour.poison).any():
            raise SyntheticFailure("a row is poison")

    def _spend(self, seconds: float) -> None:
        if seconds <= 0.0:
            return
        if not self._behaviour.busy:
            time.sleep(seconds)
            return
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    def _answer(self, x: Any) -> Array:
        behaviour = self._behaviour
        y = x.copy()
        if behaviour.scale != 1.0:
            y = (y * behaviour.scale).astype(x.dtype)
        if behaviour.coupled:
            y = (y + x.mean(axis=0)).astype(x.dtype)
        answer: Array = y
        return answer


def _parse(text: str) -> dict[str, ParameterValue]:
    """`base_ms=5,busy=true` as values: booleans, integers and floats where they look like it."""
    values: dict[str, ParameterValue] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not name and not equals:
            continue
        if not equals:
            raise ModelLoadError(f"synthetic:{text}: {part!r} is not like name=value")
        values[name] = _value(name, value)
    return values


def _value(name: str, text: str) -> ParameterValue:
    if name in {"data_type", "shape"}:
        return text
    if text in {"true", "false"}:
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
