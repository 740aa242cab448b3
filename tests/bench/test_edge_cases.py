"""What stands between callers and the server, in the bench: that it is really there while it is measured."""

import importlib.util

import pytest

from bench import edge_cases
from bench.errors import BenchError

pytestmark = [
    pytest.mark.loadgen,
    pytest.mark.native,
    pytest.mark.skipif(importlib.util.find_spec("forebay_native") is None, reason="native front end not installed"),
]


def test_the_sidecar_is_measured_beside_the_same_server_without(loadgen, bench_of):
    """Every answer is right on both ways, and what Envoy adds is their difference."""
    samples = {sample.load: sample.metrics for sample in edge_cases.sidecar(bench_of(seconds=0.3), "forebay", 0)}
    assert list(samples) == [
        "direct, 1 in flight", "sidecar, 1 in flight", "1 in flight",
        "direct, 32 in flight", "sidecar, 32 in flight", "32 in flight",
    ]  # fmt: skip
    for in_flight in ("1 in flight", "32 in flight"):
        direct, through, cost = (samples[f"{way}{in_flight}"] for way in ("direct, ", "sidecar, ", ""))
        assert direct["failures"] == through["failures"] == 0
        assert direct["rps"] > 0
        assert through["rps"] > 0
        assert cost["added_p50_ms"] == through["p50_ms"] - direct["p50_ms"]


def test_faults_are_there_while_others_are_measured(loadgen, bench_of):
    """The case itself fails if the proxy made no bad connections; the others' calls are all right."""
    samples = list(edge_cases.faults(bench_of(seconds=1.0), "forebay", 1))
    assert [sample.load for sample in samples] == ["beside faults", "alone"]
    assert all(sample.metrics["failures"] == 0 for sample in samples)


def test_faults_that_did_not_come_about_are_an_error(bench_of):
    """Nothing was measured then: here there is no server that they could go to."""
    with (
        pytest.raises(BenchError, match="connections of the kind slow"),
        edge_cases._faults(bench_of(seconds=0), "127.0.0.1:1"),
    ):
        pass
