"""How much memory is free on which GPU, for whoever has to choose one.

To ask the runtime takes a context on the GPU, which is some hundred MiB of its memory and stays as long as the process.
So a process of its own asks: `python -m forebay_server.engines.gpu.memory` prints a list of bytes as JSON.
"""

import json
import subprocess
import sys
from typing import Final

from forebay_server.engines.gpu import cuda
from forebay_server.engines.gpu.device import NoDevice

PATIENCE: Final = 120.0  # seconds; the driver may have to initialise many GPUs


def free_memory() -> list[int]:
    """Free bytes of each GPU that this process sees, by index.

    Raises:
        NoDevice: There is none, or they can't be asked.
    """
    cuda.devices()  # says in one sentence why there are none
    command = [sys.executable, "-m", __spec__.name]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)  # noqa: S603  # our own module
        found = json.loads(finished.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise NoDevice(f"the free memory of the GPUs can't be asked for: {error}; name one, such as cuda:0") from error
    return [int(free) for free in found]


def _asked() -> list[int]:
    free = []
    for index in range(cuda.devices()):
        try:
            device = cuda.open_device(index)
        except NoDevice:
            free.append(0)  # somebody has it for himself
            continue
        free.append(device.free_memory()[0])
        device.close()
    return free


if __name__ == "__main__":
    print(json.dumps(_asked()))  # noqa: T201  # its answer
