"""Calls that take several steps, such as a list that comes in pages; `_job_plans` has those about jobs.

What is safe to send again is sent again while the server is UNAVAILABLE: after a pause that grows from 0.1 s to 2 s,
with jitter, so that the callers of a server that comes back do not all come at once.
"""

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from forebay.v1 import inference_pb2, model_service_pb2
from forebay_client._core import Inputs, RequestBuilder, only_input
from forebay_client._exceptions import NotFound, Unavailable
from forebay_client._models import (
    Model,
    ModelStatistics,
    ServerStatistics,
    read_model,
    read_server,
    read_statistics,
)
from forebay_client._results import Health
from forebay_client._retries import Pauses
from forebay_client._steps import Call, Chance, Clock, Pause, Plan

OnlyInputs = dict[tuple[str, str], str]
"""The names of only inputs that were asked for, by model and version."""

Ask = Callable[[str, Message, float], Plan[Any]]
"""`once` or `insist`."""


# --- Single calls -------------------------------------------------------------------------------------------------


def once(method: str, request: Message, deadline: float) -> Plan[Any]:
    """Makes one call."""
    return (yield Call(method, request, deadline))


def insist(
    method: str,
    request: Message,
    deadline: float,
    *,
    clock: Clock = time.monotonic,
    chance: Chance = random.random,
) -> Plan[Any]:
    """Makes a call that does no harm if it is made twice, and makes it again while the server is UNAVAILABLE.

    Raises:
        ForebayError: It failed, or the server was UNAVAILABLE for all of the deadline.
    """
    until = clock() + deadline
    pauses = Pauses(chance)
    while True:
        try:
            return (yield Call(method, request, max(until - clock(), 1e-3)))  # a pause may have been a little too long
        except Unavailable as error:
            pause = pauses.next(error.retry_delay)
            if clock() + pause >= until:
                raise
        yield Pause(pause)


# --- Models -------------------------------------------------------------------------------------------------------


def models(deadline: float) -> Plan[list[Model]]:
    """All models, over all pages."""
    found: list[Model] = []
    request = model_service_pb2.ListModelsRequest()
    while True:
        page: model_service_pb2.ListModelsResponse = yield Call("ListModels", request, deadline)
        found.extend(map(read_model, page.models))
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def model(name: str, deadline: float, ask: Ask = once) -> Plan[Model]:
    """One model."""
    response = yield from ask("GetModel", model_service_pb2.GetModelRequest(model=name), deadline)
    return read_model(response.model)


def statistics(name: str, deadline: float) -> Plan[list[ModelStatistics]]:
    """What the versions of a model, or of all, have done."""
    response = yield Call("GetStatistics", model_service_pb2.GetStatisticsRequest(model=name), deadline)
    return list(map(read_statistics, response.statistics))


def server_statistics(deadline: float) -> Plan[ServerStatistics]:
    """What the server as a whole and all versions have done."""
    request = model_service_pb2.GetStatisticsRequest(buckets=True)
    return read_server((yield Call("GetStatistics", request, deadline)))


def health(service: str, deadline: float) -> Plan[Health]:
    """The health of a service; one that nobody knows is a state, not an error."""
    try:
        response = yield Call("Check", health_pb2.HealthCheckRequest(service=service), deadline)
    except NotFound:
        return Health.SERVICE_UNKNOWN
    return Health(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


def build(
    builder: RequestBuilder, inputs: Inputs, names: OnlyInputs, deadline: float, ask: Ask = once
) -> Plan[inference_pb2.PredictRequest]:
    """A request; asks for the name of the model's only input if the inputs have none and nobody asked before."""
    if isinstance(inputs, Mapping):
        return builder.build(inputs)
    key = (builder.model, builder.version)
    name = names.get(key)
    if name is None:
        name = names[key] = only_input((yield from model(builder.model, deadline, ask)), builder.version)
    return builder.build({name: inputs})
