"""Cores of streams, and what the tests of these share."""

import numpy as np

from forebay.v1 import inference_pb2
from forebay_client._core import RequestBuilder
from forebay_client._stream import StreamCore

REQUEST = RequestBuilder("m").build({"x": np.zeros(1, np.float32)})


class Clock:
    """Moved by the tests alone."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def made(outage, clock=lambda: 1000.0, until=2000.0, window=4, window_bytes=1 << 20, items_per_message=2):
    """A stream whose first call has begun."""
    core = StreamCore(
        window=window,
        window_bytes=window_bytes,
        items_per_message=items_per_message,
        ordered=True,
        deadline=1.0,
        until=until,
        outage=outage,
        clock=clock,
        chance=lambda: 0.0,
    )
    core.begin()
    return core


def results(*ids):
    return inference_pb2.StreamPredictResponse(
        results=[inference_pb2.StreamResult(id=index, response=inference_pb2.PredictResponse()) for index in ids]
    )


def delivered(core):
    found = []
    while (outcome := core.deliver()) is not None:
        found.append((type(outcome).__name__, outcome.index))
    return found


def sent(core, call):
    """The items of everything that waits to be sent on a call."""
    found = []
    while (message := core.next_message(call)) is not None:
        found.extend(item.id for item in message.items)
    return found
