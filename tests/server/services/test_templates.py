"""The short cut past parsing: what takes it, and that it gives what parsing gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.v1 import inference_pb2
from forebay_server.services import templates
from forebay_server.services.templates import Templates
from forebay_server.wire.port import FAIL


def told(request):
    """All of a request but its owner's business."""
    names = ("lane", "rows", "nbytes", "deadline", "inputs", "tenant", "priority", "shapes", "parameters", "report")
    return {name: getattr(request, name) for name in (*names, "encoder", "tail")}


def learned(house):
    return sum(len(alike) for alike in house.intake._templates._by_length.values())


def test_second_message_of_a_kind_makes_a_template(house, request_for):
    """Two alike are parsed; the third is cut out, and becomes the request that parsing would make."""
    for call, values in enumerate(([1, 2], [3, 4], [5, 6])):
        house.predict(call, request_for(values, priority=0, report_timings=False))
        assert learned(house) == min(call, 1)

    third = house.scheduler.admitted[2]
    assert third.inputs == [np.array([5, 6], "<f4").tobytes()]
    again = house.scheduler.admitted[1]
    assert {**told(third), "inputs": None} == {**told(again), "inputs": None}


def test_many_messages_follow_a_template_up_to_the_first_that_does_not(house, request_for):
    """Another length, another beginning, an id of another length or that is no ASCII: there it ends."""
    for call in range(2):
        house.predict(call, request_for([call, call], request_id="id-1"))
    bodies = [request_for([1, place], request_id=f"id-{place}").SerializeToString() for place in range(3)]
    template = house.intake.match(bodies[0])
    others = [request_for([1, 2, 3, 4], request_id="id-3"), request_for([1, 2], request_id="id-33")]
    others += [request_for([1, 2], request_id="äb-"), request_for([1, 2], model="doubls", request_id="id-3")]

    assert template.leading(bodies) == 3
    assert template.leading([]) == 0
    for other in others:
        assert template.leading([*bodies[:2], other.SerializeToString(), bodies[2]]) == 2


def test_request_ids_are_echoed(house, request_for):
    """Ids of one length share a template; each is echoed as it was sent."""
    ids = ["id-1", "id-2", "id-3", "id-4", "longer-id", "longer-ie", "longer-if", "äb-4"]
    for call, name in enumerate(ids):
        house.predict(call, request_for(request_id=name))
    assert learned(house) == 2

    house.scheduler.run(*house.scheduler.admitted)

    answers = [inference_pb2.PredictResponse.FromString(body) for _, _, body in house.take()]
    assert [answer.request_id for answer in answers] == ids
    assert [len(answer.outputs[0].data) for answer in answers] == [8] * 8


def test_stream_items_follow_templates(house, request_for):
    """Items of a kind that is known are cut out as well, and become the same requests."""
    house.stream.on_call((2, 4, 1, None, 150.0, None, None))
    for turn in range(4):
        message = inference_pb2.StreamPredictRequest()
        for item in range(3):
            message.items.add(id=10 * turn + item, request=request_for([turn, item]))
        house.stream.on_message((3, 4, 1, message.SerializeToString(), 150.0, None, None))

    assert learned(house) == 1
    assert [request.ident for request in house.scheduler.admitted] == [0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32]
    for request in house.scheduler.admitted:
        values = np.frombuffer(request.inputs[0], "<f4").tolist()
        assert values == [request.ident // 10, request.ident % 10]
        assert request.deadline == 150.0


def test_same_length_of_another_kind(house, request_for):
    """A message as long as the template but different is parsed, and judged by its own fields."""
    for call in range(3):
        house.predict(call, request_for())

    other = request_for()
    other.inputs[0].name = "z"
    house.predict(9, other)

    assert [action[:2] for action in house.take()] == [(FAIL, 9)]
    assert len(house.scheduler.admitted) == 3


def test_data_of_another_length(house, request_for):
    """A body whose data is cut short is not taken for a shorter message."""
    for call in range(3):
        house.predict(call, request_for())

    house.predict(9, request_for().SerializeToString()[:-1])

    assert [action[:2] for action in house.take()] == [(FAIL, 9)]


@pytest.mark.parametrize("field", ["outputs", "readable", "report_timings", "priority"])
def test_fields_after_the_data_take_the_usual_way(house, request_for, field):
    """What comes after the data may change, so there is no template."""
    value = {"outputs": ["y"], "readable": True, "report_timings": True, "priority": 1}[field]
    for call in range(4):
        house.predict(call, request_for(**{field: value}))

    assert learned(house) == 0
    assert len(house.scheduler.admitted) == 4


@pytest.mark.parametrize("ending", [b"\x30\x01" * 4, b"\x2a\x06AAAAAA"])
def test_end_of_the_message_that_only_looks_like_the_data(ending):
    """Fields after the data that have the very same bytes are not taken for it."""
    tensor = b"\x0a\x01x\x10\x0c\x1a\x02\x01\x02\x22\x08"
    before = b"\x0a\x06double" + b"\x1a" + bytes([len(tensor) + 8]) + tensor
    body = before + ending + ending
    message = inference_pb2.PredictRequest.FromString(body)
    assert message.inputs[0].data == ending

    learner = Templates()
    learner.learn(body, ending, message, None, None)

    template = learner.match(body)
    assert (template is None) == (not message.request_id)
    if template is not None:
        assert template.prefix == before


def test_request_id_inside_the_tensor():
    """Numbers after the data have the tag of a request id; they are part of the tensor, and there is no template."""
    tensor = b"\x0a\x01x\x10\x0c\x1a\x02\x01\x02\x22\x08" + b"12345678" + b"\x2a\x08ABCDEFGH"
    body = b"\x2a\x08ABCDEFGH\x1a" + bytes([len(tensor)]) + tensor
    message = inference_pb2.PredictRequest.FromString(body)
    assert (message.request_id, message.inputs[0].data, len(message.inputs[0].numbers)) == ("ABCDEFGH", b"12345678", 1)

    assert not Templates().learn(body, b"12345678", message, None, None)


def test_reloaded_model_clears_the_templates(house, request_for, make_served):
    """A name that means another version takes the usual way again."""
    for call in range(3):
        house.predict(call, request_for())
    house.catalogue.models["double"] = make_served(spec=house.served.spec, version=8)

    house.predict(4, request_for())

    assert house.scheduler.admitted[3].lane.key == ("double", 8)


def test_number_of_templates_is_bounded(house, request_for, monkeypatch):
    """Ever new lengths make nothing grow."""
    monkeypatch.setattr(templates, "MAX_LENGTHS", 3)
    for rows in range(1, 20):
        for call in range(3):
            house.predict(call, request_for([1.0] * (2 * rows)))

    assert 1 <= learned(house) <= 3
    assert len(house.scheduler.admitted) == 57


def test_kinds_of_one_length_are_bounded(house, request_for):
    """Of messages of the same length a few kinds are remembered."""
    for version in ("", "7"):
        for priority in (0, 1):
            for _ in range(3):
                house.predict(1, request_for(version=version, priority=priority))

    assert all(len(alike) <= 4 for alike in house.intake._templates._by_length.values())


@settings(max_examples=200, deadline=None)
@given(
    before=st.binary(min_size=16, max_size=16),
    after=st.binary(min_size=16, max_size=16),
    rest=st.sampled_from([b"", b"\x2a\x00", b"\x40\x01", b"\x0a\x06double"]),
    order=st.permutations([b"\x0a\x01x", b"\x10\x0c", b"\x1a\x02\x02\x02", b"\x22\x10"]),
)
def test_a_template_is_right_for_any_data(before, after, rest, order):
    """Whatever the order of the fields: if there is a template, its cut is what protobuf parses from any other data."""

    def body_of(data):
        tensor = b"".join(part + data if part == b"\x22\x10" else part for part in order)
        return b"\x0a\x06double\x1a" + bytes([len(tensor)]) + tensor + rest

    learner = Templates()
    body = body_of(before)
    message = inference_pb2.PredictRequest.FromString(body)
    made = learner.learn(body, before, message, None, None)
    assert made is (rest == b"" and order[-1] == b"\x22\x10")
    template = learner.match(body_of(after))
    if template is not None:
        assert (
            body_of(after)[template.offset :] == inference_pb2.PredictRequest.FromString(body_of(after)).inputs[0].data
        )
