"""Each engine against numpy or its own library on the CPU: every type, buckets, batch sizes, and inputs of callers.

Models go through the loader as they do in a server: warm-up, row check, graphs. Then batches of the sizes that are
captured and of others are run through the first instance and compared.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.gpu.outcome import Notes, NotExecuted
from forebay_server.config.tree import BatchingConfig, BucketsConfig, EngineConfig, InputConfig, ModelConfig
from forebay_server.engines.base import ModelLoadError
from forebay_server.engines.gpu import cuda
from forebay_server.engines.gpu.pipeline import GpuInstance
from forebay_server.engines.torch.compiling import compile_program
from forebay_server.models.loaded import Loaded
from forebay_server.models.loader import load
from forebay_server.models.warm_up import run as run_batch
from forebay_server.tensors import NUMPY_DTYPES, Array, DataType

DEVICE = "cuda:0"
MODELS: Final = Path(__file__).with_name("models.py")
ROWS: Final = (1, 3, 8)
LENGTHS: Final = (4, 16)  # buckets
WIDTH: Final = 256
TOLERANCE: Final = {"FP16": 2e-2, "FP32": 1e-4}

ONNX_TYPES: Final = {
    "BOOL": "BOOL", "UINT8": "UINT8", "INT8": "INT8", "INT32": "INT32", "INT64": "INT64",
    "FP16": "FLOAT16", "BF16": "BFLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE",
}  # fmt: skip
TENSORRT_TYPES: Final = ("BOOL", "INT32", "INT64", "FP16", "BF16", "FP32")
TORCH_TYPES: Final = ("BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64")


def torch(notes: Notes) -> None:
    """y = x + x in each type, and the two models against themselves on the CPU."""
    cuda.devices()
    for name in TORCH_TYPES:
        path = f"{MODELS}:twice_{name.lower()}"
        _exact(notes, path, "torch", name, lambda x: x if x.dtype == bool else x + x)
    _torch_model(notes, "bert", {"ids": InputConfig(data_type="UINT16")}, rows=4)
    _torch_model(
        notes, "resnet", {"image": InputConfig(data_type="UINT8", layout="channels_last", scale=1 / 255)}, rows=2
    )


def torch_package(notes: Notes) -> None:
    """A layer, exported, compiled here as `forebay compile` does, and loaded by the engine, against numpy."""
    cuda.devices()
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise NotExecuted(f"there is no C++ compiler ({compiler}; CXX names it)")
    import torch as library  # noqa: PLC0415  # named like the part

    from bench.gpu import models  # noqa: PLC0415  # wants torch

    layer = models.layer(WIDTH).eval()
    rows = library.export.Dim("rows", min=1, max=max(ROWS))
    program = library.export.export(layer, (library.zeros(2, WIDTH),), dynamic_shapes=({0: rows},))
    with _folder() as folder:
        library.export.save(program, folder / "program.pt2")
        began = time.monotonic()
        compile_program(folder / "program.pt2", folder / "layer.pt2", device=DEVICE.partition(":")[0], names=["y"])
        notes.figure("compiled in", time.monotonic() - began, "s")
        weights, bias = (parameter.detach().numpy().astype("f8") for parameter in layer[0].parameters())
        with _loaded(str(folder / "layer.pt2"), "torch", {}) as loaded:
            _against_numpy(notes, loaded, weights.T, bias, "FP32", "")
            _captured(notes, loaded, "")


def onnxruntime(notes: Notes) -> None:
    """y = x in each type, a layer against numpy, with each way of graphs."""
    with _provider("CUDAExecutionProvider"):
        _onnx(notes, "onnxruntime", {})
        for graphs in ("session", "none"):
            with _folder() as folder:
                _layer(notes, folder, "onnxruntime", {"graphs": graphs}, f"graphs = {graphs}, ")


def onnxruntime_tensorrt(notes: Notes) -> None:
    """The same with the TensorRT provider, if its libraries are there."""
    with _provider("TensorrtExecutionProvider"), _folder() as folder:
        options = {"providers": "TensorrtExecutionProvider,CUDAExecutionProvider", "graphs": "none"}
        _layer(notes, folder, "onnxruntime", options, "")


@contextmanager
def _provider(name: str) -> Iterator[None]:
    """What is done with a provider, if this ONNX Runtime has it and its libraries are there."""
    cuda.devices()
    import onnxruntime as library  # noqa: PLC0415  # named like the part

    if name not in library.get_available_providers():
        raise NotExecuted(f"this onnxruntime {library.__version__} has no {name} (onnxruntime-gpu has)")
    try:
        yield
    except ModelLoadError as error:
        if "library is missing" in str(error) or "install TensorRT" in str(error):
            raise NotExecuted(str(error)) from error
        raise


def tensorrt(notes: Notes) -> None:
    """Plans that are built here."""
    _onnx(notes, "tensorrt", {}, TENSORRT_TYPES)


def _onnx(notes: Notes, engine: str, options: dict[str, Any], types: Sequence[str] = tuple(ONNX_TYPES)) -> None:
    cuda.devices()
    from bench.gpu import onnx_models  # noqa: PLC0415  # wants onnx

    with _folder() as folder:
        for name in types:
            path = onnx_models.identity(folder, name, ONNX_TYPES[name])
            _exact(notes, str(path), engine, name, lambda x: x, options)
        _layer(notes, folder, engine, options, "")


def _layer(notes: Notes, folder: Path, engine: str, options: dict[str, Any], note: str) -> None:
    """A layer in FP32 and FP16 against numpy in double precision."""
    from bench.gpu import onnx_models  # noqa: PLC0415  # wants onnx

    for name in ("FP32", "FP16"):
        path = onnx_models.linear(folder, WIDTH, name)
        weights, bias = _weights(path)
        with _loaded(str(path), engine, options) as loaded:
            _against_numpy(notes, loaded, weights, bias, name, note)
            if options.get("graphs") != "none":
                _captured(notes, loaded, f"{note}{name}: ")


def _against_numpy(notes: Notes, loaded: Loaded, weights: Array, bias: Array, name: str, note: str) -> None:
    """y = relu(x W + b) in one type."""
    for rows in ROWS:
        x = np.random.default_rng(rows).standard_normal((rows, WIDTH)).astype(NUMPY_DTYPES[DataType[name]])
        (y,) = _run(loaded, [x])
        expected = np.maximum(x.astype("f8") @ weights + bias, 0)
        error = float(np.abs(y.astype("f8") - expected).max() / np.abs(expected).max())
        notes.figure(f"{note}{name}, {rows} rows: largest error", error, most=TOLERANCE[name])


def _captured(notes: Notes, loaded: Loaded, note: str) -> None:
    """What could not be captured runs plainly, and is as right: only here would it be noticed."""
    instance: Any = loaded.instances[0]
    if isinstance(instance, GpuInstance):
        wanted = len(loaded.measurements) * instance.depth
        notes.figure(f"{note}graphs, of {len(loaded.measurements)} sizes in each set", instance.captured, least=wanted)
    else:
        notes.check(f"{note}batches go through the GPU's data path as they are", good=False)


def _weights(path: Path) -> tuple[Array, Array]:
    import onnx  # noqa: PLC0415  # wanted here only
    from onnx import numpy_helper  # noqa: PLC0415  # see above

    first, second = (numpy_helper.to_array(tensor).astype("f8") for tensor in onnx.load(path).graph.initializer[:2])
    return first, second


def _exact(
    notes: Notes,
    path: str,
    engine: str,
    name: str,
    expected: Callable[[Any], Any],
    options: dict[str, Any] | None = None,
) -> None:
    """A model of rows of any length, in buckets, whose answers are known bit for bit."""
    dtype = NUMPY_DTYPES[DataType[name]]
    buckets = BucketsConfig(shapes={"x": [[length] for length in LENGTHS]})
    with _loaded(path, engine, options or {}, buckets=buckets) as loaded:
        wrong = []
        for length in LENGTHS:
            for rows in ROWS:
                x = np.random.default_rng(rows).integers(0, 2 if name == "BOOL" else 50, (rows, length)).astype(dtype)
                (y,) = _run(loaded, [x])
                if y.dtype != dtype or not np.array_equal(y, expected(x).astype(dtype)):
                    wrong.append(f"{rows} x {length}")
        notes.check(f"{name}: exact in the buckets {LENGTHS} with {ROWS} rows", not wrong, ", ".join(wrong))


def _torch_model(notes: Notes, name: str, inputs: dict[str, InputConfig], rows: int) -> None:
    """A model on the GPU against itself on the CPU in FP32, given what callers send."""
    import torch as library  # noqa: PLC0415  # named like the part

    from bench.gpu import models  # noqa: PLC0415  # wants torch

    with _loaded(f"{MODELS}:{name}", "torch", {}, inputs=inputs) as loaded:
        (source,) = loaded.spec.inputs
        x = np.random.default_rng(1).integers(0, 256, (rows, *source.shape[1:])).astype(NUMPY_DTYPES[source.data_type])
        (y,) = _run(loaded, [x])
        _captured(notes, loaded, f"{name}: ")
    module = getattr(models, name)().float().eval()
    given = library.from_numpy(
        x.astype("i8") if name == "bert" else (x / 255).astype("f4").transpose(0, 3, 1, 2).copy()
    )
    with library.inference_mode():
        expected = module(given).numpy()
    error = float(np.abs(y.astype("f4") - expected).max() / np.abs(expected).max())
    notes.figure(f"{name}, FP16, {rows} rows: largest error against FP32 on the CPU", error, most=5e-2)


def _run(loaded: Loaded, inputs: Sequence[Array]) -> Sequence[Array]:
    """A batch, padded as the scheduler would."""
    rows = len(inputs[0])
    padded = min((size for size in loaded.batch_sizes if size >= rows), default=rows)
    full = [np.concatenate([array, np.zeros((padded - rows, *array.shape[1:]), array.dtype)]) for array in inputs]
    return [output[:rows] for output in run_batch(loaded.instances[0], full, rows)]


@contextmanager
def _loaded(
    path: str,
    engine: str,
    options: dict[str, Any],
    *,
    inputs: dict[str, InputConfig] | None = None,
    buckets: BucketsConfig | None = None,
) -> Iterator[Loaded]:
    config = ModelConfig(
        path=path,
        engine=EngineConfig(name=engine, devices=[DEVICE], options=options),
        batching=BatchingConfig(max_batch_size=max(ROWS)),
        buckets=buckets or BucketsConfig(),
        inputs=inputs or {},
    )
    loaded = load(config)
    try:
        yield loaded
    finally:
        loaded.close()


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)
