"""A launch as it is on a GPU but for the GPU: NVRTC compiles, the real bindings hand over code and arguments.

The driver is a stand-in (`driver.c`), which runs the kernel's text on the processor with the arguments that it gets.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from forebay_server.config.tree import InputConfig
from forebay_server.engines.gpu.preparation import defines, source_text
from forebay_server.engines.preparation import plan
from forebay_server.tensors import FREE, DataType, ModelSpec, TensorSpec

pytest.importorskip("nvidia.cu13", reason="nvidia-cuda-nvrtc is not installed")

HERE = Path(__file__).parent
IMAGES = InputConfig(data_type="UINT8", layout="channels_last", mean=[1.0, 2.0, 3.0])
IDS = InputConfig(data_type="INT16")
MODELS = {"images": ((3, 31, 17), DataType.FP16, IMAGES), "ids": ((512,), DataType.INT64, IDS)}


def preparation(name):
    """What is prepared."""
    shape, data_type, config = MODELS[name]
    tensor = TensorSpec(name="x", data_type=data_type, shape=(FREE, *shape))
    _, (made,) = plan(ModelSpec(inputs=(tensor,), outputs=(), batched=True), {"x": config})
    return made


@pytest.mark.parametrize("name", MODELS)
def test_a_launch(name, tmp_path):
    """Code, grid, stream and arguments arrive; what is computed has the bits of the CPU's preparation."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler here")
    (tmp_path / "prepare.cu").write_text(source_text())
    macros = [f"-D{each}" for each in defines(preparation(name))]
    options = ["-std=c99", "-O1", "-shared", "-fPIC", "-I", str(tmp_path), *macros, str(HERE / "driver.c")]
    subprocess.run([compiler, *options, "-o", str(tmp_path / "libcuda.so.1")], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(HERE.parents[3])}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.server.engines.gpu.launching", name],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    elements = 5 * (3 * 31 * 17 if name == "images" else 512)
    assert ended.stdout.splitlines() == [
        f"on 77 in {-(-elements // 256)} 1 1 256 1 1 0",
        "the same bits",
        "cuda:0 does not take the kernel 'prepared': CUresult: CUDA_ERROR_NOT_FOUND",
        "CUresult: CUDA_ERROR_INVALID_VALUE",
        "no memory to launch a kernel (CUDA_ERROR_OUT_OF_MEMORY)",
    ]
