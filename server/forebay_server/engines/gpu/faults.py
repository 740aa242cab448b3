"""What an error code of the CUDA runtime means: too little memory, a lost device, a failed capture, or a failed call.

A *sticky* error has left the process's context on the device in a state in which every further call answers with the
same error, so that only a new process can use the device again. The runtime's reference says so of each code in
`STICKY` ("To continue using CUDA, the process must be terminated and relaunched"), or the hardware is at fault. Other
codes may be sticky on some driver: whoever meets one asks the device once more (`cuda.CudaDevice`).

Numbers and names of `cudaError_t`: the enumeration itself needs the package, and this is read without it.
"""

from enum import Enum
from typing import Final


class Kind(Enum):
    """What to do about an error."""

    MEMORY = "memory"
    """A smaller batch may pass."""
    STICKY = "sticky"
    """The device is lost for this process."""
    CAPTURE = "capture"
    """The stream was being captured, or what it was given can't be."""
    CALL = "call"
    """The call alone failed."""


SUCCESS: Final = 0
NOT_READY: Final = 600

MEMORY: Final = {2: "cudaErrorMemoryAllocation"}

STICKY: Final = {
    214: "cudaErrorECCUncorrectable",
    220: "cudaErrorNvlinkUncorrectable",
    226: "cudaErrorContained",
    700: "cudaErrorIllegalAddress",
    702: "cudaErrorLaunchTimeout",
    709: "cudaErrorContextIsDestroyed",
    710: "cudaErrorAssert",
    714: "cudaErrorHardwareStackError",
    715: "cudaErrorIllegalInstruction",
    716: "cudaErrorMisalignedAddress",
    717: "cudaErrorInvalidAddressSpace",
    718: "cudaErrorInvalidPc",
    719: "cudaErrorLaunchFailure",
    721: "cudaErrorTensorMemoryLeak",
    810: "cudaErrorMpsClientTerminated",
    911: "cudaErrorExternalDevice",
    999: "cudaErrorUnknown",
}

CAPTURE: Final = {
    900: "cudaErrorStreamCaptureUnsupported",
    901: "cudaErrorStreamCaptureInvalidated",
    902: "cudaErrorStreamCaptureMerge",
    903: "cudaErrorStreamCaptureUnmatched",
    904: "cudaErrorStreamCaptureUnjoined",
    905: "cudaErrorStreamCaptureIsolation",
    906: "cudaErrorStreamCaptureImplicit",
    907: "cudaErrorCapturedEvent",
    908: "cudaErrorStreamCaptureWrongThread",
}


def kind_of(code: int) -> Kind:
    """What an error code other than `SUCCESS` and `NOT_READY` means."""
    if code in MEMORY:
        return Kind.MEMORY
    if code in STICKY:
        return Kind.STICKY
    if code in CAPTURE:
        return Kind.CAPTURE
    return Kind.CALL
