"""The short cut past parsing: what takes it, and that it gives what parsing gives."""

import numpy as np
import pytest
from forebay.v1 import inference_pb2
from forebay_server.services import templates
from forebay_server.services.templates import Templates
from forebay_server.wire.port import FAIL
from hypothesis import given, settings
from hypothesis import strategies as st


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


@pytest.mark.parametrize("field", ["request_id", "outputs", "readable", "report_timings", "priority"])
def test_fields_after_the_data_take_the_usual_way(house, request_for, field):
    """What comes after the data may change, so there is no template."""
    value = {"request_id": "mine", "outputs": ["y"], "readable": True, "report_timings": True, "priority": 1}[field]
    for call in range(4):
        house.predict(call, request_for(**{field: value}))

    assert learned(house) == 0
    assert len(house.scheduler.admitted) == 4


def test_end_of_the_message_that_only_looks_like_the_data(request_for):
    """Data whose bytes happen to be those of the fields after it does not fool anybody."""
    tensor = b"\x0a\x01x\x10\x0c\x1a\x02\x01\x02\x22\x08"
    data = b"\x2a\x06AAAAAA"  # a request id, by its bytes
    body = b"\x0a\x06double" + b"\x1a" + bytes([len(tensor) + 8]) + tensor + data + data
    message = inference_pb2.PredictRequest.FromString(body)
    assert (message.inputs[0].data, message.request_id) == (data, "AAAAAA")
    assert body.endswith(data)

    assert not Templates().learn(body, data, message, None, None)


def test_reloaded_model_clears_the_templates(house, request_for, make_served):
    """A name that means another version takes the usual way again."""
    for call in range(3):
        house.predict(call, request_for())
    house.catalogue.models["double"] = make_served(spec=house.served.spec, version=8)

    house.predict(4, request_for())

    assert house.scheduler.admitted[3].lane.key == ("double", 8)
    assert learned(house) == 0


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
    assert made == (rest == b"" and order[-1] == b"\x22\x10")
    template = learner.match(body_of(after))
    if template is not None:
        assert (
            body_of(after)[template.offset :] == inference_pb2.PredictRequest.FromString(body_of(after)).inputs[0].data
        )
