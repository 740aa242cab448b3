"""Small hand-written stand-ins for the parts around the services, and shorthands for events and messages."""

import math
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from forebay.v1 import inference_pb2
from forebay_server import errors
from forebay_server.config.tree import ModelConfig
from forebay_server.scheduling.request import Batch, Part, Reason, State
from forebay_server.services.inference import InferenceService
from forebay_server.services.intake import Intake
from forebay_server.tensors import FREE, DataType, ModelSpec, TensorSpec
from forebay_server.wire.port import Peer

READY = 3


class Clock:
    """Monotonic seconds that move when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Outputs:
    """What an engine gave, as the collator gives it out."""

    def __init__(self, *arrays):
        self.arrays = arrays

    def data(self, index, start, rows, shapes=None):
        rows_of = self.arrays[index][start : start + rows]
        return rows_of.tobytes(), rows_of.shape

    def small(self, index):
        array = self.arrays[index]
        return array.tobytes(), array[:1].nbytes, array[:1].shape


class Scheduler:
    """Admits what it is told to, and runs what the test tells it to."""

    def __init__(self):
        self.admitted = []
        self.cancelled = []
        self.lanes = []
        self.refuse = None
        self.full_for = ()
        self.lost = None

    def outage(self, key):
        return self.lost

    def lane(self, key, bucket, parameters):
        if isinstance(self.refuse, errors.ModelNotFound):
            return self.refuse
        self.lanes.append((key, bucket, parameters))
        return SimpleNamespace(key=key, bucket=bucket, parameters=parameters)

    def admit(self, request, now):
        if self.refuse is not None:
            return self.refuse
        if request.ident in self.full_for:
            return errors.QueueFull("full", retry_after=1.0)
        assert request.state == State.NEW
        request.state = State.WAITING
        self.admitted.append(request)
        return None

    def admit_alike(self, requests, now):
        refused = [(request, self.admit(request, now)) for request in requests]
        return [(request, error) for request, error in refused if error is not None]

    def cancel(self, request, now):
        self.cancelled.append(request)
        return True

    def run(self, *requests):
        """Runs requests as one batch whose output is twice the first input plus the row's place in the batch."""
        batch = make_batch(requests)
        for place, request in enumerate(requests):
            values = np.frombuffer(request.inputs[0], "<f4").reshape(request.rows, -1)
            request.succeed(Outputs(values * 2 + place), 0, batch)

    def run_together(self, *requests):
        """As `run`, and results are handed out as the runner does it."""
        batch = make_batch(requests)
        values = np.concatenate([np.frombuffer(request.inputs[0], "<f4").reshape(1, -1) for request in requests])
        outputs = Outputs(values * 2 + np.arange(len(requests), dtype="<f4")[:, None])
        done = [(request, place, None) for place, request in enumerate(requests)]
        if requests[0].together:
            done = requests[0].succeed_all(done, outputs)
        for request, place, _ in done:
            request.succeed(outputs, place, batch)


def make_batch(requests):
    rows = sum(request.rows for request in requests)
    parts = [Part(request, 0, request.rows) for request in requests]
    batch = Batch(0, requests[0].lane, parts, rows, rows + 1, Reason.IDLE, None, 100.5)
    batch.collated, batch.finished, batch.completed = 100.75, 101.75, 101.8125
    return batch


@dataclass
class Served:
    """One version of a model."""

    spec: ModelSpec
    name: str = "double"
    version: int = 7
    state: int = READY
    state_message: str = ""
    config: ModelConfig = field(default_factory=ModelConfig)
    engine_name: str = "synthetic"
    instances: int = 2
    run_mode: int = 1
    max_batch_size: int = 32
    best_batch_size: int = 16
    unbatched_because: str = ""
    ready_time: float | None = 1700000000.5
    pad_to: tuple | None = None
    labels: tuple = ()

    @property
    def key(self):
        return (self.name, self.version)

    def bucket_of(self, shapes):
        if self.pad_to is not None:
            return self.pad_to
        return shapes


class Catalogue:
    """Models by name, one version each."""

    def __init__(self, *models):
        self.models = {served.name: served for served in models}

    def resolve(self, name, version):
        if name not in self.models:
            raise errors.ModelNotFound(f"no model is called {name!r}")
        served = self.models[name]
        if version not in ("", str(served.version)):
            raise errors.VersionNotFound(f"there is no version {version!r}")
        if served.state != READY:
            raise errors.ModelLoading("being loaded") if served.state < READY else errors.ModelFailed("failed")
        return served

    def names(self):
        return list(self.models)

    def versions(self, name):
        return [self.models[name]] if name in self.models else []

    def labels(self, name):
        return dict.fromkeys(self.models[name].labels, self.models[name].version)

    def default_version(self, name):
        return self.models[name].version if self.models[name].state == READY else 0


def double_spec(*, width=2):
    return ModelSpec(
        inputs=(TensorSpec(name="x", data_type=DataType.FP32, shape=(FREE, width)),),
        outputs=(TensorSpec(name="y", data_type=DataType.FP32, shape=(FREE, width)),),
        batched=True,
    )


class House:
    """An inference service in small surroundings."""

    def __init__(self, max_response=sys.maxsize, **options):
        self.clock = Clock()
        self.outbox = []
        self.events = []
        self.scheduler = Scheduler()
        self.served = Served(spec=double_spec())
        self.catalogue = Catalogue(self.served)
        self.intake = Intake(
            self.catalogue,
            self.scheduler,
            clock=self.clock,
            default_deadline=30.0,
            max_deadline=60.0,
            trusted=(False, True),
            tenant_key="X-Tenant",
            max_response=max_response,
            events=self.events,
        )
        self.inference = InferenceService(self.intake, self.outbox, **options)
        endpoints = self.inference.service().endpoints
        self.unary, self.stream = endpoints

    def take(self):
        """What is in the outbox, which is emptied."""
        actions = list(self.outbox)
        self.outbox.clear()
        return actions

    def turn(self):
        """Ends a turn of the dispatcher; what is in the outbox then, which is emptied."""
        self.inference.flush()
        return self.take()

    def predict(self, call, message, *, deadline=math.inf, peer=None, metadata=None):
        body = message if isinstance(message, bytes) else message.SerializeToString()
        self.unary.on_call((1, call, 0, body, deadline, peer or Peer(0, "unix:", None), metadata))


@pytest.fixture
def house():
    return House()


@pytest.fixture
def make_house():
    return House


@pytest.fixture
def make_served():
    return Served


@pytest.fixture
def make_catalogue():
    return Catalogue


@pytest.fixture
def batch_of():
    return make_batch


@pytest.fixture
def make_outputs():
    return Outputs


@pytest.fixture
def request_for():
    """Makes a valid request for the model `double`."""

    def make(values=(1.0, 2.0), **fields):
        message = inference_pb2.PredictRequest(**{"model": "double", **fields})
        data = np.asarray(values, "<f4").reshape(-1, 2)
        message.inputs.add(name="x", data_type=12, shape=data.shape, data=data.tobytes())
        return message

    return make
