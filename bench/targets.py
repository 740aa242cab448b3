"""The rows of the report: which measurements are compared, and what they have to reach.

Only data. The numbers are those of the design; `report` computes the rows, `cases` measures what they need.
"""

import dataclasses
from typing import Literal

STORES = ("sqlite", "postgresql")
AGAIN, PART, ALL = "off again", "1 % sampled, scraped", "all sampled"
"""Loads of the tracing case."""
BEST = "*"
"""As a load: the best median over all loads of the case and column."""


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """A measured figure: the metric of one case, column and load."""

    case: str
    column: str
    load: str
    metric: str = "rps"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A row. With `bottom` it is a ratio of medians, without it the median of `top` itself."""

    title: str
    top: Point
    bottom: Point | None = None
    bound: Literal["at least", "at most"]
    value: float
    unit: str = ""


def _unary(column: str, in_flight: int, metric: str = "rps") -> Point:
    return Point("unary", column, f"{in_flight} in flight", metric)


def _tracing(load: str, metric: str = "rps") -> Point:
    return Point("tracing", "forebay", load, metric)


TARGETS = (
    Target(
        title="unary, small model, 32 in flight: requests/s over grpc.aio",
        top=_unary("forebay", 32),
        bottom=_unary("grpc_aio", 32),
        bound="at least",
        value=15,
    ),
    Target(
        title="unary, small model, 128 in flight: requests/s over grpc.aio",
        top=_unary("forebay", 128),
        bottom=_unary("grpc_aio", 128),
        bound="at least",
        value=25,
    ),
    Target(
        title="p50 at concurrency 1, small model, over that of grpc.aio",
        top=_unary("forebay", 1, "p50_ms"),
        bottom=_unary("grpc_aio", 1, "p50_ms"),
        bound="at most",
        value=0.6,
    ),
    Target(
        title="`StreamPredict`, one item per message: items/s over unary requests/s",
        top=Point("streams", "forebay", "1 item"),
        bottom=Point("streams", "forebay", "unary"),
        bound="at least",
        value=1.0,
    ),
    Target(
        title="`StreamPredict`, 32 items per message: items/s over unary requests/s",
        top=Point("streams", "forebay", "32 items"),
        bottom=Point("streams", "forebay", "unary"),
        bound="at least",
        value=3,
    ),
    Target(
        title="medium model, closed loop: items/s over in-process batched inference",
        top=Point("medium", "forebay", "closed"),
        bottom=Point("medium", "inprocess", BEST),
        bound="at least",
        value=0.95,
    ),
    Target(
        title="600 KB requests, 8 in flight: requests/s over grpc.aio",
        top=Point("large", "forebay", "8 in flight"),
        bottom=Point("large", "grpc_aio", "8 in flight"),
        bound="at least",
        value=1.8,
    ),
    *(
        Target(
            title=f"goodput at {times} times capacity, over its peak",
            top=Point("goodput", "forebay", f"{times}x", "goodput_rps"),
            bottom=Point("goodput", "forebay", BEST, "goodput_rps"),
            bound="at least",
            value=0.9,
        )
        for times in (2, 5, 10)
    ),
    Target(
        title="admission and dispatch with 100,000 waiting, over that with 100",
        top=Point("queue", "forebay", "100000 over 100", "ratio"),
        bound="at most",
        value=2,
    ),
    Target(
        title="process start to first answer, small model, warm file cache",
        top=Point("startup", "forebay", "first answer", "seconds"),
        bound="at most",
        value=1.5,
        unit=" s",
    ),
    Target(
        title="memory after the requests of the memory case, over that after their first tenth",
        top=Point("memory", "forebay", "after", "rss_mib"),
        bottom=Point("memory", "forebay", "before", "rss_mib"),
        bound="at most",
        value=1.05,
    ),
    *(
        Target(
            title=f"durable `Submit`, {store}, 128 in flight: requests/s over `Predict` on the same server",
            top=Point("submit", "forebay", f"{store}, 128 in flight"),
            bottom=Point("submit", "forebay", f"predict, {store}, 128 in flight"),
            bound="at least",
            value=0.15,
        )
        for store in STORES
    ),
    *(
        Target(
            title=f"{load}: a backlog is worked off, jobs/s over what the store can claim and finish by itself",
            top=Point("drain", "forebay", load),
            bottom=Point("drain", "forebay", f"{load.partition(',')[0]} itself"),
            bound="at least",
            value=0.8,
        )
        for load in (*STORES, "postgresql, 2 servers")
    ),
    *(
        Target(
            title=f"p99 of `Predict` beside a backlog of jobs, over that without, {model} model",
            top=Point("beside", "forebay", f"{model}, a backlog", "p99_ms"),
            bottom=Point("beside", "forebay", f"{model}, no jobs", "p99_ms"),
            bound="at most",
            value=1.2,
        )
        for model in ("small", "medium")
    ),
    *(
        Target(
            title=f"{title} with many finished jobs, over that with ten thousand",
            top=Point("kept", "forebay", "many", metric),
            bottom=Point("kept", "forebay", "few", metric),
            bound="at most",
            value=1.2,
        )
        for title, metric in (("time to claim 16 jobs", "claim_ms"), ("bytes of the store per job", "bytes_per_job"))
    ),
    Target(
        title="the generator's own limit, over the fastest unary figure of Forebay",
        top=Point("ceiling", "fixed-server", "128 in flight", "limit_rps"),
        bottom=Point("unary", "forebay", BEST),
        bound="at least",
        value=1.5,
    ),
    Target(
        title="Envoy as a sidecar on the server's core, 1 in flight: p50 added",
        top=Point("sidecar", "forebay", "1 in flight", "added_p50_ms"),
        bound="at most",
        value=0.5,
        unit=" ms",
    ),
    Target(
        title="p99 of `Predict` beside slow, half-open and garbage connections, over that without",
        top=Point("faults", "forebay", "beside faults", "p99_ms"),
        bottom=Point("faults", "forebay", "alone", "p99_ms"),
        bound="at most",
        value=1.2,
    ),
    *(
        Target(title=title, top=_tracing(load, "over_off"), bound="at least", value=value)
        for title, load, value in (
            (
                "small model, everything off over itself: requests/s (what these rows can tell apart)",
                AGAIN,
                0.95,
            ),
            ("small model, metrics scraped and 1 % of requests traced: requests/s over everything off", PART, 0.95),
            ("small model, all traced to a live collector: requests/s over everything off", ALL, 0.25),
            (
                "medium model, all traced to a live collector: requests/s over everything off",
                f"medium, {ALL}",
                0.9,
            ),
        )
    ),
    Target(
        title="small model, all requests traced to a live collector: requests lost",
        top=_tracing(ALL, "failures"),
        bound="at most",
        value=0,
    ),
    *(
        Target(title=title, top=_tracing(load, "over_off"), bound="at most", value=1.05)
        for title, load in (
            (
                "tracing off over itself: p99 at the same rate (what these rows can tell apart)",
                f"latency, {AGAIN}",
            ),
            *(
                (
                    f"1 % traced, collector {state}: p99 over tracing off, same rate",
                    f"latency, collector {state}",
                )
                for state in ("live", "down", "slow", "silent")
            ),
        )
    ),
    Target(
        title="a scrape of 50 models after a million requests",
        top=Point("scrape", "forebay", "50 models", "scrape_ms"),
        bound="at most",
        value=100,
        unit=" ms",
    ),
    Target(
        title="what such a scrape keeps the dispatcher, at a time",
        top=Point("scrape", "forebay", "50 models", "kept_max_ms"),
        bound="at most",
        value=5,
        unit=" ms",
    ),
)
