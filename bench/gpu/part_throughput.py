"""Throughput of two models, in-process at the best batch size and then served: what the server costs."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.gpu.outcome import Notes
from bench.gpu.serving import DEVICE, Served, serve
from forebay_server.config.tree import BatchingConfig, EngineConfig, InputConfig, ModelConfig
from forebay_server.engines.base import EngineBatch
from forebay_server.engines.gpu import cuda
from forebay_server.models.loader import load
from forebay_server.tensors import NUMPY_DTYPES, Array

MODELS: Final = Path(__file__).with_name("models.py")
SECONDS: Final = 20.0  # of the served measurement
WARM_UP: Final = 5.0  # seconds of calls before it
IN_PROCESS: Final = 3.0  # seconds for each batch size
ITEMS: Final = 64
AHEAD: Final = 0.5  # seconds of the server's work that callers keep waiting there
LARGEST: Final = {"bert": 128, "resnet": 64}  # rows of a batch
GOAL: Final = 0.9


def bert(notes: Notes) -> None:
    """Small messages: 256 bytes of token ids."""
    _measure(notes, "bert", {"ids": InputConfig(data_type="UINT16")}, goal=GOAL)


def resnet(notes: Notes) -> None:
    """Images of 147 KiB."""
    images = InputConfig(
        data_type="UINT8", layout="channels_last", scale=1 / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]
    )
    _measure(notes, "resnet", {"image": images}, goal=None)


def _measure(notes: Notes, name: str, inputs: dict[str, InputConfig], *, goal: float | None) -> None:
    cuda.devices()
    path, largest = f"{MODELS}:{name}", LARGEST[name]
    items, expected, best, rows = _in_process(notes, path, inputs, largest)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        np.savez(folder / "items.npz", items=items, expected=expected)
        (folder / "forebay.toml").write_text(_toml(path, name, inputs))
        options = ("--engine", "torch", "--max-batch-size", str(largest))
        with serve("--config", str(folder / "forebay.toml"), *options) as served:
            waiting = max(4 * largest, int(best * AHEAD))
            rate, busy, wrong, ended = _served(served, name, folder / "items.npz", waiting)
            (told,) = served.client.statistics(name)
    notes.check("served answers are the model's own", not wrong, f"{wrong} wrong")
    notes.check("no caller was refused", not ended, ended)
    notes.figure("served", rate, "items/s")
    notes.figure("served over in-process", rate / best, least=goal)
    if busy is not None:
        notes.figure("GPU busy while serving, by the driver", 100 * busy, "%")
    batches = sum(told.batch_sizes.values())
    notes.figure(
        "rows in a batch, mean", sum(size * count for size, count in told.batch_sizes.items()) / max(1, batches)
    )
    notes.figure("engine time of a batch, median", told.compute_time.p50 * 1e3, "ms")
    notes.figure("best batch size in-process", rows)


def _in_process(
    notes: Notes, path: str, inputs: dict[str, InputConfig], largest: int
) -> tuple[Array, Array, float, int]:
    """Items with their answers, items a second at the best batch size, and that size."""
    config = ModelConfig(
        path=path,
        engine=EngineConfig(name="torch", devices=[DEVICE]),
        batching=BatchingConfig(max_batch_size=largest),
        inputs=inputs,
    )
    loaded = load(config)
    instance: Any = loaded.instances[0]
    notes.figure("graphs", getattr(instance, "captured", 0), least=len(loaded.measurements) * instance.depth)
    if loaded.unbatched_because:
        notes.check("its rows share batches", good=False, detail=loaded.unbatched_because)
    (source,) = loaded.spec.inputs
    random = np.random.default_rng(9)
    items = random.integers(0, 256, (ITEMS, *source.shape[1:])).astype(NUMPY_DTYPES[source.data_type])
    sizes = [size for size in loaded.batch_sizes or (1, 2, 4, 8, 16, 32, 64, 128) if size <= largest]
    rates = {}
    for size in sizes:
        batch = np.resize(items, (size, *items.shape[1:]))
        rates[size] = _rate(instance, batch)
        notes.figure(f"in-process, {size} rows", rates[size], "items/s")
    expected = []
    for start in range(0, ITEMS, sizes[-1]):
        batch = items[start : start + sizes[-1]]
        staged = instance.stage([batch.shape])
        staged[0][...] = batch
        expected.append(instance.collect(instance.issue(EngineBatch(staged, len(batch))))[0][: len(batch)])
    loaded.close()
    best = max(rates, key=lambda size: rates[size])
    return items, np.concatenate(expected).astype("f4"), rates[best], best


def _rate(instance: Any, batch: Array) -> float:
    """Rows a second with as many batches in flight as may be."""
    flying: list[object] = []
    issued = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < IN_PROCESS:
        if len(flying) == instance.depth:
            instance.collect(flying.pop(0))
        staged = instance.stage([batch.shape])
        staged[0][...] = batch
        flying.append(instance.issue(EngineBatch(staged, len(batch))))
        issued += len(batch)
    for ticket in flying:
        instance.collect(ticket)
    return issued / (time.perf_counter() - begin)


def _served(served: Served, name: str, file: Path, waiting: int) -> tuple[float, float | None, int, str]:
    """Items a second over all callers, the GPU's busy share, wrong answers, and what ended a caller."""
    callers = max(1, min(8, len(os.sched_getaffinity(0)) - 3))
    command = [
        sys.executable,
        "-m",
        "bench.gpu.generator",
        served.address,
        name,
        str(file),
        f"{WARM_UP:g}",
        f"{SECONDS:g}",
        str(max(1, waiting // callers)),
    ]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(callers)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()  # they have started
    time.sleep(WARM_UP)  # What is busy then is not what is measured.
    busy = _busy(SECONDS / 2)
    told = [json.loads(process.communicate()[0]) for process in processes]
    return (
        sum(each["answered"] for each in told) / SECONDS,
        busy,
        sum(each["wrong"] for each in told),
        next((each["ended"] for each in told if each["ended"]), ""),
    )


def _busy(seconds: float) -> float | None:
    """The share of time in which the first GPU ran something, as the driver's tool says; None without it."""
    command = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=250"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    except OSError:
        return None
    time.sleep(seconds)  # the tool tells the load once each quarter of a second until then
    process.terminate()
    said = process.communicate()[0].split()
    shares = [float(share) for share in said if share.replace(".", "").isdigit()]
    return statistics.mean(shares) / 100 if shares else None


def _toml(path: str, name: str, inputs: dict[str, InputConfig]) -> str:
    """A server's settings for one model."""
    lines = ["[[models]]", f"path = {json.dumps(path)}", f"name = {json.dumps(name)}"]
    for source, config in inputs.items():
        lines.append(f"[models.inputs.{source}]")
        lines += [f"{field} = {json.dumps(getattr(config, field))}" for field in config.__struct_fields__]
    return "\n".join(lines) + "\n"
