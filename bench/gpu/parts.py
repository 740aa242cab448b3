"""The parts of the GPU check: what each is called, and where its `run(notes)` is. Standard library only."""

import dataclasses
from typing import Final


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part. `needs` are the packages without which it is not executed, as they are imported."""

    title: str
    module: str
    needs: tuple[str, ...]
    function: str = "run"


_ENGINES: Final = ("numpy", "ml_dtypes", "msgspec", "structlog", "cuda.bindings")
_SERVER: Final = ("apsw", "click", "google.rpc", "grpc", "grpc_health", "grpc_reflection", "rich")

PARTS: Final[dict[str, Part]] = {
    "device": Part(
        title="the port on the device: memory, streams, events, graphs",
        module="bench.gpu.part_device",
        needs=_ENGINES,
    ),
    "preparation": Part(
        title="pixels and token ids prepared on the device, against numpy, in each type",
        module="bench.gpu.part_preparation",
        needs=_ENGINES,
    ),
    "overlap": Part(
        title="upload, compute and download of neighbouring batches overlap, by event times",
        module="bench.gpu.part_path",
        function="overlap",
        needs=_ENGINES,
    ),
    "graphs": Part(
        title="CUDA graphs against plain launches",
        module="bench.gpu.part_path",
        function="graphs",
        needs=_ENGINES,
    ),
    "leaks": Part(
        title="memory over 100,000 batches",
        module="bench.gpu.part_path",
        function="leaks",
        needs=_ENGINES,
    ),
    "faults": Part(
        title="out of memory, a lost device and a hang, for real, in processes of their own",
        module="bench.gpu.part_faults",
        needs=(*_ENGINES, *_SERVER),
    ),
    "torch": Part(
        title="the torch engine against its values on the CPU, in each type and bucket",
        module="bench.gpu.part_engines",
        function="torch",
        needs=(*_ENGINES, "torch"),
    ),
    "torch-package": Part(
        title="the torch engine with a package that is compiled on this machine",
        module="bench.gpu.part_engines",
        function="torch_package",
        needs=(*_ENGINES, "torch", "triton"),
    ),
    "onnxruntime": Part(
        title="ONNX Runtime on CUDA against its values on the CPU, in each type and bucket",
        module="bench.gpu.part_engines",
        function="onnxruntime",
        needs=(*_ENGINES, "onnx", "onnxruntime"),
    ),
    "onnxruntime-tensorrt": Part(
        title="ONNX Runtime with its TensorRT provider",
        module="bench.gpu.part_engines",
        function="onnxruntime_tensorrt",
        needs=(*_ENGINES, "onnx", "onnxruntime"),
    ),
    "tensorrt": Part(
        title="the TensorRT engine: build, load and run, in each type and bucket",
        module="bench.gpu.part_engines",
        function="tensorrt",
        needs=(*_ENGINES, "onnx", "tensorrt_bindings"),
    ),
    "scheduler": Part(
        title="what the scheduler costs a batch",
        module="bench.gpu.part_scheduler",
        needs=_ENGINES,
    ),
    "bert": Part(
        title="BERT-base-shaped model, FP16, small messages: in-process and served",
        module="bench.gpu.part_throughput",
        function="bert",
        needs=(*_ENGINES, *_SERVER, "torch", "forebay_native"),
    ),
    "resnet": Part(
        title="ResNet-50-shaped model, FP16, UINT8 images: in-process and served",
        module="bench.gpu.part_throughput",
        function="resnet",
        needs=(*_ENGINES, *_SERVER, "torch", "forebay_native"),
    ),
}
