"""What a part of the GPU check has found, and the file in which its process tells it. Standard library only.

A part runs in a process of its own, so that a lost device, a hang or a missing package is its own affair. It writes
what it has found so far after each finding: what was found before a fault stands in the report.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, Final

PASSED: Final = "passed"
FAILED: Final = "failed"
NOT_EXECUTED: Final = "not executed"


class NotExecuted(Exception):
    """The part can't run here: something that it needs is not there. The text says what."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A thing that was looked at. `good` is None for a figure without a goal."""

    title: str
    good: bool | None
    value: float | None = None
    unit: str = ""
    goal: str = ""
    detail: str = ""


@dataclasses.dataclass(slots=True, kw_only=True)
class Outcome:
    """A part after its run."""

    part: str
    title: str
    state: str = FAILED
    reason: str = ""
    """Why it failed or was not executed."""
    seconds: float = 0.0
    findings: list[Finding] = dataclasses.field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def outcome_of(told: dict[str, Any]) -> Outcome:
    """The opposite of `Outcome.as_dict`."""
    return Outcome(**{**told, "findings": [Finding(**finding) for finding in told["findings"]]})


class Notes:
    """Where a part notes what it finds."""

    def __init__(self, file: Path, outcome: Outcome) -> None:
        self._file = file
        self._began = time.monotonic()
        self.outcome = outcome

    def check(self, title: str, good: bool, detail: str = "") -> None:  # noqa: FBT001  # a finding is a title and a truth
        """Something that must be so."""
        self._add(Finding(title=title, good=bool(good), detail=detail))

    def figure(
        self, title: str, value: float, unit: str = "", *, least: float | None = None, most: float | None = None
    ) -> None:
        """A measurement, with a bound or without."""
        good, goal = None, ""
        if least is not None:
            good, goal = value >= least, f"at least {least:g}"
        if most is not None:
            good, goal = value <= most, f"at most {most:g}"
        self._add(Finding(title=title, good=good, value=float(value), unit=unit, goal=goal))

    def end(self, state: str, reason: str = "") -> None:
        """How the part has ended. A part that has found something wrong has failed, however it ended."""
        wrong = [finding.title for finding in self.outcome.findings if finding.good is False]
        if state == PASSED and wrong:
            state, reason = FAILED, "; ".join(wrong)
        if state == PASSED and not self.outcome.findings:
            state, reason = FAILED, "it looked at nothing"
        self.outcome.state, self.outcome.reason = state, reason
        self.write()

    def write(self) -> None:
        """Writes what is known so far."""
        self.outcome.seconds = round(time.monotonic() - self._began, 3)
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(self.outcome.as_dict()))
        temporary.replace(self._file)

    def _add(self, finding: Finding) -> None:
        self.outcome.findings.append(finding)
        self.write()


def read(file: Path) -> Outcome | None:
    """What a part has written; None if it has not come so far."""
    try:
        return outcome_of(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
