"""The case of ghz: every RPC under every load profile, and our own generator at the same load beside it.

ghz looks at status codes; our generator checks every answer. Their figures stand together, so that each is the other's
second opinion.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from bench import ghz_runs
from bench.case import MEDIUM, SMALL, Bench, figures_of
from bench.job_cases import sqlite
from bench.models import protoset, stream_items
from bench.report import Sample

LENGTH: Final[Mapping[str, float]] = {"latency": 2, "breaking-point": 4, "maximum": 1, "stress": 5}
"""Of a run, by profile, in the bench's seconds."""
STREAM_WINDOW: Final = 64
STEPS: Final = len(ghz_runs.RPCS) * len(ghz_runs.PROFILES)


def ghz(bench: Bench, column: str, repeat: int) -> Iterator[Sample]:
    """All files of `bench/ghz`, shortened, with the server on its core and ghz on the generator's."""
    if not ghz_runs.built():
        bench.say("ghz is left out: it is not built (`make ghz`, which needs Go)")
        return
    protoset(bench.directory / "forebay.binpb")
    for rpc in ghz_runs.RPCS:
        for profile in ghz_runs.PROFILES:
            yield from _measured(bench, column, repeat, rpc, profile)
            bench.step()


def _measured(bench: Bench, column: str, repeat: int, rpc: str, profile: str) -> Iterator[Sample]:
    said = ghz_runs.settings(rpc, profile)
    model = MEDIUM if MEDIUM in said["binary-file"] else SMALL
    items = stream_items(model) * said["stream-call-count"] if rpc == "stream" else 1
    length = LENGTH[profile] * bench.seconds
    kept = bench.kept / "ghz"
    with contextlib.ExitStack() as stack:
        options = ("--jobs", stack.enter_context(sqlite())) if rpc == "submit" else ()
        server = stack.enter_context(bench.server(column, model, *options))
        bench.say(f"ghz: {rpc}, {profile}")
        before = server.rss()
        changed = {"host": server.target} | ghz_runs.lasting(said, length)
        report = ghz_runs.run(rpc, profile, kept, changed, bench.load_core)
        figures = ghz_runs.figures(report, items)
        detail: dict[str, Any] = {
            "by_status": report["statusCodeDistribution"],
            "files": [f"{bench.kept.name}/{kept.name}/{rpc}-{profile}.{kind}" for kind in ("json", "html")],
        }
        shape: dict[str, Any] = {"mode": "unary" if rpc == "predict" else rpc}
        if rpc == "stream":
            shape |= {"items": stream_items(model)}
        match profile:
            case "maximum":
                count = said["concurrency"]
                shape |= {"streams": count, "window": STREAM_WINDOW} if rpc == "stream" else {"in_flight": count}
            case "breaking-point":
                made = ghz_runs.stepped(report)
                figures |= ghz_runs.breaking_point(made)
                figures["refused"] = figures.pop("failures")  # which is what the profile is after
                detail["steps"] = [[step.rate, step.sent, step.answered, step.p99_ms] for step in made]
                shape |= {"rate": figures["held_per_s"] * items, "deadline_ms": ghz_runs.seconds(said["timeout"]) * 1e3}
            case _:
                shape |= {"rate": said["rps"] * items}
                if profile == "stress":
                    figures |= {"p99_drift": ghz_runs.drift(report), "rss_growth": server.rss() / before}
        yield Sample(
            case="ghz", column=column, load=f"{rpc}, {profile}: ghz", repeat=repeat, metrics=figures, detail=detail
        )
        if shape.get("rate") == 0:
            return  # not even the first step was held: there is no load at which the two could be compared
        if "rate" in shape:
            shape["arrivals"] = "uniform"  # as with ghz
        bench.say(f"ghz: {rpc}, {profile}, and our own generator")
        own = bench.load(server.target, bench.files(model).calls, **{"seconds": length, **shape})
        yield Sample(
            case="ghz", column=column, load=f"{rpc}, {profile}: own", repeat=repeat, metrics=figures_of(own),
            detail={"by_reason": own["by_reason"]},
        )  # fmt: skip
