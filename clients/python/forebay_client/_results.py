"""What a call gives back: predictions with their timings, and the health of a service. Plain values."""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from forebay_client._tensors import Array

DispatchReason = Literal["unspecified", "full", "idle", "delay", "deadline", "drain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the server spent the time of one request. Times are in seconds."""

    queue: float
    """From the arrival of the whole message to the start of its batch."""
    collate: float
    """To put the batch together."""
    compute: float
    """In the engine."""
    encode: float
    """From the end of the engine's work to the response."""
    batch_rows: int
    """Rows in the batch, all requests together, without padding."""
    batch_requests: int
    """Requests in the batch."""
    padded_rows: int
    """Rows added to reach a size that the engine was prepared for."""
    dispatch_reason: DispatchReason
    """Why the batch started."""


class Prediction(Mapping[str, Array]):
    """The outputs of one request by name, in the order in which they were asked for.

    The arrays are read-only views on the response's bytes; copy one to change it. Those of type BYTES have dtype object
    and hold `bytes`.

    Attributes:
        model: The model's name.
        version: The version that ran.
        request_id: The caller's own id.
        timings: Where the time went, if it was asked for, else None.
        index: Which item of a stream this is the result of, counted from 0; None for a unary call.
    """

    __slots__ = ("_outputs", "index", "model", "request_id", "timings", "version")

    def __init__(
        self,
        outputs: Mapping[str, Array],
        *,
        model: str,
        version: int,
        request_id: str = "",
        timings: Timings | None = None,
        index: int | None = None,
    ) -> None:
        self._outputs = outputs
        self.model = model
        self.version = version
        self.request_id = request_id
        self.timings = timings
        self.index = index

    def __getitem__(self, name: str) -> Array:
        return self._outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        outputs = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in self._outputs.items())
        return f"<Prediction of {self.model} version {self.version}: {outputs}>"

    @property
    def array(self) -> Array:
        """The only output.

        Raises:
            ValueError: There are several, or none.
        """
        if len(self._outputs) != 1:
            raise ValueError(f"{self.model} gave {len(self._outputs)} outputs: name one of {', '.join(self._outputs)}")
        return next(iter(self._outputs.values()))


class Health(enum.StrEnum):
    """The health of a server, a service or a model."""

    SERVING = "SERVING"
    """It answers."""
    NOT_SERVING = "NOT_SERVING"
    """It starts, drains, or has failed."""
    UNKNOWN = "UNKNOWN"
    """The server does not say."""
    SERVICE_UNKNOWN = "SERVICE_UNKNOWN"
    """There is no such service or model."""
