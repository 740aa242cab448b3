"""`prepare.cu` without a GPU: its text compiled as C, its threads one after the other, its addresses the fake device's.

So the tests run the kernel's own text. What is not tested here is that NVRTC compiles it (`test_nvrtc`) and that a real
device runs it (`make gpu-check`).
"""

import ctypes
import shutil
import subprocess

import pytest

from forebay_server.engines.gpu.preparation import source_text

HARNESS = """
typedef struct { unsigned int x; } dim;
static dim gridDim, blockDim, blockIdx, threadIdx;
#define __global__ static
#include "prepare.cu"

void run(const SOURCE *source, TARGET *target, const TARGET *table, unsigned int count, unsigned int channels,
         unsigned int inner, unsigned int rows, unsigned int moved, unsigned int blocks, unsigned int threads)
{
    gridDim.x = blocks;
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)
            prepare(source, target, table, count, channels, inner, rows, moved);
}
"""


class HostKernel:
    """The kernel for one pair of types, launched with few threads, so that each takes several elements."""

    def __init__(self, run, device=None):
        self._run = run
        self._device = device
        self.launches = 0

    def __call__(self, arguments, blocks=3, threads=4):
        self._run(*map(ctypes.c_void_p, arguments[:3]), *arguments[3:], blocks, threads)

    def launch(self, arguments, count, stream):
        self.launches += 1
        stream.compute(1e-4, lambda: self(arguments), reads=[(arguments[0], 1)], writes=[(arguments[1], 1)])


class HostCompiler:
    """Makes them with the C compiler of the machine."""

    def __init__(self, folder):
        self._folder = folder
        self.kernels = {}

    def __call__(self, defines):
        if defines not in self.kernels:
            compiler = shutil.which("cc")
            if compiler is None:
                pytest.skip("there is no C compiler here")
            (self._folder / "prepare.cu").write_text(source_text())
            (self._folder / "harness.c").write_text(HARNESS)
            library = self._folder / f"kernel{len(self.kernels)}.so"
            options = ["-std=c99", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", *(f"-D{each}" for each in defines)]
            subprocess.run([compiler, *options, str(self._folder / "harness.c"), "-o", str(library)], check=True)
            self.kernels[defines] = HostKernel(ctypes.CDLL(str(library)).run)
        return self.kernels[defines]
