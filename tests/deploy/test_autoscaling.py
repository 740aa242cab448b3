"""What autoscalers ask Prometheus, asked of a real one that scrapes a real server."""

import pytest
import yaml

from tests.deploy.conftest import KUBERNETES
from tests.waiting import eventually

POD = 'instance=~".+"'  # stands for the labels that only a cluster's Prometheus has


def triggers() -> dict[str, dict]:
    """KEDA's, by name."""
    scaler = yaml.safe_load((KUBERNETES / "components" / "keda" / "scaler.yaml").read_text())
    return {each["name"]: each for each in scaler["spec"]["triggers"]}


def rules() -> dict[str, dict]:
    """The adapter's, by the name of the metric that they make."""
    found = yaml.safe_load((KUBERNETES / "components" / "hpa" / "adapter-rules.yaml").read_text())["rules"]
    return {each["name"]["as"]: each for each in found}


def asked(rule: dict) -> str:
    """The query that prometheus-adapter makes of a rule."""
    series = rule["seriesQuery"].partition("{")[0]
    query = rule["metricsQuery"].replace("<<.Series>>", series)
    return query.replace("<<.LabelMatchers>>", POD).replace("<<.GroupBy>>", "instance")


def above_zero(prometheus, query: str) -> list[dict]:
    """The series of a query, once one is above 0; a scrape that came too late leaves a moment without."""
    found: list[dict] = []

    def above() -> bool:
        found[:] = prometheus.query(query)
        return any(float(series["value"][1]) > 0 for series in found)

    eventually(above, query, 30)
    return found


@pytest.mark.parametrize("name", ["busy", "queue"])
def test_keda_gets_one_number(prometheus, name):
    """A value between 0 and what can be, from a server with traffic."""
    query = triggers()[name]["metadata"]["query"].replace('namespace="forebay"', POD)
    (series,) = above_zero(prometheus, query)
    assert float(series["value"][1]) < 10


@pytest.mark.parametrize("name", ["busy", "queue"])
def test_keda_gets_zero_where_nobody_calls(prometheus, name):
    """No series, or NaN, would be an error to KEDA, and the number of replicas would stay as it is."""
    query = triggers()[name]["metadata"]["query"].replace('namespace="forebay"', 'instance="nobody"')
    (series,) = prometheus.query(query)
    assert float(series["value"][1]) == 0
    quiet = triggers()["queue"]["metadata"]["query"].replace('namespace="forebay"', 'model="other"')
    (series,) = prometheus.query(quiet)
    assert float(series["value"][1]) >= 0


@pytest.mark.parametrize("name", ["forebay_engine_busy", "forebay_queue_seconds"])
def test_the_adapter_gets_one_number_for_each_pod(prometheus, server, name):
    """Grouped by what identifies the pod; another server is scraped, too."""
    found = above_zero(prometheus, asked(rules()[name]))
    assert [list(series["metric"]) for series in found] == [["instance"]] * len(found)
    (own,) = [series for series in found if series["metric"]["instance"] == server.addresses["prometheus"]]
    assert 0 < float(own["value"][1]) < 10


def test_both_autoscalers_ask_for_the_same():
    """The thresholds are one decision."""
    scaler = yaml.safe_load((KUBERNETES / "components" / "hpa" / "scaler.yaml").read_text())
    targets = {
        each["pods"]["metric"]["name"]: int(each["pods"]["target"]["averageValue"].removesuffix("m")) / 1000
        for each in scaler["spec"]["metrics"]
    }
    assert set(targets) == set(rules())
    assert targets == {
        "forebay_engine_busy": float(triggers()["busy"]["metadata"]["threshold"]),
        "forebay_queue_seconds": float(triggers()["queue"]["metadata"]["threshold"]),
    }
    keda = yaml.safe_load((KUBERNETES / "components" / "keda" / "scaler.yaml").read_text())["spec"]
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == scaler["spec"]["behavior"]
    assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (
        scaler["spec"]["minReplicas"],
        scaler["spec"]["maxReplicas"],
    )
