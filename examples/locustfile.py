"""A user for Locust (https://locust.io): predicts, streams, and hands over jobs, each as often as its weight says.

    forebay serve build/demo/digits.onnx --jobs jobs.db
    locust -f examples/locustfile.py --headless --host 127.0.0.1:8500 --users 8 --run-time 30s

Locust's users are greenlets. gRPC has to know that before it makes a connection.
"""

import time
from collections.abc import Callable

import grpc.experimental.gevent
import numpy as np
from locust import User, between, task

from forebay_client import Client, Prediction

grpc.experimental.gevent.init_gevent()

MODEL = "digits"
ROWS = np.random.default_rng(1).integers(0, 17, (64, 64)).astype(np.float32)
"""Images of 8 by 8 pixels, for the demo's model."""
STREAM_ITEMS = 32


class Caller(User):
    """One caller with a connection of its own."""

    wait_time = between(0.01, 0.05)

    def on_start(self) -> None:
        """Connects."""
        self.client = Client(self.host, retry=None)  # what the server refuses is to be seen

    def on_stop(self) -> None:
        """Hangs up."""
        self.client.close()

    @task(8)
    def predict(self) -> None:
        """One row."""
        self.timed("Predict", lambda: check(self.client.predict(MODEL, ROWS[:1], deadline=5.0)))

    @task(1)
    def stream(self) -> None:
        """A short stream."""

        def run() -> int:
            rows = (ROWS[index : index + 1] for index in range(STREAM_ITEMS))
            return sum(check(prediction) for prediction in self.client.stream(MODEL, rows, deadline=5.0))

        self.timed("StreamPredict", run)

    @task(1)
    def submit(self) -> None:
        """A job, and its result."""

        def run() -> int:
            job = self.client.submit(MODEL, ROWS[:1], deadline=5.0)
            return check(self.client.result(job, timeout=20.0).prediction)

        self.timed("Submit and Result", run)

    def timed(self, name: str, run: Callable[[], int]) -> None:
        """Tells Locust how long something took, how many bytes came of it, and how it failed."""
        began, length, failure = time.perf_counter(), 0, None
        try:
            length = run()
        except Exception as error:  # noqa: BLE001  # whatever it is, Locust counts it
            failure = error
        took = (time.perf_counter() - began) * 1e3
        self.environment.events.request.fire(
            request_type="gRPC", name=name, response_time=took, response_length=length, exception=failure, context={}
        )


def check(prediction: Prediction) -> int:
    """The bytes of an answer, which is one label of a digit.

    Raises:
        ValueError: It is something else.
    """
    label = prediction["label"]
    if label.shape != (1,) or not 0 <= int(label[0]) <= 9:
        raise ValueError(f"{label} is no label of one digit")
    return int(label.nbytes)
