"""Every expression of the dashboards and alerts, against what a real Prometheus has scraped from a real server."""

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest

from forebay_server.telemetry.names import METRICS
from tests.deploy.conftest import DEPLOYED, REPOSITORY
from tools import dashboards

DASHBOARDS = sorted((REPOSITORY / "deploy" / "grafana").glob("*.json"))
ALERTS = re.findall(r"^ +- alert: (\w+)$", (DEPLOYED / "forebay.rules.yml").read_text(), re.MULTILINE)

_COMPARISON = re.compile(r"^(?P<value>.*) (==|>|<) [\d.]+$", re.DOTALL)

GPU = {metric.prometheus for metric in METRICS if metric.name.startswith("forebay.gpu.")}
"""What is there on machines with GPUs only: the second server is on one."""


def rules_of(prometheus) -> list[dict]:
    """The rules that it runs."""
    groups = prometheus.get("/api/v1/rules")["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions(path: Path) -> list[str]:
    """Those of a dashboard, its variables filled in."""
    panels = json.loads(path.read_text())["panels"]
    return [
        target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$model", ".*")
        for panel in panels
        for target in panel.get("targets", ())
    ]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_show_something(prometheus, path):
    """Each expression gives series."""
    found = expressions(path)
    assert found
    assert [expression for expression in found if not prometheus.query(expression)] == []


def test_an_expression_that_shows_nothing_is_found(prometheus):
    """Positive control."""
    assert prometheus.query("rate(forebay_request_total[1m])") == []


def test_alerts_have_something_to_look_at(prometheus):
    """The value that each alert compares is there."""
    empty = []
    for rule in rules_of(prometheus):
        match = _COMPARISON.match(rule["query"])
        assert match is not None, rule["query"]
        if not prometheus.query(match["value"]):
            empty.append(rule["name"])
    assert empty == []


def test_prometheus_runs_the_rules(prometheus):
    """All of them, without an error."""
    assert {rule["name"]: rule["health"] for rule in rules_of(prometheus)} == dict.fromkeys(ALERTS, "ok")


def test_a_scrape_is_complete_and_well_formed(prometheus, server, promtool):
    """promtool has nothing to say, all metrics are there, and Prometheus took them."""
    with urllib.request.urlopen(f"http://{server.addresses['prometheus']}/metrics", timeout=5) as response:
        text = response.read().decode()
    checked = promtool("check", "metrics", text=text)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    there = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert there == {metric.prometheus for metric in METRICS} - GPU
    assert [up["value"][1] for up in prometheus.query('up{job="forebay"}')] == ["1", "1"]
    assert {series["metric"]["gpu"] for series in prometheus.query("forebay_gpu_memory_used_bytes")} == {"0", "1"}


def test_prometheus_keeps_exemplars(prometheus):
    """Durations of requests lead to traces: an id of 32 digits, on the series of the model and the method."""
    found = prometheus.get(
        "/api/v1/query_exemplars",
        query='forebay_request_duration_seconds_bucket{model="good"}',
        start=str(time.time() - 600),
        end=str(time.time()),
    )["data"]
    assert {each["seriesLabels"]["method"] for each in found} >= {"Predict", "StreamPredict"}
    for each in found:
        for exemplar in each["exemplars"]:
            assert re.fullmatch(r"[0-9a-f]{32}", exemplar["labels"]["trace_id"])
            assert float(exemplar["value"]) <= float(each["seriesLabels"]["le"])


def test_promtool_finds_fault(promtool):
    """Positive control."""
    assert promtool("check", "metrics", text="# TYPE forebay_a counter\nforebay_a 1\n").returncode != 0


def test_rules_are_well_formed_and_fire(promtool, tmp_path):
    """`promtool check`, and the unit tests of the rules."""
    assert promtool("check", "rules", str(DEPLOYED / "forebay.rules.yml")).returncode == 0
    assert promtool("check", "config", str(DEPLOYED / "prometheus.yml")).returncode == 0
    tested = promtool("test", "rules", str(DEPLOYED / "forebay.rules.test.yml"))
    assert tested.returncode == 0, tested.stdout + tested.stderr
    fired = re.findall(r"alertname: (\w+)\n +exp_alerts:\n +- ", (DEPLOYED / "forebay.rules.test.yml").read_text())
    assert set(fired) == set(ALERTS)


def test_dashboards_are_made_from_their_source(tmp_path):
    """`python tools/dashboards.py` would change nothing."""
    dashboards.main(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        path.name: path.read_text() for path in DASHBOARDS
    }
