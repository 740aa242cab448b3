"""The second peer, the classic: a synchronous `grpc.server` on a thread pool, with one batching thread.

A handler's thread hands its row to the batching thread and waits. The batching thread takes what is there up to the
largest batch. `python -m bench.peers.grpc_threads MODEL.onnx --port PORT`; `bench.run` starts it.
"""

import functools
import queue
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc

from bench.peers.common import CHANNEL_OPTIONS, BadRequestError, Floats, Model, options, say_batch_sizes
from forebay.v1 import inference_pb2, inference_service_pb2_grpc

from google.rpc import code_pb2, status_pb2  # isort: skip

WORKERS = 160
"""Threads for handlers: more than any case has in flight, so that the pool never caps a batch."""

Response = inference_pb2.PredictResponse
Waiting = tuple[Floats, "Future[Response]"]


class Batcher:
    """Runs rows in batches, in a thread of its own. `submit` may be called from any thread."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._waiting: queue.SimpleQueue[Waiting] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    def start(self) -> None:
        """Starts the thread, which ends with the process."""
        self._thread.start()

    def submit(self, row: Floats) -> "Future[Response]":
        """The future answer to a row."""
        future: Future[Response] = Future()
        self._waiting.put((row, future))
        return future

    def _run(self) -> None:
        most = self._model.max_batch
        while True:
            batch = [self._waiting.get()]
            try:
                while len(batch) < most:
                    batch.append(self._waiting.get_nowait())
            except queue.Empty:
                pass
            try:
                answers = self._model.run([row for row, _ in batch])
            except Exception as error:  # noqa: BLE001  # whatever an engine raises, its callers must hear of it
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)


class Inference(inference_service_pb2_grpc.InferenceServiceServicer):
    """The service."""

    def __init__(self, model: Model, batcher: Batcher) -> None:
        self._model = model
        self._batcher = batcher

    def Predict(self, request: inference_pb2.PredictRequest, context: Any) -> Response:  # noqa: N802  # the stub's name
        """Answers one request."""
        try:
            row = self._model.row(request)
        except BadRequestError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return self._batcher.submit(row).result()

    def StreamPredict(  # noqa: N802  # the stub's name
        self, request_iterator: Iterator[inference_pb2.StreamPredictRequest], context: Any
    ) -> Iterator[inference_pb2.StreamPredictResponse]:
        """Answers items as they complete, several in a message if several are ready."""
        done: queue.SimpleQueue[inference_pb2.StreamResult | None] = queue.SimpleQueue()
        reader = threading.Thread(target=self._read, args=(request_iterator, done), daemon=True)
        reader.start()
        open_items = True
        while open_items and context.is_active():
            results = [done.get()]
            while not done.empty():
                results.append(done.get())
            open_items = None not in results
            ready = [result for result in results if result is not None]
            if ready:
                yield inference_pb2.StreamPredictResponse(results=ready)

    def _read(
        self,
        messages: Iterator[inference_pb2.StreamPredictRequest],
        done: "queue.SimpleQueue[inference_pb2.StreamResult | None]",
    ) -> None:
        pending = 0
        idle = threading.Condition()

        def finish(item: int, future: "Future[Response]") -> None:
            nonlocal pending
            done.put(_result(item, future))
            with idle:
                pending -= 1
                idle.notify()

        try:
            for message in messages:
                for item in message.items:
                    try:
                        row = self._model.row(item.request)
                    except BadRequestError as error:
                        status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=str(error))
                        done.put(inference_pb2.StreamResult(id=item.id, error=status))
                        continue
                    with idle:
                        pending += 1
                    self._batcher.submit(row).add_done_callback(functools.partial(finish, item.id))
            with idle:
                idle.wait_for(lambda: pending == 0)
        finally:
            # Also when the caller is gone, which ends the iteration with an error of grpc's.
            done.put(None)


def _result(item: int, future: "Future[Response]") -> inference_pb2.StreamResult:
    if future.exception() is not None:
        return inference_pb2.StreamResult(
            id=item, error=status_pb2.Status(code=code_pb2.INTERNAL, message="the model failed")
        )
    return inference_pb2.StreamResult(id=item, response=future.result())


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    arguments = options("A threaded synchronous gRPC server with a batching thread.")
    model = Model(arguments.model, arguments.max_batch, lie=arguments.lie)
    batcher = Batcher(model)
    batcher.start()
    server = grpc.server(ThreadPoolExecutor(WORKERS), options=CHANNEL_OPTIONS)
    inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(Inference(model, batcher), server)
    server.add_insecure_port(f"127.0.0.1:{arguments.port}")
    server.start()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    signal.signal(signal.SIGUSR1, lambda *_: say_batch_sizes(model))
    stop.wait()
    server.stop(grace=1).wait()


if __name__ == "__main__":
    main()
