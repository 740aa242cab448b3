"""From outcomes to the report: JSON, a page, and the table of the README. Standard library only."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu import here
from bench.gpu.outcome import FAILED, NOT_EXECUTED, PASSED, Finding, Outcome

FORMAT = 1
_BEGIN, _END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
_MARKS = {PASSED: "passed", FAILED: "**failed**", NOT_EXECUTED: "*not executed*"}


def as_json(date: str, described: dict[str, Any], wheels: Sequence[str], outcomes: Sequence[Outcome]) -> str:
    """The report for programs."""
    report = {
        "format": FORMAT,
        "date": date,
        "machine": described,
        "wheels": list(wheels),
        "parts": [outcome.as_dict() for outcome in outcomes],
    }
    return json.dumps(report, indent=1) + "\n"


def page(date: str, described: dict[str, Any], wheels: Sequence[str], outcomes: Sequence[Outcome]) -> str:
    """The report for people."""
    lines = [
        "# GPU check",
        "",
        "*This page is made by `make gpu-check`. [gpu.md](gpu.md#checking-a-machine) says how to read it.*",
        "",
        f"{date}. {here.sentence(described)}",
        "",
    ]
    if wheels:
        lines += [f"From a folder of wheels: {', '.join(wheels)}.", ""]
    lines += table(outcomes)
    for outcome in outcomes:
        if outcome.findings or outcome.state == FAILED:
            lines += ["", f"## {outcome.part}: {outcome.title}", ""]
            lines += [f"{_MARKS[outcome.state]}: {_cell(outcome.reason)}", ""] if outcome.reason else []
            lines += ["| what | found | goal | |", "|---|---:|---|---|"]
            lines += [_row(finding) for finding in outcome.findings]
    return "\n".join(lines) + "\n"


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each part: the one that the README repeats."""
    lines = ["| part | what it looks at | result |", "|---|---|---|"]
    for outcome in outcomes:
        because = f": {_cell(outcome.reason)}" if outcome.reason else ""
        lines.append(f"| `{outcome.part}` | {outcome.title} | {_MARKS[outcome.state]}{because} |")
    return lines


def readme(text: str, date: str, described: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The README with the newest table between its marks."""
    lines = [_BEGIN, f"`make gpu-check`, {date}. {here.sentence(described)}", "", *table(outcomes), _END]
    return re.sub(f"{_BEGIN}.*{_END}", lambda _: "\n".join(lines), text, flags=re.DOTALL)


def write(
    folder: Path, date: str, described: dict[str, Any], wheels: Sequence[str], outcomes: Sequence[Outcome]
) -> Path:
    """Writes `gpu-check.json` and `gpu-check.md`; gives the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu-check.json").write_text(as_json(date, described, wheels, outcomes))
    file = folder / "gpu-check.md"
    file.write_text(page(date, described, wheels, outcomes))
    return file


def _row(finding: Finding) -> str:
    good = {True: "yes", False: "**no**", None: ""}[finding.good]
    found = "" if finding.value is None else f"{_number(finding.value)} {finding.unit}".rstrip()
    return f"| {_cell(finding.title)} | {found or _cell(finding.detail)} | {finding.goal} | {good} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:300]
