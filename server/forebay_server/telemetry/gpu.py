"""Figures of the GPUs, as NVIDIA's management library tells them, if it and a driver are there.

In an exporter's thread: a question may take milliseconds. The library is `pynvml` of the package nvidia-ml-py.
"""

from typing import Any

import structlog

from forebay_server.telemetry import names
from forebay_server.telemetry.samples import Sample

_log = structlog.get_logger(__name__)


class Gpus:
    """The GPUs of the machine; none without the library or a driver. One thread at a time."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: dict[int, Any] = {}

    def start(self) -> None:
        """Finds them."""
        try:
            import pynvml  # noqa: PLC0415  # only where there are GPUs
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            self._nvml = pynvml
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            _log.info("no_gpu_figures", because=str(error))
            return
        for index in range(count):
            try:
                self._handles[index] = pynvml.nvmlDeviceGetHandleByIndex(index)
            except pynvml.NVMLError as error:  # one that is not this container's, or is lost
                _log.info("no_gpu_figures", gpu=index, because=str(error))

    def samples(self) -> list[Sample]:
        """Memory and utilisation of each; what one does not tell is left out."""
        found: list[Sample] = []
        for index, handle in self._handles.items():
            labels = (str(index),)
            try:
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                found.append((names.GPU_USED, labels, memory.used))
                found.append((names.GPU_TOTAL, labels, memory.total))
                busy = self._nvml.nvmlDeviceGetUtilizationRates(handle)
                found.append((names.GPU_BUSY, labels, busy.gpu / 100))
            except self._nvml.NVMLError:  # parts of a GPU (MIG) have no utilisation
                continue
        return found

    def close(self) -> None:
        """Lets go of the library. Harmless without `start`."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None
            self._handles = {}
