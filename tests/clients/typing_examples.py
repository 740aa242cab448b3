"""How the client is used, for the type checker: never run. `assert_type` says what callers get."""

import datetime as dt
from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

import grpc
import numpy as np
import numpy.typing as npt

from forebay_client import (
    Aggregator,
    AsyncAggregator,
    AsyncClient,
    Client,
    ForebayError,
    Health,
    Job,
    JobState,
    Model,
    ModelStatistics,
    Prediction,
    PredictionStream,
    QueueFull,
    Result,
    Retry,
    Timings,
    Tls,
    Webhook,
    encode_image,
)
from forebay_client.testing import FakeServer


def unary(image: npt.NDArray[np.float32]) -> None:
    with Client("localhost:8500", tls=Tls(ca="ca.pem"), tenant="blue", metadata={"x": "y"}) as client:
        assert_type(client, Client)
        prediction = client.predict("digits", image, priority="low", parameters={"k": 3}, timings=True, version=2)
        assert_type(prediction, Prediction)
        assert_type(prediction["y"], npt.NDArray[Any])
        assert_type(prediction.array, npt.NDArray[Any])
        assert_type(prediction.timings, Timings | None)
        client.predict("digits", {"x": image, "n": [1, 2]}, outputs=["y"], deadline=0.5)
        assert_type(client.models(), list[Model])
        assert_type(client.statistics(), list[ModelStatistics])
        assert_type(client.health("model/digits"), Health)
        assert_type(client.predict("digits", image, hedge=0.05), Prediction)
        client.predict("digits", image, hegde=0.05)  # type: ignore[call-arg]  # no such option
        client.predict("digits", image, priority="urgent")  # type: ignore[arg-type]  # not one of the three
        client.predict("digits", image, parameters={"k": [1]})  # type: ignore[dict-item]  # no scalar
        client.predict("digits", image, deadline=None)  # type: ignore[arg-type]  # a deadline is always set


class Foreign:
    """An array of another library."""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        raise NotImplementedError

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def connections(image: npt.NDArray[np.float32]) -> None:
    client = Client(["10.0.0.1:1", "10.0.0.2:1"], connections=2, health_check=True, retry=Retry(attempts=2))
    assert_type(client.predict("digits", Foreign()), Prediction)
    aggregator = client.aggregator("digits", rows=8, delay=0.01)
    assert_type(aggregator, Aggregator)
    assert_type(aggregator.predict(image), Prediction)
    assert_type(encode_image("cat.jpg", accept=["JPEG"], max_side=224), bytes)
    encode_image("cat.jpg", format="GIF")  # type: ignore[arg-type]  # not one of the three
    with FakeServer({"double": lambda inputs: {"y": inputs["x"]}}) as server:
        assert_type(server, FakeServer)


def errors(client: Client) -> None:
    try:
        client.predict("digits", [[1.0]])
    except QueueFull as error:
        assert_type(error.retry_delay, float | None)
    except ForebayError as error:
        assert_type(error.code, grpc.StatusCode)


def images() -> Iterator[npt.NDArray[np.float32]]:
    yield np.zeros((1, 64), np.float32)


async def live_images() -> AsyncIterator[npt.NDArray[np.float32]]:
    yield np.zeros((1, 64), np.float32)


def stream(client: Client) -> None:
    assert_type(client.stream("digits", images()), PredictionStream[Prediction])
    for result in client.stream("digits", images(), window=64, ordered=False):
        assert_type(result, Prediction)
    for outcome in client.stream("digits", images(), failures="yield", items_per_message=8):
        assert_type(outcome, Prediction | ForebayError)
    client.stream("digits", live_images())  # type: ignore[call-overload]  # asynchronous sources are for AsyncClient
    client.stream("digits", images(), widow=3)  # type: ignore[call-overload]  # no such option


def jobs(client: Client, image: npt.NDArray[np.float32]) -> None:
    hour = dt.timedelta(hours=1)
    job = client.submit("digits", image, version=2, outputs=["y"], priority="low", parameters={"k": 3}, ttl=hour)
    assert_type(job, Job)
    assert_type(job.state, JobState)
    assert_type(job.done, bool)
    assert_type(job.end_time, dt.datetime | None)
    assert_type(job.estimated_wait, dt.timedelta | None)
    client.submit("digits", image, request_id="key", expire_after=60, webhook=Webhook(url="https://x", secret="s"))
    assert_type(client.result(job), Result)
    assert_type(client.result(job.id, timeout=0).prediction, Prediction)
    assert_type(client.job(job), Job)
    assert_type(client.cancel(job.id), Job)
    for change in client.watch(job, timeout=60):
        assert_type(change, Job)
    assert_type(client.jobs(states=[JobState.FAILED], model="digits"), Iterator[Job])
    client.submit("digits", image, deadline=None)  # type: ignore[arg-type]  # it has to be acknowledged some time
    client.result(3)  # type: ignore[arg-type]  # ids are texts


async def asynchronous() -> None:
    async with AsyncClient("unix:/run/forebay.sock") as client:
        assert_type(await client.predict("digits", [[1.0]]), Prediction)
        async with client.stream("digits", live_images()) as results:
            async for result in results:
                assert_type(result, Prediction)
        async for outcome in client.stream("digits", images(), failures="yield"):
            assert_type(outcome, Prediction | ForebayError)
        assert_type(await client.health(), Health)
        job = await client.submit("digits", [[1.0]])
        assert_type(job, Job)
        assert_type(await client.result(job, timeout=5.0), Result)
        async for change in client.watch(job):
            assert_type(change, Job)
        async for found in client.jobs(states=["FAILED"]):
            assert_type(found, Job)
        assert_type(await client.cancel(job), Job)
        assert_type(client.aggregator("digits"), AsyncAggregator)
        assert_type(await client.aggregator("digits").predict([[1.0]]), Prediction)
        client.predict("digits", [[1.0]])  # type: ignore[unused-coroutine]  # it has to be awaited
