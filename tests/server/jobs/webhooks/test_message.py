"""What a message says."""

import json

import pytest

from forebay_server.jobs.states import FINAL, JobState
from forebay_server.jobs.webhooks.message import body, message_id
from tests.server.jobs.webhooks.conftest import make_job


def test_the_body():
    """All that a receiver needs to ask for the result, and nothing of the result itself."""
    assert json.loads(body(make_job())) == {
        "type": "job.succeeded",
        "timestamp": "2023-11-14T22:13:22.500000Z",
        "data": {
            "id": "00000000000000000000000000000001",
            "state": "SUCCEEDED",
            "model": "digits",
            "version": 3,
            "attempt": 2,
            "request_id": "order-7",
            "create_time": "2023-11-14T22:13:20.250000Z",
            "end_time": "2023-11-14T22:13:22.500000Z",
        },
    }


@pytest.mark.parametrize("state", sorted(FINAL))
def test_the_type_is_the_state(state):
    """Each final state has a type, also when it comes from the store as a plain number."""
    found = json.loads(body(make_job(state=int(state))))
    assert (found["type"], found["data"]["state"]) == (f"job.{JobState(state).name.lower()}", JobState(state).name)


def test_every_try_is_the_same():
    """The id and the body depend on the job alone; the id has no dot, which the signature separates by."""
    assert body(make_job()) == body(make_job())
    assert message_id(make_job()) == "msg_00000000000000000000000000000001"


def test_the_body_is_ascii():
    """Whatever callers call things, no receiver has to guess an encoding."""
    content = body(make_job(request_id='ü"\n\U0001f600', model="数字"))
    assert content.isascii()
    assert json.loads(content)["data"]["request_id"] == 'ü"\n\U0001f600'
