"""The first peer: an idiomatic `grpc.aio` server that batches in its event loop.

A handler parses the row, hands it to the batcher and awaits a future. The batcher, one task, takes what is there up to
the largest batch and runs it: inline if a full batch takes less than a millisecond (a hand-off to a thread costs more
than that gains), else in a thread of its own while the loop goes on collecting.
`python -m bench.peers.grpc_aio MODEL.onnx --port PORT`; `bench.run` starts it.
"""

import asyncio
import contextlib
import functools
import signal
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from bench.peers.common import CHANNEL_OPTIONS, BadRequestError, Floats, Model, options, say_batch_sizes
from forebay.v1 import inference_pb2, inference_service_pb2_grpc

from google.rpc import code_pb2, status_pb2  # isort: skip

INLINE_BELOW = 1e-3  # seconds

Response = inference_pb2.PredictResponse
Waiting = tuple[Floats, "asyncio.Future[Response]"]
Context = grpc.aio.ServicerContext[Any, Any]


class Batcher:
    """Runs rows in batches. All methods belong to the event loop."""

    def __init__(self, model: Model, *, inline: bool) -> None:
        self._model = model
        self._inline = inline
        self._waiting: deque[Waiting] = deque()
        self._arrived = asyncio.Event()
        self._executor = ThreadPoolExecutor(1)
        self._loop = asyncio.get_running_loop()

    def submit(self, row: Floats) -> "asyncio.Future[Response]":
        """The future answer to a row."""
        future: asyncio.Future[Response] = self._loop.create_future()
        self._waiting.append((row, future))
        self._arrived.set()
        return future

    async def run(self) -> None:
        """Batches until it is cancelled."""
        waiting, most = self._waiting, self._model.max_batch
        while True:
            if not waiting:
                self._arrived.clear()
                await self._arrived.wait()
            # Everything that this turn of the loop has read gets a chance to be in the batch, and an inline batch that
            # has held the loop lets it read and write before the next one.
            await asyncio.sleep(0)
            taken = [waiting.popleft() for _ in range(min(most, len(waiting)))]
            batch = [entry for entry in taken if not entry[1].done()]  # callers may have gone
            if batch:
                await self._run_batch(batch)

    async def _run_batch(self, batch: list[Waiting]) -> None:
        rows = [row for row, _ in batch]
        try:
            if self._inline:
                answers = self._model.run(rows)
            else:
                answers = await self._loop.run_in_executor(self._executor, self._model.run, rows)
        except Exception as error:  # noqa: BLE001  # whatever an engine raises, its callers must hear of it
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)


class Inference(inference_service_pb2_grpc.InferenceServiceServicer):
    """The service."""

    def __init__(self, model: Model, batcher: Batcher) -> None:
        self._model = model
        self._batcher = batcher

    async def Predict(self, request: inference_pb2.PredictRequest, context: Context) -> Response:  # noqa: N802  # the stub's name
        """Answers one request."""
        try:
            row = self._model.row(request)
        except BadRequestError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return await self._batcher.submit(row)

    async def StreamPredict(  # noqa: N802  # the stub's name
        self, request_iterator: AsyncIterator[inference_pb2.StreamPredictRequest], context: Context
    ) -> AsyncIterator[inference_pb2.StreamPredictResponse]:
        """Answers items as they complete, several in a message if several are ready."""
        del context
        done: asyncio.Queue[inference_pb2.StreamResult | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read(request_iterator, done))
        try:
            open_items = True
            while open_items:
                results = [await done.get()]
                while not done.empty():
                    results.append(done.get_nowait())
                open_items = None not in results
                ready = [result for result in results if result is not None]
                if ready:
                    yield inference_pb2.StreamPredictResponse(results=ready)
            await reader
        finally:
            reader.cancel()

    async def _read(
        self,
        messages: AsyncIterator[inference_pb2.StreamPredictRequest],
        done: "asyncio.Queue[inference_pb2.StreamResult | None]",
    ) -> None:
        pending: set[asyncio.Future[Response]] = set()

        def finish(item: int, future: "asyncio.Future[Response]") -> None:
            pending.discard(future)
            if not future.cancelled():
                done.put_nowait(_result(item, future))

        async for message in messages:
            for item in message.items:
                try:
                    future = self._batcher.submit(self._model.row(item.request))
                except BadRequestError as error:
                    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=str(error))
                    done.put_nowait(inference_pb2.StreamResult(id=item.id, error=status))
                    continue
                pending.add(future)
                future.add_done_callback(functools.partial(finish, item.id))
        if pending:
            await asyncio.wait(pending)
            await asyncio.sleep(0)  # the callbacks of the last ones
        done.put_nowait(None)


def _result(item: int, future: "asyncio.Future[Response]") -> inference_pb2.StreamResult:
    if future.exception() is not None:
        return inference_pb2.StreamResult(
            id=item, error=status_pb2.Status(code=code_pb2.INTERNAL, message="the model failed")
        )
    return inference_pb2.StreamResult(id=item, response=future.result())


async def serve() -> None:
    """Serves until SIGTERM or SIGINT."""
    arguments = options("A grpc.aio server with batching in its event loop.")
    model = Model(arguments.model, arguments.max_batch, lie=arguments.lie)
    inline = arguments.run == "inline" or (arguments.run == "auto" and model.seconds_of_full_batch < INLINE_BELOW)
    batcher = Batcher(model, inline=inline)
    batching = asyncio.create_task(batcher.run())
    server = grpc.aio.server(options=CHANNEL_OPTIONS)
    inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(Inference(model, batcher), server)
    server.add_insecure_port(f"127.0.0.1:{arguments.port}")
    await server.start()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, say_batch_sizes, model)
    await stop.wait()
    await server.stop(grace=1)
    batching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await batching


if __name__ == "__main__":
    asyncio.run(serve())
