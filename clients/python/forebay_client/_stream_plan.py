"""What may be asked of a stream, and what follows from it: requests, and the `StreamCore` that decides."""

from collections.abc import Iterable, Mapping
from typing import Final, TypedDict

from forebay_client._core import DEADLINE, ParameterValue, Priority, RequestBuilder, check_deadline
from forebay_client._steps import Chance, Clock
from forebay_client._stream import StreamCore
from forebay_client._tracing import StreamSpan

WINDOW: Final = 256  # items; the server's own default
WINDOW_BYTES: Final = 64 << 20  # a hundred images of 3 x 224 x 224 FP32, four messages of the largest size
ITEMS_PER_MESSAGE: Final = 32
STREAM_DEADLINE: Final = 3600.0  # seconds; the longest that a server allows by default
STREAM_OUTAGE: Final = 10.0  # seconds; connecting again takes at most 5
MAX_ITEMS_PER_MESSAGE: Final = 1024  # the contract's limit


class StreamOptions(TypedDict, total=False):
    """The options of a stream, beside `failures`."""

    window: int
    """The most items taken from the source whose outcome was not given out yet; 256 by default."""
    window_bytes: int
    """With as many bytes of inputs among these items no more are taken, so that one item at most goes beyond it; 64 MiB
    by default."""
    items_per_message: int
    """The most items in a message; 32 by default. A message has at most 1 MiB of inputs unless one item alone has more.
    The server answers them one by one all the same."""
    ordered: bool
    """Whether results come in the order of the items, as by default; otherwise as they complete, with `index` to tell
    them apart."""
    outage: float
    """Seconds at a stretch for which no server need answer, 10 by default: until then the stream connects again and
    sends what has no answer once more, each item with its whole deadline. 0: it does not."""
    version: str | int
    """A number or a label; empty, as by default: the model's default."""
    outputs: Iterable[str] | None
    """The outputs wanted; None, as by default: all."""
    deadline: float
    """Seconds for each item, from its arrival at the server; 30 by default."""
    stream_deadline: float
    """Seconds for the stream as a whole; an hour by default."""
    priority: Priority
    """The weight among requests of the same tenant; `normal` by default."""
    parameters: Mapping[str, ParameterValue] | None
    """Values for engines that take them."""
    timings: bool
    """Whether predictions are to tell where the time went."""


class StreamPlan:
    """What `stream` was asked for: the builder of requests, and the arguments of a `StreamCore`.

    Raises:
        ValueError: An option is out of range.
        TypeError: There is no such option.
    """

    __slots__ = ("_options", "builder", "deadline", "stream_deadline")

    def __init__(
        self,
        model: str,
        *,
        window: int = WINDOW,
        window_bytes: int = WINDOW_BYTES,
        items_per_message: int = ITEMS_PER_MESSAGE,
        ordered: bool = True,
        outage: float = STREAM_OUTAGE,
        version: str | int = "",
        outputs: Iterable[str] | None = None,
        deadline: float = DEADLINE,
        stream_deadline: float = STREAM_DEADLINE,
        priority: Priority = "normal",
        parameters: Mapping[str, ParameterValue] | None = None,
        timings: bool = False,
    ) -> None:
        if window < 1:
            raise ValueError(f"the window must hold at least one item, not {window}")
        if window_bytes < 1:
            raise ValueError(f"the window must hold at least one byte, not {window_bytes}")
        if not 1 <= items_per_message <= MAX_ITEMS_PER_MESSAGE:
            raise ValueError(f"a message holds 1 to {MAX_ITEMS_PER_MESSAGE} items, not {items_per_message}")
        if not 0 <= outage < float("inf"):
            raise ValueError(f"an outage is borne for a number of seconds from 0 on, not {outage}")
        self.deadline = check_deadline(deadline)
        self.stream_deadline = check_deadline(stream_deadline)
        self.builder = RequestBuilder(
            model, version=version, outputs=outputs, priority=priority, parameters=parameters, timings=timings
        )
        self._options = (window, window_bytes, items_per_message, ordered, outage)

    def core(self, *, clock: Clock, chance: Chance, span: StreamSpan | None = None) -> StreamCore:
        """The state of the stream, whose deadline counts from now on."""
        window, window_bytes, items_per_message, ordered, outage = self._options
        return StreamCore(
            window=window,
            window_bytes=window_bytes,
            items_per_message=items_per_message,
            ordered=ordered,
            deadline=self.deadline,
            until=clock() + self.stream_deadline,
            outage=outage,
            clock=clock,
            chance=chance,
            span=span,
        )
