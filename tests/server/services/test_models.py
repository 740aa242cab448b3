"""The model service, driven through its endpoints."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from forebay.v1 import inference_pb2, job_pb2, model_pb2, model_service_pb2, tensor_pb2
from forebay_server.config.tree import BatchingConfig, ModelConfig
from forebay_server.scheduling.request import Reason
from forebay_server.services.models import ModelService
from forebay_server.services.statistics import Accounts, JobFigures, ServerFigures
from forebay_server.services.status import CODE_NAMES
from forebay_server.telemetry.histogram import SMALLEST
from forebay_server.telemetry.statistics import Statistics
from forebay_server.tensors import FREE, DataType, ModelSpec, TensorSpec
from forebay_server.wire.port import FAIL, RESPOND

SPEC = ModelSpec(
    inputs=(TensorSpec(name="x", data_type=DataType.FP32, shape=(FREE, 64)),),
    outputs=(TensorSpec(name="y", data_type=DataType.INT64, shape=(FREE,)),),
    batched=True,
)


class Models:
    """A caller."""

    def __init__(self, catalogue):
        self.outbox = []
        self.statistics = Statistics(CODE_NAMES)
        self.refreshed = 0
        points = [SimpleNamespace(bucket=((3, 224),), rows=8, seconds=0.002, corrections=4)]
        figures = SimpleNamespace(
            queued_rows=3,
            held_bytes=70,
            wait_margin=1.5,
            usable_instances=1,
            running_batches=2,
            running_since=(99.5, 99.75),
        )
        accounts = Accounts(
            {("a", 7): figures}.__getitem__, {("a", 7): points}.__getitem__, self.statistics, clock=lambda: 100.0
        )
        self.server = ServerFigures(
            started=1_700_000_000.5,
            uptime=12.25,
            release="1.2.3",
            front_end="native",
            draining=True,
            held_bytes=99,
            jobs=None,
        )
        self.service = ModelService(catalogue, accounts, lambda: self.server, self.outbox, refresh=self.refresh)
        self.endpoints = {one.method.path.rpartition("/")[2]: one for one in self.service.service().endpoints}

    def refresh(self):
        self.refreshed += 1

    def call(self, method, request=None, **fields):
        kind = getattr(model_service_pb2, f"{method}Request")
        body = request if request is not None else kind(**fields).SerializeToString()
        self.endpoints[method].on_call((1, 1, 0, body, math.inf, None, None))
        ((kind, call, value),) = self.outbox
        self.outbox.clear()
        assert call == 1
        if kind == FAIL:
            return value.code
        assert kind == RESPOND
        return getattr(model_service_pb2, f"{method}Response").FromString(value)


@pytest.fixture
def models(make_catalogue, make_served):
    served = [make_served(spec=SPEC, name=name) for name in ("b", "a", "c")]
    served[1].config = ModelConfig(batching=BatchingConfig(max_delay_ms=2.5))
    served[1].labels = ("stable",)
    served[2].spec = ModelSpec(inputs=(), outputs=(), batched=False)
    served[2].state = 4
    served[2].state_message = "no such file"
    served[2].ready_time = None
    return Models(make_catalogue(*served))


def test_get_model(models):
    """All that the catalogue knows, in the contract's terms."""
    version = model_pb2.ModelVersion(
        version=7,
        state=model_pb2.MODEL_STATE_READY,
        engine="synthetic",
        inputs=[tensor_pb2.TensorSpec(name="x", data_type=12, shape=[-1, 64])],
        outputs=[tensor_pb2.TensorSpec(name="y", data_type=9, shape=[-1])],
        batching=model_pb2.Batching(max_batch_size=32, best_batch_size=16),
        instances=2,
        run_mode=model_pb2.RUN_MODE_INLINE,
    )
    version.batching.max_delay.FromMicroseconds(2500)
    version.ready_time.FromMilliseconds(1700000000500)

    assert models.call("GetModel", model="a").model == model_pb2.Model(
        name="a", versions=[version], labels={"stable": 7}, default_version=7
    )


def test_model_that_failed_before_it_was_known(models):
    """A model without a specification is described by what there is."""
    (version,) = models.call("GetModel", model="c").model.versions

    assert (version.state, version.state_message) == (model_pb2.MODEL_STATE_FAILED, "no such file")
    assert not version.inputs
    assert not version.HasField("ready_time")


@pytest.mark.parametrize("method", ["GetModel", "GetStatistics"])
def test_unknown_model(models, method):
    """NOT_FOUND for a name that could be, INVALID_ARGUMENT for one that could not."""
    assert models.call(method, model="d") == 5
    assert models.call(method, model="../d") == 3


@pytest.mark.parametrize("method", ["ListModels", "GetModel", "GetStatistics"])
def test_malformed(models, method):
    """Bytes that are no message are INVALID_ARGUMENT."""
    assert models.call(method, b"\xff\xff") == 3


def test_list_in_pages(models):
    """Pages by name, each token where the one before ended, none after the last."""
    everything = models.call("ListModels")
    assert ([model.name for model in everything.models], everything.next_page_token) == (["a", "b", "c"], "")

    first = models.call("ListModels", page_size=2)
    second = models.call("ListModels", page_size=2, page_token=first.next_page_token)

    assert [model.name for model in first.models] == ["a", "b"]
    assert [model.name for model in second.models] == ["c"]
    assert second.next_page_token == ""


def test_bad_pages(models):
    """A negative size and a token of somebody else's are INVALID_ARGUMENT."""
    assert models.call("ListModels", page_size=-1) == 3
    for token in ("x", "????", "Ly4uLw==", "ä", "gA=="):
        assert models.call("ListModels", page_token=token) == 3


def test_statistics(models):
    """Counts, quantiles and the cost model."""
    key = ("a", 7)
    models.statistics.absorb(
        [
            ("done", key, 0, "OK", 0.001, 0.004),
            ("done", key, 0, "OK", 0.001, 0.004),
            ("done", key, 0, "CANCELLED", 0.001, 0.001),
            ("done", key, 0, "DEADLINE_EXPIRED", 0.001, 0.001),
            ("refused", key, 0, "QUEUE_FULL", ""),
            ("batch", key, 3, 2, 4, Reason.IDLE, None, 0.002),
        ]
    )

    (found,) = models.call("GetStatistics", model="a").statistics

    assert models.refreshed == 1
    assert (found.model, found.version) == key
    assert [(one.code, one.reason, one.requests) for one in found.outcomes] == [
        ("CANCELLED", "", 1),
        ("DEADLINE_EXCEEDED", "DEADLINE_EXPIRED", 1),
        ("OK", "", 2),
        ("RESOURCE_EXHAUSTED", "QUEUE_FULL", 1),
    ]
    assert list(found.batch_sizes) == [model_pb2.BatchSizeCount(rows=3, batches=1)]
    assert list(found.dispatches) == [model_pb2.DispatchCount(reason=inference_pb2.DISPATCH_REASON_IDLE, batches=1)]
    assert (found.padded_rows, found.queued_rows, found.held_bytes, found.wait_margin) == (1, 3, 70, 1.5)
    assert list(found.costs) == [model_pb2.BatchCost(bucket="3x224", rows=8, predicted_nanos=2_000_000, samples=4)]
    assert (found.request_time.count, found.request_time.sum_nanos) == (4, 10_000_000)
    assert found.request_time.p99_nanos == pytest.approx(4_000_000, rel=0.1)
    assert found.compute_time.p50_nanos == pytest.approx(2_000_000, rel=0.1)
    assert (found.state, found.engine) == (model_pb2.MODEL_STATE_READY, "synthetic")
    assert (found.instances, found.usable_instances, found.running_batches) == (2, 1, 2)
    assert found.busy_nanos == 2_000_000 + 750_000_000  # what has ended, and what runs since 0.5 s and 0.25 s
    assert not found.request_time.HasField("buckets")


def test_buckets_of_durations(models):
    """Those that were asked for hold the durations by their bounds; none outside the first and the last used one."""
    key = ("a", 7)
    models.statistics.absorb([("done", key, 0, "OK", 1e-7, SMALLEST * factor) for factor in (0.5, 1.0, 1.1, 1.5)])

    (found,) = models.call("GetStatistics", model="a", buckets=True).statistics

    buckets = found.request_time.buckets
    assert (buckets.smallest_nanos, buckets.growth) == (pytest.approx(SMALLEST * 1e9), 2**0.25)
    assert (buckets.first, list(buckets.counts)) == (0, [2, 1, 0, 1])  # 2**0.5 < 1.5 <= 2**0.75
    assert (found.compute_time.buckets.first, list(found.compute_time.buckets.counts)) == (0, [])


def test_statistics_of_the_server(models):
    """As the app tells them, whichever models were asked for."""
    server = models.call("GetStatistics", model="b").server

    assert (server.start_time.ToMilliseconds(), server.uptime_nanos) == (1_700_000_000_500, 12_250_000_000)
    assert (server.release, server.front_end, server.draining, server.held_bytes) == ("1.2.3", "native", True, 99)
    assert not server.HasField("jobs")


def test_statistics_of_jobs(models):
    """By state, in the order of the contract."""
    jobs = JobFigures(store="sqlite", available=False, states={3: 5, 1: 2})
    models.server = replace(models.server, jobs=jobs)

    found = models.call("GetStatistics").server.jobs

    assert (found.store, found.available) == ("sqlite", False)
    assert [(one.state, one.jobs) for one in found.states] == [
        (job_pb2.JOB_STATE_PENDING, 2),
        (job_pb2.JOB_STATE_SUCCEEDED, 5),
    ]


def test_statistics_of_all(models):
    """One entry for each version, by name, also for those that have done nothing."""
    found = models.call("GetStatistics").statistics

    assert [(one.model, one.version, one.wait_margin) for one in found] == [("a", 7, 1.5), ("b", 7, 1.0), ("c", 7, 1.0)]


def test_fault_of_the_catalogue_is_internal(models):
    """An exception that nobody foresaw is INTERNAL."""
    models.service._models.models["a"].engine_name = object()

    assert models.call("GetModel", model="a") == 13
