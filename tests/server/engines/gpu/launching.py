"""`python -m tests.server.engines.gpu.launching NAME`: what `test_launch` does in a process of its own.

A process has one driver, so the stand-in needs one for itself.
"""

import ctypes
import sys
from types import SimpleNamespace

import numpy as np

from forebay_server.engines.base import OutOfMemory
from forebay_server.engines.gpu.device import DeviceError, NoDevice
from forebay_server.engines.gpu.nvrtc import NvrtcCompiler
from forebay_server.engines.gpu.preparation import ARGUMENTS, defines, geometry, source_text
from forebay_server.tensors import NUMPY_DTYPES
from tests.server.engines.gpu.test_launch import preparation

ROWS = 5
DEVICE = SimpleNamespace(index=0, label="cuda:0", compute_capability=(9, 0), use=lambda: None)
STREAM = SimpleNamespace(handle=77)


def main():
    made = preparation(sys.argv[1])
    shape = (ROWS, *made.source.shape[1:])
    sent = NUMPY_DTYPES[made.source.data_type]
    given = np.random.default_rng(1).integers(np.iinfo(sent).min, np.iinfo(sent).max, shape, sent, endpoint=True)
    expected = np.empty(made.target_shape(shape), NUMPY_DTYPES[made.target.data_type])
    made.apply(given, expected)
    found = np.zeros_like(expected)
    count, *rest = geometry(made, shape)
    table = 0 if made.table is None else made.table.ctypes.data
    arguments = (given.ctypes.data, found.ctypes.data, table, count, *rest)
    kernel = NvrtcCompiler(DEVICE, source_text(), "prepare", ARGUMENTS)(defines(made))
    kernel.launch(arguments, count, STREAM)
    driver = ctypes.CDLL("libcuda.so.1")
    grid = (ctypes.c_uint * 7).in_dll(driver, "launched_grid")
    said = [
        f"on {ctypes.c_size_t.in_dll(driver, 'launched_on').value} in {' '.join(map(str, grid))}",
        "the same bits" if found.tobytes() == expected.tobytes() else "other bits",
    ]
    try:
        NvrtcCompiler(DEVICE, source_text(), "prepared", ARGUMENTS)(defines(made))
    except NoDevice as error:
        said.append(str(error))
    kernel._function = 3
    try:
        kernel.launch(arguments, count, STREAM)
    except DeviceError as error:
        said.append(str(error))
    try:
        kernel.launch(arguments, 0, STREAM)
    except OutOfMemory as error:
        said.append(str(error))
    sys.stdout.write("\n".join(said))


if __name__ == "__main__":
    main()
