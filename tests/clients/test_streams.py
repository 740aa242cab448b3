"""Streams, on both clients, against a real server."""

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

import forebay_client
from forebay_client import Prediction
from tests.waiting import eventually


def row(value):
    return {"x": np.array([[value, 0]], np.float32)}


def rows(count):
    return [row(value) for value in range(count)]


def puller_is_gone():
    return not any(thread.name == "forebay-stream" and thread.is_alive() for thread in threading.enumerate())


def test_results_come_in_order_and_complete(client, server, outcomes):
    """Each item has its own result, and the index of the item."""
    found, error = outcomes(client.stream("double", rows(1000)))

    assert error is None
    assert [(index, 2.0 * index) for index in range(1000)] == [
        (result.index, float(result["y"][0, 0])) for result in found
    ]
    first = server.log.messages[0].options
    assert (first.order, first.max_in_flight) == (2, 256)
    assert not any(message.HasField("options") for message in server.log.messages[1:])
    assert max(len(message.items) for message in server.log.messages) <= 32


def test_results_may_come_as_they_complete(client, server, outcomes):
    """The index tells which item a result belongs to."""
    server.log.script = "reverse"
    found, error = outcomes(client.stream("double", rows(10), ordered=False))

    assert error is None
    assert [(index, 2.0 * index) for index in range(9, -1, -1)] == [
        (result.index, float(result["y"][0, 0])) for result in found
    ]
    assert server.log.messages[0].options.order == 1


def test_an_array_alone_is_an_item(client, outcomes):
    """As with unary calls."""
    found, error = outcomes(client.stream("double", [np.ones((1, 2), np.float32)] * 3))

    assert error is None
    assert [result.array.tolist() for result in found] == [[[2, 2]]] * 3


def test_an_empty_source_has_no_results(client, outcomes):
    """And is no error."""
    assert outcomes(client.stream("double", [])) == ([], None)


def test_each_item_has_a_timeout_and_the_stream_a_deadline(client, server, outcomes):
    """A stream may last longer than its items."""
    outcomes(client.stream("double", rows(2), deadline=1.5, stream_deadline=60))

    assert {1_500_000_000} == {
        item.timeout.ToNanoseconds() for message in server.log.messages for item in message.items
    }
    assert 50 < server.log.remaining[0] < 61


def test_an_items_error_is_raised_and_the_stream_goes_on(client):
    """`next` can be called again after an error."""
    stream = iter(client.stream("double", [row(1), row(-1), row(-2), row(3)]))

    assert next(stream)["y"][0, 0] == 2.0
    with pytest.raises(forebay_client.QueueFull) as caught:
        next(stream)
    assert (
        caught.value.index,
        caught.value.retry_delay,
        caught.value.code,
    ) == (1, 0.25, grpc.StatusCode.RESOURCE_EXHAUSTED)
    with pytest.raises(forebay_client.InvalidRequest, match="item 2: ") as caught:
        next(stream)
    assert caught.value.violations[0].field == "inputs[0].shape"
    assert next(stream)["y"][0, 0] == 6.0
    with pytest.raises(StopIteration):
        next(stream)


def test_items_errors_may_be_given_out(client):
    """For loops that take both."""
    found = list(client.stream("double", [row(1), row(-3), row(2)], failures="yield"))

    assert [Prediction, forebay_client.InternalError, Prediction] == [type(outcome) for outcome in found]
    assert [outcome.index for outcome in found] == [0, 1, 2]


def test_an_unreadable_result_fails_alone(client):
    """Its neighbours do not notice."""
    (outcome,) = client.stream("broken", [row(1)], failures="yield")

    assert isinstance(outcome, forebay_client.BadResponse)
    assert outcome.index == 0


def test_the_source_is_never_read_beyond_the_window(client, server):
    """Taken and not yet given out: at most the window, whether or not the server has answered."""
    taken = []

    def source():
        for value in range(100):
            taken.append(value)
            yield row(value)

    stream = client.stream("double", source(), window=8)
    eventually(lambda: len(taken) == 8)
    eventually(lambda: sum(len(message.items) for message in server.log.messages) == 8)
    for count in range(1, 93):
        next(stream)
        assert len(taken) <= 8 + count
    eventually(lambda: len(taken) == 100)
    assert len(list(stream)) == 8


def test_large_items_close_the_window_by_their_bytes(client, server):
    """Of items of 600 KB, 2 MB hold three and one that goes beyond; each result given out makes room for one."""
    server.log.script = "wait"
    taken = []

    def source():
        for value in range(12):
            taken.append(value)
            yield {"x": np.full((75_000, 2), value, np.float32)}

    stream = client.stream("double", source(), window_bytes=2_000_000)
    eventually(lambda: len(server.log.messages) == 1 and len(taken) == 4)
    server.log.proceed.set()
    for count in range(1, 9):
        assert next(stream)["y"][0, 0] == 2.0 * (count - 1)
        assert len(taken) <= 4 + count
    eventually(lambda: len(taken) == 12)
    assert len(list(stream)) == 4


def test_large_items_go_in_messages_of_their_own(client, server, outcomes):
    """Many in one would be over the server's limit, which here is gRPC's own of 4 MiB."""
    found, error = outcomes(client.stream("double", [{"x": np.ones((75_000, 2), np.float32)}] * 16))

    assert error is None
    assert [(index, 2.0) for index in range(16)] == [(result.index, result["y"][0, 0]) for result in found]
    assert [len(message.items) for message in server.log.messages] == [1] * 16


def test_a_slow_source_is_not_held_up_for_company(client):
    """An item is sent although its message is not full: here each item needs the result of the one before."""
    arrived = threading.Semaphore(1)

    def source():
        for value in range(5):
            assert arrived.acquire(timeout=10)
            yield row(value)

    async def async_source():
        for value in range(5):
            assert await asyncio.to_thread(arrived.acquire, timeout=10)
            yield row(value)

    is_sync = isinstance(client.client, forebay_client.Client)
    results = []
    for result in client.stream("double", source() if is_sync else async_source()):
        results.append(float(result["y"][0, 0]))
        arrived.release()

    assert results == [0, 2, 4, 6, 8]


def test_leaving_early_cancels_the_stream(client, server):
    """`close` ends the call at the server and the reading of the source."""
    server.log.script = "wait"
    taken = []

    def source():
        while True:
            taken.append(1)
            yield row(1)

    stream = client.stream("double", source(), window=4)
    eventually(lambda: len(taken) == 4)
    assert server.log.received.acquire(timeout=10)
    stream.close()
    server.log.proceed.set()
    assert server.log.stream_ended.wait(10)
    eventually(puller_is_gone)
    assert len(taken) == 4
    with pytest.raises(StopIteration):
        next(stream)
    stream.close()


def test_a_failing_source_is_heard_after_the_results(client, outcomes):
    """What was taken before is answered; then the source's own exception is raised."""

    def source():
        yield row(1)
        yield row(2)
        raise LookupError("no more data")

    found, error = outcomes(client.stream("double", source()))

    assert [float(result["y"][0, 0]) for result in found] == [2.0, 4.0]
    assert isinstance(error, LookupError)


def test_an_item_that_cannot_be_sent_ends_the_stream(client, outcomes):
    """It is a mistake of the program, raised where the results are read."""
    found, error = outcomes(client.stream("double", [row(1), {"x": np.array([1j])}, row(2)]))

    assert len(found) == 1
    assert isinstance(error, TypeError)


def test_a_server_that_goes_away_fails_what_was_taken(client, server, outcomes):
    """Every item taken has one outcome, then the stream's error says where the rest begins."""
    server.log.script = "die"
    found, error = outcomes(
        client.stream("double", (row(1) for _ in iter(int, 1)), window=4, failures="yield", outage=0)
    )

    assert all(isinstance(outcome, forebay_client.Unavailable) for outcome in found)
    assert isinstance(error, forebay_client.Unavailable)
    assert (error.index, error.taken) == (None, len(found))
    assert [outcome.index for outcome in found] == list(range(len(found)))
    assert 1 <= len(found) <= 4


def test_a_killed_server_is_unavailable(client, server, outcomes):
    """A connection that breaks is no different."""
    server.log.script = "hold"
    stream = client.stream("double", rows(3), failures="yield", outage=0)
    server.log.received.acquire(timeout=10)
    server.stop()
    found, error = outcomes(stream)

    assert [outcome.index for outcome in found] == [0, 1, 2]
    assert all(isinstance(outcome, forebay_client.ForebayError) for outcome in found)
    assert error is None


def test_a_drain_notice_stops_the_reading_of_the_source(client, server, outcomes):
    """What the server took is answered; the items it never got fail with Draining; `taken` says where to go on."""
    server.log.script = "drain"
    sent = threading.Event()
    taken = []

    def source():
        for value in range(1000):
            taken.append(value)
            yield row(value)
            if value == 200:
                sent.wait(0.2)

    found, error = outcomes(client.stream("double", source(), window=16, failures="yield", outage=0))

    answered = [outcome.index for outcome in found if isinstance(outcome, Prediction)]
    refused = [outcome for outcome in found if not isinstance(outcome, Prediction)]
    assert list(range(len(answered))) == answered
    assert all(isinstance(outcome, forebay_client.Draining) for outcome in refused)
    assert list(range(len(found))) == [outcome.index for outcome in found]
    assert isinstance(error, forebay_client.Draining)
    assert ("DRAINING", len(found)) == (error.reason, error.taken)
    assert len(found) < 1000


def test_a_server_that_ends_the_stream_early_is_unavailable(client, server, outcomes):
    """OK is no answer to items that had none."""
    server.log.script = "finish"
    found, error = outcomes(client.stream("double", rows(2), failures="yield", outage=0))

    assert [forebay_client.Unavailable] * 2 == [type(outcome) for outcome in found]
    assert error is None


def test_a_result_for_nobody_ends_the_stream(client, server, outcomes):
    """A server that answers what was not asked can't be trusted with the rest."""
    server.log.script = "foreign"
    found, error = outcomes(client.stream("double", rows(2), failures="yield"))

    assert [forebay_client.BadResponse] * 2 == [type(outcome) for outcome in found]
    assert error is None


@pytest.mark.parametrize(
    "options",
    [{"window": 0}, {"window_bytes": 0}, {"items_per_message": 0}, {"items_per_message": 1025}, {"deadline": 0}],
)
def test_options_out_of_range_are_refused(client, options):
    """At once, not by the first item."""
    with pytest.raises(ValueError):
        client.stream("double", [], **options)


def test_closing_the_client_ends_its_streams(surface, server, outcomes):
    """Nobody waits for a stream of a closed client."""
    server.log.script = "wait"
    client = surface(server.address)
    stream = client.stream("double", rows(3), failures="yield")
    server.log.received.acquire(timeout=10)
    if isinstance(client.client, forebay_client.Client):
        client.close()
        found, _ = outcomes(stream)
    else:
        client.run(client.client.close())
        found, _ = outcomes(stream)
        client.stop()

    assert [forebay_client.Cancelled] * 3 == [type(outcome) for outcome in found]


def test_closing_the_client_ends_its_calls(surface, server):
    """They are cancelled, and not made again."""
    client = surface(server.address)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.predict, "slow", row(1))
        eventually(lambda: server.log.requests)
        if isinstance(client.client, forebay_client.Client):
            client.close()
        else:
            client.run(client.client.close())
        with pytest.raises(forebay_client.Cancelled):
            call.result(20)
    if not isinstance(client.client, forebay_client.Client):
        client.stop()

    assert len(server.log.requests) == 1


def test_an_iterator_that_is_dropped_cancels_its_stream(server):
    """A `break` in a loop leaves nothing behind."""
    with forebay_client.Client(server.address) as client:
        for result in client.stream("double", (row(1) for _ in iter(int, 1))):
            assert result["y"][0, 0] == 2.0
            break
        del result
        gc.collect()
        assert server.log.stream_ended.wait(10)
        eventually(puller_is_gone)


def test_a_stream_is_a_context_manager(server):
    """Leaving the block closes it."""
    with (
        forebay_client.Client(server.address) as client,
        client.stream("double", (row(1) for _ in iter(int, 1))) as stream,
    ):
        next(stream)
    assert server.log.stream_ended.wait(10)
    eventually(puller_is_gone)


def test_an_asynchronous_iterator_that_is_dropped_cancels_its_stream(server):
    """As with the other client; nothing can be awaited there, but all is cancelled."""

    async def leave_early():
        async with forebay_client.AsyncClient(server.address) as client:
            async for result in client.stream("double", (row(1) for _ in iter(int, 1))):
                assert result["y"][0, 0] == 2.0
                break
            gc.collect()
            await asyncio.to_thread(server.log.stream_ended.wait, 10)
            await asyncio.sleep(0)
            return [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "forebay-stream"]

    assert asyncio.run(leave_early()) == []
    assert server.log.stream_ended.is_set()


def test_cancelling_a_task_cancels_its_stream_and_is_not_swallowed(server):
    """A timeout around a loop works as it does elsewhere in asyncio."""
    server.log.script = "wait"

    async def give_up():
        async with forebay_client.AsyncClient(server.address) as client:
            async with client.stream("double", rows(3)) as stream:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(stream), 0.2)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.predict("slow", row(1)), 0.2)

    asyncio.run(give_up())
