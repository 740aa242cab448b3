"""From samples to rows, and from a run to Markdown. Pure but for the two files that `write` makes.

A sample is one measurement of one repeat. Medians are taken over repeats. A row's spread is that of the ratios of
single repeats where both sides have the same repeats (columns take turns within a repeat), else that of its top.
"""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import machine
from bench.targets import BEST, TARGETS, Point, Target


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one measurement gave. `metrics` are numbers; `detail` is kept for the JSON file and plots."""

    case: str
    column: str
    load: str
    repeat: int
    metrics: dict[str, float]
    detail: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A target and what was measured. `measured` is None if the run had no samples for it."""

    title: str
    target: str
    measured: float | None
    low: float | None
    high: float | None
    reached: bool | None
    unit: str = ""


def values(samples: Iterable[Sample], point: Point) -> list[float]:
    """The figures of a point, one for each repeat, in their order. For BEST those of the best load."""
    by_load: dict[str, dict[int, float]] = {}
    for sample in samples:
        if sample.case == point.case and sample.column == point.column and point.load in (BEST, sample.load):
            by_load.setdefault(sample.load, {})[sample.repeat] = sample.metrics[point.metric]
    if not by_load:
        return []
    best = max(by_load.values(), key=lambda repeats: statistics.median(repeats.values()))
    return [figure for _, figure in sorted(best.items())]


def row(samples: Sequence[Sample], target: Target) -> Row:
    """One row of the report."""
    wanted = f"{target.bound} {target.value:g}{target.unit}"
    tops = values(samples, target.top)
    bottoms = values(samples, target.bottom) if target.bottom is not None else [1.0] * len(tops)
    if not tops or not bottoms or statistics.median(bottoms) == 0:
        return Row(title=target.title, target=wanted, measured=None, low=None, high=None, reached=None)
    bottom = statistics.median(bottoms)
    measured = statistics.median(tops) / bottom
    paired = len(tops) == len(bottoms) and 0 not in bottoms
    singles = [top / under for top, under in zip(tops, bottoms, strict=True)] if paired else [t / bottom for t in tops]
    reached = measured >= target.value if target.bound == "at least" else measured <= target.value
    return Row(
        title=target.title,
        target=wanted,
        measured=measured,
        low=min(singles),
        high=max(singles),
        reached=reached,
        unit=target.unit,
    )


def rows(samples: Sequence[Sample], targets: Iterable[Target] = TARGETS) -> list[Row]:
    """The rows that the samples allow to compute, in the order of the targets."""
    return [made for target in targets if (made := row(samples, target)).measured is not None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Medians of the figures of one case, column and load."""

    case: str
    column: str
    load: str
    repeats: int
    medians: dict[str, float]
    spreads: dict[str, tuple[float, float]]


def summaries(samples: Iterable[Sample]) -> list[Summary]:
    """Medians by case, column and load, in the order in which they first appear."""
    groups: dict[tuple[str, str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.case, sample.column, sample.load), []).append(sample)
    made = []
    for (case, column, load), group in groups.items():
        figures = {name: [sample.metrics[name] for sample in group] for name in group[0].metrics}
        made.append(
            Summary(
                case=case,
                column=column,
                load=load,
                repeats=len(group),
                medians={name: statistics.median(numbers) for name, numbers in figures.items()},
                spreads={name: (min(numbers), max(numbers)) for name, numbers in figures.items()},
            )
        )
    return made


def notes(samples: Iterable[Sample]) -> list[str]:
    """What a reader must know before believing the figures: failures in closed loops, a generator at its limit."""
    found = []
    for sample in samples:
        where = f"{sample.case}, {sample.column}, {sample.load}"
        failures = sample.metrics.get("failures", 0)
        if failures and sample.case != "goodput":
            found.append(f"{where}: {failures:g} requests failed ({sample.detail.get('by_reason')})")
        if sample.metrics.get("foreign_share", 0) > 0.05:
            found.append(f"{where}: others used {sample.metrics['foreign_share']:.0%} of the server's core")
        if sample.metrics.get("load_foreign_share", 0) > 0.2:
            found.append(f"{where}: others used {sample.metrics['load_foreign_share']:.0%} of the generator's core")
        if sample.metrics.get("generator_share", 0) > 0.9 and sample.case != "ceiling":
            found.append(f"{where}: the generator used {sample.metrics['generator_share']:.0%} of its core")
        # All of them, if the collector takes none: that is what is measured then.
        if 0.01 < sample.metrics.get("spans_lost_share", 0) < 1:
            found.append(f"{where}: {sample.metrics['spans_lost_share']:.0%} of the spans were dropped")
    return found


def markdown(run: dict[str, Any], samples: Sequence[Sample], plots: Sequence[str]) -> str:
    """The report for people."""
    lines = [
        f"# Bench of {run['date']}",
        "",
        f"On {machine.sentence(run['machine'])}.",
        f"Server on core {run['server_core']}, generator on core {run['load_core']}.",
        f"{run['repeats']} interleaved repeats of {run['seconds']:g} s.",
        "Medians; the spread is the least and the greatest repeat. [How to read it](../../docs/benchmarks.md).",
        "",
    ]
    reached = rows(samples)
    if reached:
        lines += ["| what | measured | spread | target | reached |", "|---|---:|---:|---:|---|"]
    for made in reached:
        verdict = "yes" if made.reached else "**no**"
        measured, low, high = made.measured or 0.0, made.low or 0.0, made.high or 0.0
        lines.append(f"| {made.title} | {measured:.2f}{made.unit} | {low:.2f}-{high:.2f} | {made.target} | {verdict} |")
    lines += ["", *(f"* {note}" for note in notes(samples)), ""]
    lines += _tables(summaries(samples))
    files = dict.fromkeys(file for sample in samples for file in sample.detail.get("files", ()))
    if files:
        lines += ["", "Reports of other tools:", "", *(f"* [{name}]({name})" for name in files)]
    lines += ["", *(f"![{name}]({name})" for name in plots), ""]
    return "\n".join(lines)


def _tables(made: Sequence[Summary]) -> list[str]:
    """A table for each case."""
    lines: list[str] = []
    for case in dict.fromkeys(summary.case for summary in made):
        chosen = [summary for summary in made if summary.case == case]
        names = list(dict.fromkeys(name for summary in chosen for name in summary.medians))
        lines += ["", f"## {case}", "", f"| column | load | {' | '.join(names)} |", f"|---|---|{'---:|' * len(names)}"]
        for summary in chosen:
            figures = " | ".join(_cell(summary, name) for name in names)
            lines.append(f"| {summary.column} | {summary.load} | {figures} |")
    return lines


def _cell(summary: Summary, name: str) -> str:
    if name not in summary.medians:
        return ""
    low, high = summary.spreads[name]
    median = _number(summary.medians[name])
    return median if low == high else f"{median} ({_number(low)}-{_number(high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def write(directory: Path, run: dict[str, Any], samples: Sequence[Sample], plots: Sequence[str]) -> tuple[Path, Path]:
    """Writes the JSON file and the Markdown page; gives their paths."""
    data = {
        **run,
        "rows": [dataclasses.asdict(made) for made in rows(samples)],
        "notes": notes(samples),
        "samples": [dataclasses.asdict(sample) for sample in samples],
    }
    json_path = directory / f"{run['date']}.json"
    json_path.write_text(json.dumps(data, indent=1) + "\n")
    page = directory / f"{run['date']}.md"
    page.write_text(markdown(run, samples, plots))
    return json_path, page
