"""Streams, as exact sequences of events and actions."""

import math
from dataclasses import replace

import pytest
from google.rpc import error_details_pb2, status_pb2

from forebay.v1 import inference_pb2
from forebay_server import errors
from forebay_server.services import streams, uptake
from forebay_server.services.item import ItemInference
from forebay_server.wire.port import CREDIT, FAIL, FINISH, SEND, Peer

CALL = 4


@pytest.fixture
def stream(make_house, request_for):
    return Stream(make_house(stream_window=4), request_for)


class Stream:
    """A caller of one stream."""

    def __init__(self, house, request_for, call=CALL):
        self.house = house
        self.request_for = request_for
        self.call = call

    def open(self, deadline=math.inf):
        self.house.stream.on_call((2, self.call, 1, None, deadline, Peer(0, "unix:", "me"), None))
        return self.house.turn()

    def event(self, handler, kind):
        handler((kind, self.call, 1, None, math.inf, None, None))
        return self.house.turn()

    def send(self, *ids, timeout=None, flush=True, **fields):
        message = inference_pb2.StreamPredictRequest(**fields)
        for ident in ids:
            item = message.items.add(id=ident, request=self.request_for([ident, ident]))
            if timeout is not None:
                item.timeout.FromNanoseconds(round(timeout * 1e9))
        return self.raw(message.SerializeToString(), flush=flush)

    def raw(self, body, *, flush=True):
        self.house.stream.on_message((3, self.call, 1, body, math.inf, None, None))
        return self.house.turn() if flush else None

    def run(self, *ids):
        """Runs the items of these ids as one batch, and ends the turn."""
        by_id = {request.ident: request for request in self.house.scheduler.admitted}
        self.house.scheduler.run(*(by_id[ident] for ident in ids))
        return self.house.turn()

    @property
    def admitted(self):
        return [request.ident for request in self.house.scheduler.admitted]


def results(action, call=CALL):
    """The results in one message: (id, first number) or (id, reason)."""
    assert action[:2] == (SEND, call)
    message = inference_pb2.StreamPredictResponse.FromString(action[2])
    found = []
    for result in message.results:
        if result.WhichOneof("outcome") == "response":
            assert result.response.model == "double"
            found.append((result.id, len(result.response.outputs[0].data)))
        else:
            found.append((result.id, reason_of(result.error)))
    return found


def reason_of(status):
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


def failed(actions):
    """The (code, reason) with which the stream ended."""
    (action,) = actions
    kind, call, failure = action
    assert (kind, call) == (FAIL, CALL)
    return failure.code, reason_of(status_pb2.Status.FromString(failure.details))


def test_whole_life(stream):
    """Credit, items, results of one turn in one message, more credit, half-close, finish after the last answer."""
    assert stream.open() == [(CREDIT, CALL, 1)]
    assert stream.send(1, 2, 3) == [(CREDIT, CALL, 1)]
    assert stream.house.scheduler.admitted[0].tenant == "me"

    (sent,) = stream.run(1, 3)
    assert results(sent) == [(1, 8), (3, 8)]

    assert stream.event(stream.house.stream.on_half_close, 4) == []
    sent, finished = stream.run(2)
    assert results(sent) == [(2, 8)]
    assert finished == (FINISH, CALL, None)
    assert stream.house.inference.in_flight() == 0


def test_stream_without_items_finishes_at_half_close(stream):
    """Nothing accepted, nothing to wait for."""
    stream.open()

    assert stream.event(stream.house.stream.on_half_close, 4) == [(FINISH, CALL, None)]


def test_options_alone(stream):
    """Options may come without items; the stream goes on with credit for its whole window."""
    stream.open()

    assert stream.send(options=inference_pb2.StreamOptions()) == [(CREDIT, CALL, 4)]


def test_as_completed_is_the_default(stream):
    """Results go out as they complete."""
    stream.open()
    stream.send(1, 2)

    assert results(stream.run(2)[0]) == [(2, 8)]
    assert results(stream.run(1)[0]) == [(1, 8)]


def test_ordered(stream):
    """In order, a slow item holds back those after it, failed ones too; then all go out together."""
    stream.open()
    order = inference_pb2.StreamOptions(order=inference_pb2.RESULT_ORDER_AS_SENT)
    message = inference_pb2.StreamPredictRequest(options=order)
    message.items.add(id=1, request=stream.request_for())
    message.items.add(id=2, request=stream.request_for(model="nothing"))
    message.items.add(id=3, request=stream.request_for())
    assert [action[0] for action in stream.raw(message.SerializeToString())] == [CREDIT]

    assert stream.run(3) == []
    sent = stream.run(1)[0]

    assert results(sent) == [(1, 8), (2, "MODEL_NOT_FOUND"), (3, 8)]


def test_window_stops_credit(stream):
    """With the window full there is no credit; a result makes room for one more message."""
    stream.open()
    assert stream.send(1, 2, 3, 4) == []

    sent, credit = stream.run(2)

    assert results(sent) == [(2, 8)]
    assert credit == (CREDIT, CALL, 1)


def test_smaller_window_of_the_caller(stream):
    """The caller may want fewer items in flight, never more than the server's."""
    stream.open()
    assert stream.send(1, options=inference_pb2.StreamOptions(max_in_flight=2)) == [(CREDIT, CALL, 1)]

    other = Stream(stream.house, stream.request_for, call=5)
    other.open()
    assert other.send(1, options=inference_pb2.StreamOptions(max_in_flight=1000)) == [(CREDIT, 5, 3)]


def test_window_is_overshot_by_one_message_at_most(stream):
    """Messages that come on credit when the window is full are parked, and taken up one by one as it empties."""
    stream.open()
    assert stream.send(1) == [(CREDIT, CALL, 3)]
    stream.send(2, 3, 4, flush=False)
    stream.send(5, 6, flush=False)
    assert stream.send(7) == []
    assert stream.admitted == [1, 2, 3, 4]

    sent = stream.run(1)
    assert results(sent[0]) == [(1, 8)]
    assert len(sent) == 1
    assert stream.admitted == [1, 2, 3, 4, 5, 6]

    stream.event(stream.house.stream.on_half_close, 4)
    stream.run(2, 3)
    assert stream.admitted == [1, 2, 3, 4, 5, 6, 7]
    assert stream.run(4, 5, 6, 7)[-1] == (FINISH, CALL, None)


def test_parked_bytes_are_bounded(stream, monkeypatch):
    """Beyond some bytes, parked messages are taken up in spite of the window, for admission to judge."""
    monkeypatch.setattr(streams, "MAX_PARKED_BYTES", 200)
    stream.open()
    stream.send(1, 2, 3, 4)
    for ident in range(5, 15):
        stream.send(ident)

    (entry,) = stream.house.inference.streams._streams.values()
    assert entry.parked_bytes <= 200
    assert len(stream.admitted) + len(entry.parked) == 14


def test_slow_reader_gets_no_credit(stream):
    """A full outbox stops credit until it is writable; results that are ready still go out."""
    stream.open()
    stream.send(1)
    stream.house.stream.on_full(CALL)
    stream.send(2)
    stream.send(3)
    stream.send(4)
    assert [action[0] for action in stream.run(1, 2, 3, 4)] == [SEND]

    assert stream.event(stream.house.stream.on_writable, 6) == [(CREDIT, CALL, 4)]


def test_large_messages_get_one_credit(stream):
    """The bytes that may be under way are bounded too."""
    stream.open()
    message = inference_pb2.StreamPredictRequest()
    message.items.add(id=1, request=stream.request_for([0.0] * 400_000))

    assert stream.raw(message.SerializeToString()) == [(CREDIT, CALL, 1)]


def test_item_errors_leave_the_stream_alive(stream):
    """Each error of an item is a status in its result, with the reason that Predict would give."""
    stream.open()
    message = inference_pb2.StreamPredictRequest()
    message.items.add(id=1, request=stream.request_for(model="nothing"))
    message.items.add(id=2, request=stream.request_for(outputs=["z"]))
    message.items.add(id=3)
    message.items.add(id=4, request=stream.request_for()).timeout.FromSeconds(-1)
    message.items.add(id=5, request=stream.request_for([]))

    sent, credit = stream.raw(message.SerializeToString())

    assert results(sent) == [
        (1, "MODEL_NOT_FOUND"),
        (2, "INVALID_TENSOR"),
        (3, "INVALID_TENSOR"),
        (4, "INVALID_TENSOR"),
        (5, 0),
    ]
    assert credit == (CREDIT, CALL, 1)


def test_refusals_and_late_failures(stream):
    """What the scheduler refuses or fails later is a result as well."""
    stream.open()
    stream.send(1)
    stream.house.scheduler.refuse = errors.QueueFull("full", retry_after=1.0)
    assert results(stream.send(2)[0]) == [(2, "QUEUE_FULL")]

    stream.house.scheduler.admitted[0].fail(errors.DeadlineExpired("late"))

    assert results(stream.house.turn()[0]) == [(1, "DEADLINE_EXPIRED")]


@pytest.mark.parametrize(
    ("stream_deadline", "timeout", "counts"),
    [
        (math.inf, None, 130.0),
        (math.inf, 5.0, 105.0),
        (math.inf, 500.0, 160.0),
        (120.0, None, 120.0),
        (120.0, 5.0, 105.0),
        (120.0, 50.0, 120.0),
        (900.0, None, 160.0),
    ],
)
def test_deadline_of_an_item(stream, stream_deadline, timeout, counts):
    """The item's timeout from its arrival, within the stream's deadline and the server's maximum."""
    stream.open(deadline=stream_deadline)
    stream.send(1, timeout=timeout)

    assert stream.house.scheduler.admitted[0].deadline == counts


def test_duplicate_id_in_flight_fails_the_stream(stream):
    """Two items of one id in flight can't be told apart: the stream fails and what was accepted is cancelled."""
    stream.open()
    stream.send(1, 2)

    assert failed(stream.send(3, 2)) == (3, "INVALID_TENSOR")
    assert [request.ident for request in stream.house.scheduler.cancelled] == [1, 2, 3]
    assert stream.house.inference.in_flight() == 0


def test_id_may_be_used_again_when_answered(stream):
    """Uniqueness is asked for while in flight only."""
    stream.open()
    stream.send(1)
    stream.run(1)

    assert FAIL not in [action[0] for action in stream.send(1)]


def test_options_later_fail_the_stream(stream):
    """Options belong to the first message."""
    stream.open()
    stream.send(1)

    assert failed(stream.send(2, options=inference_pb2.StreamOptions())) == (3, "INVALID_TENSOR")


def test_too_many_items_fail_the_stream(stream):
    """1,024 items in a message pass, 1,025 don't."""
    stream.open()
    body = inference_pb2.StreamPredictRequest(items=[inference_pb2.StreamItem(id=n) for n in range(1024)])
    actions = stream.raw(body.SerializeToString())
    assert sum(len(results(action)) for action in actions if action[0] == SEND) == 1024
    body.items.add(id=5000)

    assert failed(stream.raw(body.SerializeToString())) == (3, "INVALID_TENSOR")


def test_malformed_message_fails_the_stream(stream):
    """Bytes that are no message end the stream."""
    stream.open()

    assert failed(stream.raw(b"\xff\xff")) == (3, "INVALID_TENSOR")
    assert stream.send(1) == []


def test_cancel_drops_everything(stream):
    """A cancelled stream cancels its items, and answers nothing, even if one had run already."""
    stream.open()
    stream.send(1, 2)

    assert stream.event(stream.house.stream.on_cancel, 5) == []
    assert [request.ident for request in stream.house.scheduler.cancelled] == [1, 2]
    assert stream.run(1) == []


def test_cancel_of_an_ordered_stream(stream):
    """Items that have finished and wait for their turn are not cancelled again."""
    stream.open()
    stream.send(1, 2, options=inference_pb2.StreamOptions(order=inference_pb2.RESULT_ORDER_AS_SENT))
    stream.run(2)

    stream.event(stream.house.stream.on_cancel, 5)

    assert [request.ident for request in stream.house.scheduler.cancelled] == [1]


def test_drain(stream):
    """Each stream is told once; new items are refused, accepted ones answered; new streams fail."""
    stream.open()
    stream.send(1)
    stream.house.inference.drain(2.5)
    (notice,) = stream.house.turn()
    message = inference_pb2.StreamPredictResponse.FromString(notice[2])
    assert message.drain.grace.ToMilliseconds() == 2500

    assert results(stream.send(2)[0]) == [(2, "DRAINING")]
    assert results(stream.run(1)[0]) == [(1, 8)]
    stream.house.stream.on_call((2, 99, 1, None, math.inf, Peer(0, "unix:", None), None))
    ((kind, call, failure),) = stream.house.take()
    assert (kind, call, failure.code) == (FAIL, 99, 14)


def test_results_of_one_turn_are_cut_into_messages_of_bounded_size(stream):
    """Many large results go out as several messages, none lost and none twice."""
    stream.house.inference.streams.coalesced = 120
    stream.open()
    stream.send(1, 2, 3, 4)

    sent = [action for action in stream.run(1, 2, 3, 4) if action[0] == SEND]

    assert [ident for action in sent for ident, _ in results(action)] == [1, 2, 3, 4]
    assert len(sent) > 1
    assert all(len(action[2]) <= 120 for action in sent)


def test_results_that_are_made_together_are_cut_into_messages_of_bounded_size(make_house, request_for):
    """The same for those of many items that are alike; no message is one that the wire would not send."""
    stream = Stream(make_house(max_send_bytes=200), request_for)
    stream.open()
    sent = []
    for begin in range(0, 30, 10):
        stream.send(*range(begin, begin + 10), timeout=5)
        waiting, stream.house.scheduler.admitted = stream.house.scheduler.admitted, []
        stream.house.scheduler.run_together(*waiting)
        sent += [action for action in stream.house.turn() if action[0] == SEND]

    assert [ident for action in sent for ident, _ in results(action)] == list(range(30))
    assert len(sent) > 3
    assert all(len(action[2]) <= 200 for action in sent)


def test_response_over_the_limit_is_an_item_error(make_house, request_for):
    """A result that the wire could not send fails its item, not the stream."""
    stream = Stream(make_house(max_send_bytes=100), request_for)
    stream.open()
    message = inference_pb2.StreamPredictRequest()
    message.items.add(id=1, request=request_for([1.0] * 40))
    stream.raw(message.SerializeToString())

    assert results(stream.run(1)[0]) == [(1, "BYTES_LIMIT")]


def test_engine_outputs_that_break_are_an_item_error(stream, batch_of):
    """One unreadable outcome is INTERNAL for its item; the stream goes on."""
    stream.open()
    stream.send(1)
    (request,) = stream.house.scheduler.admitted

    request.succeed(None, 0, batch_of([request]))

    assert results(stream.house.turn()[0]) == [(1, "INTERNAL")]


def test_large_ids(stream):
    """Ids are 64 bits wide."""
    stream.open()
    message = inference_pb2.StreamPredictRequest()
    message.items.add(id=2**64 - 1, request=stream.request_for())
    stream.raw(message.SerializeToString())

    assert results(stream.run(2**64 - 1)[0]) == [(2**64 - 1, 8)]


def test_events_on_streams_that_are_gone(stream):
    """What comes for a stream after its end is nothing."""
    stream.open()
    stream.event(stream.house.stream.on_half_close, 4)

    assert stream.send(1) == []
    for handler, kind in ((stream.house.stream.on_cancel, 5), (stream.house.stream.on_writable, 6)):
        assert stream.event(handler, kind) == []
    stream.house.stream.on_full(CALL)
    assert stream.event(stream.house.stream.on_half_close, 4) == []


def life(house, request_for, *, ordered, refused=(), report=False):
    """All that a caller of two streams gets who sends messages of many items that are alike, a few of them refused."""
    house.scheduler.full_for = refused
    told = []
    callers = [Stream(house, request_for, call=call) for call in (4, 5)]
    options = inference_pb2.StreamOptions(order=inference_pb2.RESULT_ORDER_AS_SENT if ordered else 0)
    for caller in callers:
        told += [caller.open(), caller.send(options=options)]
    for begin in (1, 100, 126, 300, 4090, 20_000, 3_000_000):
        for caller in callers:
            message = inference_pb2.StreamPredictRequest()
            for ident in range(begin, begin + 20):
                item = message.items.add(id=ident, request=request_for([ident % 7, 1], report_timings=report))
                item.timeout.seconds = 5
            told.append(caller.raw(message.SerializeToString()))
        waiting, house.scheduler.admitted = house.scheduler.admitted, []
        assert all((request.deadline, request.rows, request.tenant) == (105.0, 1, "me") for request in waiting)
        if waiting:
            house.scheduler.run_together(*waiting[::-1])
        told.append(house.turn())
    assert house.inference.in_flight() == 0
    return told


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("refused", [(), (1, 127, 311), range(4090, 4110)])
@pytest.mark.parametrize("report", [False, True])
def test_many_items_at_once_get_what_each_would_get(make_house, request_for, monkeypatch, ordered, refused, report):
    """Byte by byte and action by action the same, whether items that are alike are taken one by one or all at once."""
    made = []
    many = ItemInference.many.__func__
    monkeypatch.setattr(
        ItemInference, "many", classmethod(lambda cls, *args, **kw: made.append(1) or many(cls, *args, **kw))
    )
    at_once = life(make_house(), request_for, ordered=ordered, refused=refused, report=report)
    assert len(made) == (
        0 if report else 10
    )  # Not the first two, nor where ids grow longer; those with timings follow no template.
    monkeypatch.setattr(uptake, "ALIKE", 10_000)
    monkeypatch.setattr(ItemInference, "together", False)
    made.clear()
    assert life(make_house(), request_for, ordered=ordered, refused=refused, report=report) == at_once
    assert not made


def test_many_items_at_once_when_the_model_has_changed(make_house, request_for):
    """What was found out about earlier messages counts as long as the model's name means the same."""
    house = make_house()
    caller = Stream(house, request_for)
    caller.open()
    for begin, version in ((0, 7), (10, 7), (20, 7), (30, 8), (40, 8), (50, 8)):
        if version != house.served.version:
            house.served = house.catalogue.models["double"] = replace(house.served, version=version)
        caller.send(*range(begin, begin + 10), timeout=5)
        waiting, house.scheduler.admitted = house.scheduler.admitted, []
        house.scheduler.run_together(*waiting)
        (sent,) = [action for action in house.turn() if action[0] == SEND]
        message = inference_pb2.StreamPredictResponse.FromString(sent[2])
        assert [result.id for result in message.results] == list(range(begin, begin + 10))
        assert {result.response.version for result in message.results} == {version}


@pytest.mark.parametrize("flaw", ["duplicate", "in flight", "timeout", "draining"])
def test_many_items_of_which_one_is_wrong_are_taken_one_by_one(make_house, request_for, monkeypatch, flaw):
    """What fails, fails as it would without the short cut."""

    def told():
        house = make_house()
        caller = Stream(house, request_for)
        caller.open()
        caller.send(*range(10), timeout=5)
        caller.send(*range(10, 20), timeout=5)
        if flaw == "draining":
            house.inference.drain(1.0)
        ids = [*range(30, 39), 30 if flaw == "duplicate" else 15 if flaw == "in flight" else 39]
        got = caller.send(*ids, timeout=-1 if flaw == "timeout" else 5)
        return got, caller.admitted

    at_once = told()
    monkeypatch.setattr(uptake, "ALIKE", 10_000)
    assert told() == at_once
