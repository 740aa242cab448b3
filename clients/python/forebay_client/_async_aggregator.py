"""An aggregator for asyncio. Each batch is sent by a task of its own, so that no caller's end is another's."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from forebay_client import _errors
from forebay_client._aggregation import AggregationCore, Batch, Sample, separable
from forebay_client._core import Inputs
from forebay_client._exceptions import ForebayError
from forebay_client._results import Prediction

AsyncTicket = asyncio.Future[Prediction | None]
"""None: this request is to be sent alone."""


class AsyncAggregator:
    """Sends the requests of many tasks together. `AsyncClient.aggregator` makes it. As `Aggregator`."""

    def __init__(
        self,
        core: AggregationCore[AsyncTicket],
        send: Callable[[Inputs, float], Awaitable[Prediction]],
        deadline: float,
    ) -> None:
        self._core = core
        self._send = send
        self._deadline = deadline
        self._filled: dict[int, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def predict(self, inputs: Inputs) -> Prediction:
        """Runs one request, together with those of others. As `Aggregator.predict`."""
        ticket: AsyncTicket = asyncio.get_running_loop().create_future()
        now = time.monotonic()
        until = now + self._deadline
        batch, first = self._core.add(Sample(inputs), ticket, now=now)
        if first:
            self._filled[id(batch)] = asyncio.Event()
            task = asyncio.create_task(self._go(batch, until), name="forebay-aggregator")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if batch.full:
            self._filled[id(batch)].set()
        found = await ticket
        if found is None:
            return await self._send(inputs, max(until - time.monotonic(), 1e-3))
        return found

    async def _go(self, batch: Batch[AsyncTicket], until: float) -> None:
        try:
            await asyncio.wait_for(self._filled[id(batch)].wait(), max(batch.due - time.monotonic(), 0))
        except TimeoutError:
            self._core.close(batch)
        finally:
            del self._filled[id(batch)]
        try:
            parts = batch.split(await self._send(batch.merged(), max(until - time.monotonic(), 1e-3)))
        except ForebayError as error:
            alone = len(batch.tickets) > 1 and separable(error)
            for ticket in _waiting(batch):
                if alone:
                    ticket.set_result(None)
                else:
                    ticket.set_exception(_errors.again(error))
        except BaseException:
            for ticket in _waiting(batch):
                ticket.cancel()
            raise
        else:
            for ticket, part in zip(batch.tickets, parts, strict=True):
                if not ticket.done():
                    ticket.set_result(part)


def _waiting(batch: Batch[AsyncTicket]) -> list[AsyncTicket]:
    """The tickets whose callers were not cancelled."""
    return [ticket for ticket in batch.tickets if not ticket.done()]
