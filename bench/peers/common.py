"""What the comparison servers share: the model, the contract's messages to rows and back, options, counts.

The peers are as good as an expert would write them in a day: they check a request's name, type and shape, batch what is
there, and answer in the contract's messages. They have no deadlines, admission, fairness, splitting or statistics; that
favours them.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.models import session
from forebay.v1 import inference_pb2, tensor_pb2

Floats = npt.NDArray[np.float32]

CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.so_reuseport", 0),
]
FP32 = tensor_pb2.DATA_TYPE_FP32


class BadRequestError(Exception):
    """A request that the model cannot take; the text is for the caller."""


class Model:
    """A model with one input and one output, both batched, run on one thread at a time."""

    def __init__(self, path: Path, max_batch: int, *, lie: bool) -> None:
        self.name = path.stem
        self.max_batch = max_batch
        self.batch_sizes: Counter[int] = Counter()
        self._lie = lie
        self._answers = 0
        self._session = session(path)
        first = self._session.get_inputs()[0]
        self._input: str = first.name
        self._output: str = self._session.get_outputs()[0].name
        self._row = tuple(first.shape[1:])
        self._shape = (1, *self._row)
        self.seconds_of_full_batch = self._measure()

    def _measure(self) -> float:
        rows = np.zeros((self.max_batch, *self._row), np.float32)
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            self._session.run(None, {self._input: rows})
            best = min(best, time.perf_counter() - start)
        return best

    def row(self, request: inference_pb2.PredictRequest) -> Floats:
        """The one row of a request, as an array over its bytes.

        Raises:
            BadRequestError: It is for another model, or not one row of the right type and shape.
        """
        if request.model != self.name:
            raise BadRequestError(f"there is no model {request.model!r}")
        if len(request.inputs) != 1:
            raise BadRequestError("one input is wanted")
        tensor = request.inputs[0]
        if tensor.name != self._input or tensor.data_type != FP32 or tuple(tensor.shape) != self._shape:
            raise BadRequestError(f"the input must be {self._input!r}, FP32, {self._shape}")
        try:
            return np.frombuffer(tensor.data, "<f4").reshape(self._shape)
        except ValueError as error:
            raise BadRequestError("the data has another length than the shape says") from error

    def run(self, rows: list[Floats]) -> list[inference_pb2.PredictResponse]:
        """Answers to rows, run as one batch."""
        self.batch_sizes[len(rows)] += 1
        batch = rows[0] if len(rows) == 1 else np.concatenate(rows)
        outputs: Floats = self._session.run(None, {self._input: batch})[0]
        data = outputs.tobytes()
        size = len(data) // len(rows)
        shape = (1, *outputs.shape[1:])
        return [self._response(data[start : start + size], shape) for start in range(0, len(data), size)]

    def _response(self, data: bytes, shape: tuple[int, ...]) -> inference_pb2.PredictResponse:
        if self._lie:
            self._answers += 1
            if self._answers % LIE_EVERY == 0:
                data = bytes(len(data))
        return inference_pb2.PredictResponse(
            model=self.name,
            version=1,
            outputs=[tensor_pb2.Tensor(name=self._output, data_type=FP32, shape=shape, data=data)],
        )


LIE_EVERY = 10


def options(description: str) -> argparse.Namespace:
    """The command line of a peer."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", type=Path, help="the ONNX file")
    parser.add_argument("--port", type=int, required=True, help="where to listen, on 127.0.0.1")
    parser.add_argument("--max-batch", type=int, default=128, help="the most rows in a batch")
    parser.add_argument(
        "--lie", action="store_true", help=f"answer every {LIE_EVERY}th request with zeros, to try the generator"
    )
    parser.add_argument("--run", choices=["auto", "inline", "executor"], default="auto", help="where batches run")
    return parser.parse_args()


def say_batch_sizes(model: Model) -> None:
    """Writes a line that `bench.server` reads; the peers do it on SIGUSR1."""
    sizes: dict[str, Any] = {"batch_sizes": {str(rows): count for rows, count in sorted(model.batch_sizes.items())}}
    print(json.dumps(sizes), file=sys.stdout, flush=True)
