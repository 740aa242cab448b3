"""Writes the Grafana dashboards in deploy/grafana: `python tools/dashboards.py`.

A dashboard is rows of panels, and a panel is a title, a unit, what it shows, and PromQL expressions with their legends.
All is filtered by the variables `instance` and `model`. tests/deploy runs every expression against a real Prometheus.
"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1] / "deploy" / "grafana"

ON = 'instance=~"$instance"'
M = f'{ON},model=~"$model"'
NOT_OK = f'{M},code!="OK"'
RATE = "$__rate_interval"
EXEMPLARS = "forebay_request_duration_seconds_bucket"
"""What has exemplars, which Grafana shows as dots that lead to a trace."""

Panel = tuple[str, str, str, list[tuple[str, str]]]


def rate(metric: str, by: str, where: str = M) -> str:
    """A sum of rates."""
    return f"sum by ({by}) (rate({metric}{{{where}}}[{RATE}]))"


def quantile(fraction: float, metric: str, by: str = "", where: str = M) -> str:
    """A quantile of a histogram."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({fraction}, sum by ({labels}) (rate({metric}_bucket{{{where}}}[{RATE}])))"


def quantiles(metric: str, where: str = M) -> list[tuple[str, str]]:
    """The usual three."""
    return [(quantile(fraction, metric, where=where), f"p{fraction * 100:g}") for fraction in (0.5, 0.9, 0.99)]


DASHBOARDS: dict[str, tuple[str, str, dict[str, list[Panel]]]] = {
    "forebay-requests": (
        "Forebay: requests",
        "What callers see: how much, how fast, and what goes wrong.",
        {
            "Traffic": [
                ("Requests per second", "reqps", "All that has ended, by model.", [(rate("forebay_requests_total", "model"), "{{model}}")]),
                ("By method", "reqps", "Calls of Predict, items of StreamPredict, runs of jobs.", [(rate("forebay_requests_total", "method"), "{{method}}")]),
                ("Not OK", "reqps", "By status code and reason. docs/errors.md says what each means.", [(rate("forebay_requests_total", "code, reason", NOT_OK), "{{code}} {{reason}}")]),
                ("Part that is not OK", "percentunit", "Of all requests.", [(f'{rate("forebay_requests_total", "model", NOT_OK)} / {rate("forebay_requests_total", "model")}', "{{model}}")]),
            ],
            "Time": [
                ("From arrival to outcome", "s", "Accepted requests, all methods.", quantiles("forebay_request_duration_seconds")),
                ("99th percentile by model", "s", "From arrival to outcome.", [(quantile(0.99, "forebay_request_duration_seconds", "model"), "{{model}}")]),
                ("In the queue", "s", "Until the batch starts.", quantiles("forebay_queue_duration_seconds")),
                ("In the engine", "s", "A batch.", quantiles("forebay_compute_duration_seconds")),
            ],
            "Refusals": [
                ("Not accepted", "reqps", "By reason: QUEUE_FULL and DEADLINE_UNREACHABLE mean that more is asked than can be done.", [(rate("forebay_refusals_total", "reason"), "{{reason}}")]),
                ("Not accepted, by tenant", "reqps", "Tenants of the settings; all others together.", [(rate("forebay_tenant_refusals_total", "tenant", ON), "{{tenant}}")]),
                ("Deadlines missed and calls cancelled", "reqps", "DEADLINE_EXPIRED: the time was over while the request waited or ran.", [(rate("forebay_requests_total", "code, reason", f'{M},code=~"CANCELLED|DEADLINE_EXCEEDED"'), "{{code}} {{reason}}")]),
                ("Waiting", "short", "Rows in queues.", [(f"sum by (model) (forebay_queue_rows{{{M}}})", "{{model}}")]),
            ],
        },
    ),
    "forebay-scheduler": (
        "Forebay: scheduler",
        "Why requests wait: batches, engines, and how well costs are known.",
        {
            "Batches": [
                ("Batches per second, by what started them", "ops", "idle: an engine was free. full: as large as it may be. delay: it had waited long enough. deadline: a request could wait no longer. drain: at shutdown.", [(rate("forebay_batches_total", "reason"), "{{reason}}")]),
                ("Rows in a batch", "short", "Median and 99th percentile.", [(quantile(0.5, "forebay_batch_rows"), "p50"), (quantile(0.99, "forebay_batch_rows"), "p99"), (f'{rate("forebay_batch_rows_sum", "model")} / {rate("forebay_batch_rows_count", "model")}', "mean {{model}}")]),
                ("Requests in a batch", "short", "Mean.", [(f'{rate("forebay_batch_requests_sum", "model")} / {rate("forebay_batch_requests_count", "model")}', "{{model}}")]),
                ("Padding", "percentunit", "Part of the rows in engines that nobody asked for.", [(f'{rate("forebay_padding_rows_total", "model")} / ({rate("forebay_padding_rows_total", "model")} + {rate("forebay_batch_rows_sum", "model")})', "{{model}}")]),
            ],
            "Engines": [
                ("Busy", "percentunit", "Part of the time in which instances run batches. Near 1: more instances or replicas.", [(f'{rate("forebay_engine_busy_seconds_total", "model")} / sum by (model) (forebay_instances{{{M}}})', "{{model}}")]),
                ("Real over predicted time", "none", "1: the cost model is right. It decides admission and batch sizes.", quantiles("forebay_compute_prediction_ratio")),
                ("Wait margin", "none", "By how much longer than predicted requests wait; admission reckons with it.", [(f"max by (model) (forebay_queue_wait_margin_ratio{{{M}}})", "{{model}}")]),
                ("Instances, usable and all", "short", "", [(f"sum by (model) (forebay_instances_usable{{{M}}})", "usable {{model}}"), (f"sum by (model) (forebay_instances{{{M}}})", "all {{model}}")]),
            ],
            "Queues": [
                ("Rows that wait", "short", "", [(f"sum by (model) (forebay_queue_rows{{{M}}})", "{{model}}")]),
                ("Lanes", "short", "Distinct shapes and parameters with a queue of their own.", [(f"sum by (model) (forebay_queue_lanes{{{M}}})", "{{model}}")]),
                ("Bytes held", "bytes", "Of requests that wait or run; above all, of what is allowed.", [(f"sum by (model) (forebay_queue_held_bytes{{{M}}})", "{{model}}"), (f"sum (forebay_server_held_bytes{{{ON}}})", "all"), (f"sum (forebay_server_held_limit_bytes{{{ON}}})", "limit")]),
                ("Batches that run", "short", "", [(f"sum by (model) (forebay_batches_running{{{M}}})", "{{model}}")]),
            ],
        },
    ),
    "forebay-server": (
        "Forebay: server",
        "The process, its front end and its dispatcher.",
        {
            "State": [
                ("Serving", "bool", "Health of the server as a whole.", [(f"forebay_serving{{{ON}}}", "{{instance}}")]),
                ("Models ready", "short", "", [(f"sum by (model) (forebay_model_ready{{{M}}})", "{{model}}")]),
                ("Version and front end", "short", "", [(f"sum by (version, front_end) (forebay_build_info{{{ON}}})", "{{version}} {{front_end}}")]),
                ("Up since", "s", "", [(f"time() - process_start_time_seconds{{{ON}}}", "{{instance}}")]),
            ],
            "Dispatcher": [
                ("A turn", "s", "How long an event waits at most until it is seen; inline batches run in it.", quantiles("forebay_dispatcher_turn_duration_seconds", ON)),
                ("Turns per second", "ops", "", [(rate("forebay_dispatcher_turn_duration_seconds_count", "instance", ON), "{{instance}}")]),
                ("Lag at scrapes", "s", "How long the dispatcher took to come to the question for these figures.", [(f"forebay_dispatcher_lag_seconds{{{ON}}}", "{{instance}}")]),
                ("What a scrape takes of it", "s", "The longest at a time since the start.", [(f"forebay_telemetry_snapshot_seconds{{{ON}}}", "{{instance}}")]),
                ("Spans", "ops", "Exported, dropped because the collector is late, suppressed by the limit of the tail rule.", [(rate("forebay_telemetry_spans_total", "outcome", ON), "{{outcome}}")]),
            ],
            "Front end": [
                ("Connections, calls and streams", "short", "Open now.", [(f"sum (forebay_wire_connections{{{ON}}})", "connections"), (f"sum (forebay_wire_calls{{{ON}}})", "calls"), (f"sum (forebay_wire_streams{{{ON}}})", "streams")]),
                ("Bytes per second", "Bps", "Of messages.", [(rate("forebay_wire_received_bytes_total", "instance", ON), "received"), (rate("forebay_wire_sent_bytes_total", "instance", ON), "sent")]),
                ("New connections and calls; refused ones", "ops", "Many new connections: callers don't keep theirs. Refused: by the front end itself.", [(rate("forebay_wire_connections_accepted_total", "instance", ON), "connections"), (rate("forebay_wire_calls_begun_total", "instance", ON), "calls"), (rate("forebay_wire_calls_refused_total", "instance", ON), "refused")]),
                ("Other RPCs", "ops", "By code.", [(rate("forebay_calls_total", "rpc, code", ON), "{{rpc}} {{code}}")]),
            ],
            "Process": [
                ("CPU", "short", "Cores.", [(rate("process_cpu_seconds_total", "instance", ON), "{{instance}}")]),
                ("Memory", "bytes", "Resident.", [(f"process_resident_memory_bytes{{{ON}}}", "{{instance}}")]),
                ("Descriptors", "percentunit", "Part of those that may be open.", [(f"process_open_fds{{{ON}}} / process_max_fds{{{ON}}}", "{{instance}}")]),
                ("Threads", "short", "", [(f"process_threads{{{ON}}}", "{{instance}}")]),
            ],
        },
    ),
    "forebay-jobs": (
        "Forebay: jobs",
        "Durable jobs, their store, and webhooks.",
        {
            "Jobs": [
                ("Not final", "short", "Pending in the store; running on these servers.", [(f'max (forebay_jobs{{{ON},state="pending"}})', "pending"), (f'sum (forebay_jobs{{{ON},state="running"}})', "running")]),
                ("Oldest that waits", "s", "At least so old.", [(f"max (forebay_jobs_oldest_seconds{{{ON}}})", "oldest")]),
                ("Submitted and ended per second", "ops", "", [(f"sum (rate(forebay_jobs_submitted_total{{{ON}}}[{RATE}]))", "submitted"), (rate("forebay_jobs_ended_total", "state", ON), "{{state}}")]),
                ("From submission to the end", "s", "Those that succeeded.", quantiles("forebay_job_duration_seconds", f'{ON},state="succeeded"')),
                ("From submission to the claim", "s", "", quantiles("forebay_job_wait_duration_seconds", ON)),
                ("Claims per second", "ops", "released: given back, as there was no room. lost: somebody else had the job meanwhile.", [(rate("forebay_job_claims_total", "outcome", ON), "{{outcome}}"), (f"sum (rate(forebay_job_takeovers_total{{{ON}}}[{RATE}]))", "taken over")]),
            ],
            "Store": [
                ("Transactions", "s", "Each of a group of operations.", quantiles("forebay_store_duration_seconds", ON)),
                ("Operations per second", "ops", "", [(rate("forebay_store_operations_total", "operation, outcome", ON), "{{operation}} {{outcome}}")]),
                ("Operations in a transaction", "short", "Mean.", [(f"sum (rate(forebay_store_operations_total{{{ON}}}[{RATE}])) / sum (rate(forebay_store_duration_seconds_count{{{ON}}}[{RATE}]))", "mean")]),
                ("Healthy; operations that wait", "short", "", [(f"min (forebay_store_healthy{{{ON}}})", "healthy"), (f"sum (forebay_store_waiting{{{ON}}})", "waiting")]),
            ],
            "Webhooks": [
                ("Tries per second", "ops", "", [(rate("forebay_webhooks_total", "outcome", ON), "{{outcome}}")]),
                ("A try", "s", "99th percentile.", [(quantile(0.99, "forebay_webhook_duration_seconds", where=ON), "p99")]),
            ],
        },
    ),
    "forebay-gpu": (
        "Forebay: GPUs",
        "Memory and utilisation, where the server runs on NVIDIA GPUs and forebay[gpu] is installed.",
        {
            "GPUs": [
                ("Busy", "percentunit", "Part of the time in which a kernel ran.", [(f"forebay_gpu_utilization_ratio{{{ON}}}", "{{instance}} {{gpu}}")]),
                ("Memory", "bytes", "", [(f"forebay_gpu_memory_used_bytes{{{ON}}}", "used {{instance}} {{gpu}}"), (f"forebay_gpu_memory_total_bytes{{{ON}}}", "all {{instance}} {{gpu}}")]),
            ],
        },
    ),
}  # fmt: skip


def dashboard(uid: str) -> dict[str, Any]:
    """A dashboard as Grafana imports it."""
    title, description, rows = DASHBOARDS[uid]
    panels: list[dict[str, Any]] = []
    y = 0
    for name, several in rows.items():
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": name, "collapsed": False, "gridPos": _place(0, y, 24, 1)}
        )
        y += 1
        for number, panel in enumerate(several):
            panels.append(_panel(len(panels) + 1, panel, _place(12 * (number % 2), y + 8 * (number // 2), 12, 8)))
        y += 8 * ((len(several) + 1) // 2)
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["forebay"],
        "schemaVersion": 38,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
                _variable("instance", "label_values(forebay_build_info, instance)"),
                _variable("model", 'label_values(forebay_requests_total{instance=~"$instance"}, model)'),
            ]
        },
        "panels": panels,
    }


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    title, unit, description, targets = panel
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 5}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": source,
                "expr": expression,
                "legendFormat": legend,
                **({"exemplar": True} if EXEMPLARS in expression else {}),
            }
            for index, (expression, legend) in enumerate(targets)
        ],
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": query,
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def main(folder: Path) -> None:
    """Writes all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for uid in DASHBOARDS:
        (folder / f"{uid}.json").write_text(json.dumps(dashboard(uid), indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
