"""An aggregator: its decisions at exact instants, and both clients' against a server."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import forebay_client
from forebay_client import AsyncClient, BadResponse, Client, InputRejected, InternalError, Prediction, QueueFull
from forebay_client._aggregation import AggregationCore, Batch, Sample, separable
from forebay_client.testing import FakeModel, FakeServer


def sample(rows, value=0.0, width=2):
    return Sample({"x": np.full((rows, width), value, np.float32)})


def test_a_batch_goes_when_it_is_full():
    """The request that fills it closes it, and the next one begins another."""
    core = AggregationCore(rows=4, delay=0.01)
    batch, first = core.add(sample(1), "a", now=10.0)
    assert (first, batch.full, batch.due) == (True, False, 10.01)
    same, first = core.add(sample(2), "b", now=10.004)
    assert (same is batch, first, batch.full, batch.due) == (True, False, False, 10.01)
    core.add(sample(3), "c", now=10.005)
    assert (batch.full, batch.rows, batch.tickets) == (True, 6, ["a", "b", "c"])
    following, first = core.add(sample(1), "d", now=10.006)
    assert (following is batch, first) == (False, True)


def test_a_batch_that_was_closed_takes_no_more():
    """Its time has come, full or not."""
    core = AggregationCore(rows=4, delay=0.01)
    batch, _ = core.add(sample(1), "a", now=10.0)
    core.close(batch)

    assert core.add(sample(1), "b", now=10.0)[1]
    assert batch.tickets == ["a"]


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.zeros((1, 3), np.float32)},
        {"x": np.zeros((1, 2), np.float64)},
        {"y": np.zeros((1, 2), np.float32)},
        {"x": np.zeros((1, 2), np.float32), "n": np.zeros(1)},
        np.zeros((1, 2), np.float32),
    ],
)
def test_only_what_is_alike_goes_together(other):
    """Names, types and shapes but for the rows; an input without a name is not one with."""
    core = AggregationCore(rows=4, delay=0.01)
    core.add(sample(1), "a", now=10.0)

    assert core.add(Sample(other), "b", now=10.0)[1]


def test_texts_of_different_lengths_go_together():
    """Their length is not a shape."""
    core = AggregationCore(rows=4, delay=0.01)
    batch, _ = core.add(Sample({"x": np.array(["a", "b"])}), "a", now=10.0)
    core.add(Sample({"x": np.array(["longer"])}), "b", now=10.0)

    assert batch.merged()["x"].tolist() == ["a", "b", "longer"]


@pytest.mark.parametrize("inputs", [{"x": 1.0}, {"x": [1.0], "y": [1.0, 2.0]}, {}])
def test_inputs_without_rows_are_refused(inputs):
    """There would be no telling whose outputs are whose."""
    with pytest.raises(ValueError):
        Sample(inputs)


def test_everybody_gets_their_own_rows():
    """In the order in which they came, as views."""
    batch = Batch(0.0)
    for rows, value in ((1, 1.0), (2, 2.0)):
        batch.samples.append(sample(rows, value))
        batch.rows += rows
    whole = Prediction({"y": np.array([1, 2, 3])}, model="m", version=1)

    assert [part["y"].tolist() for part in batch.split(whole)] == [[1], [2, 3]]
    with pytest.raises(BadResponse, match=r"output 'y' has the shape \(2,\) for 3 rows"):
        batch.split(Prediction({"y": np.array([1, 2])}, model="m", version=1))


@pytest.mark.parametrize("error", [InputRejected("x"), InternalError("x"), forebay_client.MessageTooLarge("x")])
def test_who_is_to_blame_is_found_by_sending_each_alone(error):
    """A neighbour's wrong input is nobody else's error."""
    assert separable(error)
    assert not separable(QueueFull("x"))


def picky(inputs):
    if (inputs["x"] == 13).any():
        raise ValueError("thirteen")
    return {"y": inputs["x"] * 2}


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_many_callers_share_few_calls(kind):
    """All get their own answers; the one whose input is refused alone gets the error."""
    values = [float(value) for value in range(16)]
    with FakeServer({"picky": picky}) as server:
        if kind == "sync":
            barrier = threading.Barrier(len(values))
            with Client(server.address) as client, ThreadPoolExecutor(len(values)) as pool:
                aggregator = client.aggregator("picky", rows=16, delay=5.0)

                def call(value):
                    barrier.wait()
                    try:
                        return aggregator.predict({"x": [[value]]})["y"].item()
                    except InputRejected as error:
                        return error.message

                found = list(pool.map(call, values))
        else:

            async def everybody():
                async with AsyncClient(server.address) as client:
                    aggregator = client.aggregator("picky", rows=16, delay=5.0)
                    calls = (aggregator.predict({"x": [[value]]}) for value in values)
                    return await asyncio.gather(*calls, return_exceptions=True)

            found = [
                outcome["y"].item() if isinstance(outcome, Prediction) else outcome.message
                for outcome in asyncio.run(everybody())
            ]

        assert found == [value * 2 if value != 13 else "thirteen" for value in values]
        assert server.requests[0].inputs[0].shape == [16, 1]
        assert len(server.requests) == 1 + 16


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_nobody_waits_longer_than_the_delay(kind):
    """A caller without company goes alone."""
    with FakeServer({"picky": picky}) as server:
        if kind == "sync":
            with Client(server.address) as client:
                found = client.aggregator("picky", rows=1000, delay=0.01).predict([[1.0]])
        else:

            async def one():
                async with AsyncClient(server.address) as client:
                    return await client.aggregator("picky", rows=1000, delay=0.01).predict([[1.0]])

            found = asyncio.run(one())

    assert found.array.tolist() == [[2.0]]


def test_a_cancelled_caller_does_not_take_the_others_along():
    """Its rows are run, and nobody looks at them."""

    async def scenario(server):
        async with AsyncClient(server.address) as client:
            aggregator = client.aggregator("slow", rows=2, delay=5.0)
            first = asyncio.create_task(aggregator.predict({"x": [[1.0]]}))
            second = asyncio.create_task(aggregator.predict({"x": [[2.0]]}))
            await asyncio.sleep(0.1)
            first.cancel()
            return (await second)["y"].tolist()

    with FakeServer({"slow": FakeModel(run=picky, seconds=0.3)}) as server:
        assert asyncio.run(scenario(server)) == [[4.0]]


def test_an_error_of_all_is_each_ones_own():
    """The same exception in two threads would mix up their tracebacks."""
    with FakeServer({"picky": picky}) as server, Client(server.address, retry=None) as client:
        server.fail_next("QUEUE_FULL", retry_delay=0.25)
        aggregator = client.aggregator("picky", rows=2, delay=5.0)

        def call(value):
            with pytest.raises(QueueFull) as caught:
                aggregator.predict({"x": [[value]]})
            return caught.value

        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(call, [1.0, 2.0])

    assert first is not second
    assert (first.retry_delay, second.retry_delay) == (0.25, 0.25)


@pytest.mark.parametrize("options", [{"rows": 0}, {"delay": -1}, {"deadline": 0}])
def test_options_out_of_range_are_refused(options):
    """Before anything is sent."""
    with Client("127.0.0.1:1") as client, pytest.raises(ValueError):
        client.aggregator("m", **options)
