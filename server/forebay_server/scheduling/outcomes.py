"""What came of a batch, in the core's words.

`execution` says it of what an engine did. Of one that went well `completing` gives each request its result; of one that
did not `bisection` decides what happens to its requests.
"""

from forebay_server.errors import ForebayError


class Succeeded:
    """The engine answered. `outputs` is opaque to the core."""

    __slots__ = ("outputs",)

    def __init__(self, outputs: object) -> None:
        self.outputs = outputs


class Faulted:
    """Something went wrong that some row may have caused. `error` is for the culprit."""

    __slots__ = ("error",)

    def __init__(self, error: ForebayError) -> None:
        self.error = error


class Rejected:
    """The engine refuses some rows of the batch; None if it can't tell which. `message` is for their callers."""

    __slots__ = ("message", "rows")

    def __init__(self, message: str, rows: list[int] | None) -> None:
        self.message = message
        self.rows = rows


class NoMemory:
    """The batch was too large for the device."""

    __slots__ = ()


class Died:
    """The instance will never answer again, nor will any other on `device`, if that is named."""

    __slots__ = ("device",)

    def __init__(self, device: str = "") -> None:
        self.device = device


Outcome = Succeeded | Faulted | Rejected | NoMemory | Died
