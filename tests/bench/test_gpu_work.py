"""`work.cu` without a GPU: its text compiled as C, its threads one after the other."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bench.gpu import engine

HARNESS = """
typedef struct { unsigned int x; } dim;
static dim gridDim, blockDim, blockIdx, threadIdx;
static unsigned long long time;
static unsigned long long now(void) { return time += 10; }
#define __global__ static
#include "work.cu"

unsigned long long run(const float *x, float *y, unsigned int *never, unsigned int count, unsigned int width,
                       unsigned int nanoseconds, unsigned int blocks, unsigned int threads)
{
    gridDim.x = blocks;
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)
            work(x, y, never, count, width, nanoseconds);
    return time;
}
"""


@pytest.mark.parametrize(("blocks", "threads"), [(1, 1), (3, 4), (40, 8)])
def test_what_it_computes(tmp_path, blocks, threads):
    """Twice the input, whatever the grid; and only the threads of one block wait for the time to pass."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler here")
    (tmp_path / "harness.c").write_text(HARNESS)
    library = tmp_path / "work.so"
    defines = [f"-DILLEGAL={engine.ILLEGAL}f", f"-DENDLESS={engine.ENDLESS}f"]
    options = ["-std=c99", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-I", str(Path(engine.__file__).parent)]
    subprocess.run([compiler, *options, *defines, str(tmp_path / "harness.c"), "-o", str(library)], check=True)
    run = ctypes.CDLL(str(library)).run
    run.restype = ctypes.c_ulonglong
    x = np.arange(100, dtype=np.float32)
    y, never = np.zeros_like(x), np.zeros(1, np.uint32)
    time = run(*(ctypes.c_void_p(array.ctypes.data) for array in (x, y, never)), x.size, 10, 1000, blocks, threads)

    assert y.tolist() == (2 * x).tolist()
    others = (blocks - 1) * threads
    assert time == threads * 1010 + others * 10
