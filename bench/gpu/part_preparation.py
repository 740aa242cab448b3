"""Inputs prepared on a real device, against numpy: the same bits in each pair of types; and how long it takes."""

from typing import Any

import numpy as np

from bench.gpu.outcome import Notes
from forebay_server.config.tree import InputConfig
from forebay_server.engines.gpu import cuda
from forebay_server.engines.gpu.device import Device
from forebay_server.engines.gpu.nvrtc import NvrtcCompiler
from forebay_server.engines.gpu.preparation import ARGUMENTS, defines, geometry, source_text
from forebay_server.engines.preparation import Preparation, plan
from forebay_server.tensors import FREE, NUMPY_DTYPES, DataType, ModelSpec, TensorSpec

IMAGES = InputConfig(
    data_type="UINT8", layout="channels_last", scale=1 / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]
)
FLOATS = (DataType.FP16, DataType.BF16, DataType.FP32, DataType.FP64)
CASES: list[tuple[DataType, tuple[int, ...], InputConfig]] = [
    *((data_type, (3, 224, 224), IMAGES) for data_type in FLOATS),
    (DataType.FP32, (3, 31, 17), IMAGES),
    (DataType.FP32, (3, 31, 17), InputConfig(data_type="UINT8", mean=[1.0, 2.0, 3.0])),
    (DataType.FP16, (333,), InputConfig(data_type="UINT8", scale=0.5)),
    (DataType.INT64, (512,), InputConfig(data_type="INT32")),
    (DataType.INT64, (512,), InputConfig(data_type="UINT16")),
    (DataType.INT32, (512,), InputConfig(data_type="INT8")),
    (DataType.INT64, (3, 16, 16), InputConfig(data_type="INT16", layout="channels_last")),
]
ROWS = 64


def run(notes: Notes) -> None:
    """All cases, on the first device."""
    device = cuda.open_device(0)
    for data_type, shape, config in CASES:
        tensor = TensorSpec(name="x", data_type=data_type, shape=(FREE, *shape))
        _, (made,) = plan(ModelSpec(inputs=(tensor,), outputs=(), batched=True), {"x": config})
        if made is None:
            raise AssertionError("a case without a preparation")
        title = f"{made.source.data_type.name} {list(made.source.shape[1:])} to {data_type.name} {list(shape)}"
        seconds = _compare(notes, device, made, title)
        if shape == (3, 224, 224):
            notes.figure(f"{title}, {ROWS} rows", seconds * 1e6, "us")
    device.close()


def _compare(notes: Notes, device: Device, made: Preparation, title: str) -> float:
    kernel = NvrtcCompiler(device, source_text(), "prepare", ARGUMENTS)(defines(made))
    sent: Any = NUMPY_DTYPES[made.source.data_type]
    limits = np.iinfo(sent)
    shape = (ROWS, *made.source.shape[1:])
    pixels = np.random.default_rng(5).integers(limits.min, limits.max, shape, limits.dtype, endpoint=True)
    expected = np.empty(made.target_shape(shape), NUMPY_DTYPES[made.target.data_type])
    made.apply(pixels, expected)

    table = made.table if made.table is not None else np.zeros(1, np.uint8)
    host, back = device.pinned(pixels.nbytes + table.nbytes), device.pinned(expected.nbytes)
    source, target, lookup = device.memory(pixels.nbytes), device.memory(expected.nbytes), device.memory(table.nbytes)
    host.view[: pixels.nbytes] = pixels.reshape(-1).view(np.uint8)
    host.view[pixels.nbytes :] = table.reshape(-1).view(np.uint8)
    stream = device.stream()
    stream.upload(source.address, host.address, pixels.nbytes)
    stream.upload(lookup.address, host.address + pixels.nbytes, table.nbytes)
    stream.fill(target.address, 0xAA, expected.nbytes)
    count, *rest = geometry(made, shape)
    arguments = (source.address, target.address, lookup.address if made.table is not None else 0, count, *rest)
    kernel.launch(arguments, count, stream)
    begin, end = device.event(timed=True), device.event(timed=True)
    stream.record(begin)
    for _ in range(10):
        kernel.launch(arguments, count, stream)
    stream.record(end)
    stream.download(back.address, target.address, expected.nbytes)
    stream.synchronize()
    notes.check(title, back.view.tobytes() == expected.tobytes())
    seconds = end.seconds_since(begin) / 10
    for each in (begin, end, stream, source, target, lookup, host, back):
        each.close()
    return seconds
