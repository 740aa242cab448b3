"""From outcomes to the report: JSON, a page, and the README's sentence about it. Standard library only."""

import collections
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu import here
from bench.gpu.outcome import FAILED, NOT_EXECUTED, PASSED, Finding, Outcome, outcome_of
from bench.gpu.parts import PARTS

FORMAT = 1
_BEGIN, _END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
_MARKS = {PASSED: "passed", FAILED: "**failed**", NOT_EXECUTED: "*not executed*"}


@dataclasses.dataclass(slots=True, kw_only=True)
class Report:
    """What is reported."""

    date: str
    """Of the run; of several that were joined, of the first and of the last."""
    machine: dict[str, Any]
    """See `here.describe`."""
    wheels: list[str]
    """Those that were used beside what was installed."""
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)

    def as_json(self) -> str:
        """For programs."""
        told = {
            "format": FORMAT,
            "date": self.date,
            "machine": self.machine,
            "wheels": self.wheels,
            "parts": [outcome.as_dict() for outcome in self.outcomes],
        }
        return json.dumps(told, indent=1) + "\n"

    def page(self) -> str:
        """For people."""
        lines = [
            "# GPU check",
            "",
            "*This page is made by `make gpu-check`. [gpu.md](gpu.md#checking-a-machine) says how to read it.*",
            "",
            f"{self.date}. {here.sentence(self.machine)}",
            "",
        ]
        if self.wheels:
            lines += [f"From a folder of wheels: {', '.join(self.wheels)}.", ""]
        lines += table(self.outcomes)
        for outcome in self.outcomes:
            if outcome.findings or outcome.state == FAILED:
                lines += ["", f"## {outcome.part}: {outcome.title}", ""]
                lines += [f"{_MARKS[outcome.state]}: {_cell(outcome.reason)}", ""] if outcome.reason else []
                lines += ["| what | found | goal | |", "|---|---:|---|---|"]
                lines += [_row(finding) for finding in outcome.findings]
        return "\n".join(lines) + "\n"


def read(file: Path) -> Report:
    """The report in a `gpu-check.json`."""
    told = json.loads(file.read_text())
    if told["format"] != FORMAT:
        raise ValueError(f"{file}: its format is {told['format']}, not {FORMAT}")
    outcomes = [outcome_of(part) for part in told["parts"]]
    return Report(date=told["date"], machine=told["machine"], wheels=told["wheels"], outcomes=outcomes)


def joined(files: Sequence[Path]) -> Report:
    """One report of several runs on one machine: of each part the last run that executed it.

    Raises:
        ValueError: They are of different machines or packages, so that one sentence could not tell of all.
    """
    reports = [read(file) for file in files]
    first = reports[0]
    parts: dict[str, Outcome] = {}
    for file, each in zip(files, reports, strict=True):
        if (each.machine, each.wheels) != (first.machine, first.wheels):
            raise ValueError(f"{file}: it is of another machine, or other packages, than {files[0]}")
        for outcome in each.outcomes:
            if outcome.state != NOT_EXECUTED or parts.get(outcome.part, outcome).state == NOT_EXECUTED:
                parts[outcome.part] = outcome
    dates = list(dict.fromkeys(each.date for each in reports))
    return Report(
        date=dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}",
        machine=first.machine,
        wheels=first.wheels,
        outcomes=[parts[name] for name in PARTS if name in parts],
    )


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each part."""
    lines = ["| part | what it looks at | result |", "|---|---|---|"]
    for outcome in outcomes:
        because = f": {_cell(outcome.reason)}" if outcome.reason else ""
        lines.append(f"| `{outcome.part}` | {outcome.title} | {_MARKS[outcome.state]}{because} |")
    return lines


def readme(text: str, report: Report) -> str:
    """The README with what the newest report comes to between its marks."""
    counts = collections.Counter(outcome.state for outcome in report.outcomes)
    gpus = " and ".join(gpu["name"] for gpu in report.machine["gpus"]) or "no GPU"
    said = (
        f"{report.date}, {gpus}: of {len(report.outcomes)} parts {counts[PASSED]} passed, "
        f"{counts[FAILED]} failed and {counts[NOT_EXECUTED]} were not executed ([the report](docs/gpu-check.md))."
    )
    return re.sub(f"{_BEGIN}.*{_END}", lambda _: f"{_BEGIN}\n{said}\n{_END}", text, flags=re.DOTALL)


def write(folder: Path, report: Report) -> Path:
    """Writes `gpu-check.json` and `gpu-check.md`; gives the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu-check.json").write_text(report.as_json())
    file = folder / "gpu-check.md"
    file.write_text(report.page())
    return file


def _row(finding: Finding) -> str:
    good = {True: "yes", False: "**no**", None: ""}[finding.good]
    found = "" if finding.value is None else f"{_number(finding.value)} {finding.unit}".rstrip()
    return f"| {_cell(finding.title)} | {found or _cell(finding.detail)} | {finding.goal} | {good} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:300]
