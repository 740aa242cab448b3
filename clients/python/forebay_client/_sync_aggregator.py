"""An aggregator for threads, without one of its own: the caller who comes first waits for the others, and sends."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from forebay_client import _errors
from forebay_client._aggregation import AggregationCore, Batch, Sample, separable
from forebay_client._core import Inputs
from forebay_client._exceptions import Cancelled, ForebayError
from forebay_client._results import Prediction

Ticket = Future[Prediction | None]
"""None: this request is to be sent alone."""


class Aggregator:
    """Sends the requests of many threads together. `Client.aggregator` makes it; any number of threads may use it."""

    def __init__(
        self, core: AggregationCore[Ticket], send: Callable[[Inputs, float], Prediction], deadline: float
    ) -> None:
        self._core = core
        self._send = send
        self._deadline = deadline
        self._filled = threading.Condition()

    def predict(self, inputs: Inputs) -> Prediction:
        """Runs one request, together with those of others. As `Client.predict`.

        A request that others can't be run with is sent again alone, so that nobody has another's error. The deadline
        counts from the call.

        Raises:
            ForebayError: There is no result.
            TypeError: An input can't be sent.
            ValueError: The inputs have no rows.
        """
        sample, ticket = Sample(inputs), Ticket()
        now = time.monotonic()
        until = now + self._deadline
        with self._filled:
            batch, first = self._core.add(sample, ticket, now=now)
            if batch.full:
                self._filled.notify_all()
            while first and not batch.full:
                left = batch.due - time.monotonic()
                if left <= 0:
                    self._core.close(batch)
                else:
                    self._filled.wait(left)
        if first:
            self._go(batch, until)
        found = ticket.result()
        if found is None:
            return self._send(inputs, max(until - time.monotonic(), 1e-3))
        return found

    def _go(self, batch: Batch[Ticket], until: float) -> None:
        tickets = batch.tickets
        try:
            parts = batch.split(self._send(batch.merged(), max(until - time.monotonic(), 1e-3)))
        except ForebayError as error:
            for ticket in tickets:
                if len(tickets) > 1 and separable(error):
                    ticket.set_result(None)
                else:
                    ticket.set_exception(_errors.again(error))
        except BaseException as error:
            for ticket in tickets:
                ticket.set_exception(Cancelled(f"the thread that was to send this was stopped by {error!r}"))
            raise
        else:
            for ticket, part in zip(tickets, parts, strict=True):
                ticket.set_result(part)
