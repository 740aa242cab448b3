"""Compiles and launches kernels with `cuda.bindings`: NVRTC makes machine code of their text, the driver runs it.

NVRTC comes with the CUDA toolkit and as the package nvidia-cuda-nvrtc, which torch brings. It asks for no driver, so
compiling is tested without a GPU. The packages are imported when a model needs them.
"""

import ctypes
import threading
from collections.abc import Sequence
from typing import Any, Final

from forebay_server.engines.base import OutOfMemory
from forebay_server.engines.gpu import faults
from forebay_server.engines.gpu.device import Device, DeviceError, NoDevice, Stream

THREADS: Final = 256  # of a block
MOST_BLOCKS: Final = 65_535  # if there are more elements than their threads, each takes several

Argument = type[ctypes.c_void_p] | type[ctypes.c_uint]

_lock = threading.Lock()
_kernels: "dict[tuple[object, ...], NvrtcKernel]" = {}


class NvrtcKernel:
    """A kernel that the driver has loaded; it stays loaded."""

    def __init__(self, driver: Any, function: Any, arguments: tuple[Argument, ...]) -> None:
        self._driver = driver
        self._function = function
        self._types = arguments

    def launch(self, arguments: tuple[int, ...], count: int, stream: Stream) -> None:
        """Enqueues it with at least one thread for each of `count` elements, or as many as there may be.

        Raises:
            OutOfMemory: The device has no memory for the launch itself.
            DeviceError: The driver refuses it.
        """
        blocks = min(MOST_BLOCKS, -(-count // THREADS))
        answer = self._driver.cuLaunchKernel(
            self._function, blocks, 1, 1, THREADS, 1, 1, 0, stream.handle, (arguments, self._types), 0
        )
        if answer[0]:
            if faults.kind_of(int(answer[0])) is faults.Kind.MEMORY:  # the driver's codes are the runtime's
                raise OutOfMemory(f"no memory to launch a kernel ({answer[0].name})")
            _check(answer)


class NvrtcCompiler:
    """Makes kernels for one device, each once for the process.

    Args:
        device: Where they run.
        text: The source.
        name: The function's, which is `extern "C"`.
        arguments: The types of what it takes.
    """

    def __init__(self, device: Device, text: str, name: str, arguments: tuple[Argument, ...]) -> None:
        self._device = device
        self._text = text
        self._name = name
        self._arguments = arguments

    def __call__(self, defines: tuple[str, ...]) -> NvrtcKernel:
        """Compiles and loads one.

        Raises:
            NoDevice: There is no NVRTC, or it or the driver refuses.
        """
        key = (self._device.index, self._text, self._name, defines)
        with _lock:
            if key not in _kernels:
                self._device.use()
                try:
                    code = machine_code(self._text, defines, self._device.compute_capability)
                    from cuda.bindings import driver  # noqa: PLC0415  # heavy: only where a GPU prepares inputs

                    module = _check(driver.cuModuleLoadData(code))
                    function = _check(driver.cuModuleGetFunction(module, self._name.encode()))
                except DeviceError as error:
                    raise NoDevice(f"{self._device.label} does not take the kernel {self._name!r}: {error}") from error
                _kernels[key] = NvrtcKernel(driver, function, self._arguments)
            return _kernels[key]


def machine_code(text: str, defines: Sequence[str], compute_capability: tuple[int, int]) -> bytes:
    """The code of a source for one kind of device.

    Raises:
        NoDevice: NVRTC is not installed, or refuses; the text says what it said.
    """
    try:
        from cuda.bindings import nvrtc  # noqa: PLC0415  # heavy: only where a GPU prepares inputs

        created = nvrtc.nvrtcCreateProgram(text.encode(), b"kernel.cu", 0, [], [])
    except (ImportError, RuntimeError, OSError) as error:  # the bindings are missing, or the library they look for
        raise NoDevice(f"NVRTC can't be loaded (the package nvidia-cuda-nvrtc has it): {error}") from error
    program = _check(created)
    major, minor = compute_capability
    options = [f"--gpu-architecture=sm_{major}{minor}", *(f"-D{define}" for define in defines)]
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if status:
            log = bytearray(_check(nvrtc.nvrtcGetProgramLogSize(program)))
            _check(nvrtc.nvrtcGetProgramLog(program, log))
            said = bytes(log).rstrip(b"\0").decode(errors="replace").strip()
            raise NoDevice(f"NVRTC can't compile the kernel ({status.name}): {said}")
        code = bytearray(_check(nvrtc.nvrtcGetCUBINSize(program)))
        _check(nvrtc.nvrtcGetCUBIN(program, code))
        return bytes(code)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _check(answer: tuple[Any, ...]) -> Any:
    """The value of an answer whose first element says whether it worked."""
    status, *values = answer
    if status:
        raise DeviceError(f"{type(status).__name__}: {status.name}")
    return values[0] if values else None
