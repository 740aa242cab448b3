"""Runs ghz with the files of `bench/ghz`, keeps its reports as JSON and HTML, and reads them.

A file is an RPC under a load profile: `latency` (response time at low load), `breaking-point` (a step schedule),
`maximum` (as fast as it goes) and `stress` (the same for long). `ghz_cases` measures with it; the tests see that ghz
takes every file.
"""

import dataclasses
import datetime as dt
import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.errors import BenchError

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "ghz"
GHZ = ROOT / "build" / "ghz" / "ghz"
HTML = ROOT / "build" / "ghz" / "html"
RPCS = ("predict", "stream", "submit")
PROFILES = ("latency", "breaking-point", "maximum", "stress")

HELD_OK = 0.99
"""Part of a step's calls that must be answered for the step to count as held."""
HELD_SENT = 0.95
"""Part of what was due in a step that ghz must have sent, for the step to say something about the server."""

Report = dict[str, Any]
Settings = dict[str, Any]


def built() -> bool:
    """Whether ghz is there."""
    return GHZ.exists() and HTML.exists()


def settings(rpc: str, profile: str) -> Settings:
    """What a file says."""
    found: Settings = json.loads((FOLDER / f"{rpc}-{profile}.json").read_text())
    return found


def seconds(text: str) -> float:
    """A duration as Go writes it, in seconds.

    Raises:
        ValueError: It is not a whole number of one unit.
    """
    for unit, size in (("ms", 1e-3), ("s", 1.0), ("m", 60.0)):
        if text.endswith(unit) and text[: -len(unit)].isdigit():
            return int(text[: -len(unit)]) * size
    raise ValueError(f"{text!r} is no duration such as 250ms, 3s or 10m")


def steps(said: Settings) -> int:
    """How many steps a schedule has."""
    return int((said["load-end"] - said["load-start"]) // said["load-step"]) + 1


def lasting(said: Settings, duration: float) -> Settings:
    """The same profile, made to last so many seconds."""
    changed: Settings = {"duration": f"{round(duration * 1000)}ms"}
    if "load-step" in said:
        changed["load-step-duration"] = f"{round(duration * 1000 / steps(said))}ms"
    return changed


def run(rpc: str, profile: str, kept: Path, changed: Mapping[str, object], core: int | None = None) -> Report:
    """Runs a file, with some settings changed, and keeps the report in a folder as `RPC-PROFILE.json` and `.html`.

    Raises:
        BenchError: ghz could not run.
    """
    kept.mkdir(parents=True, exist_ok=True)
    path = kept / f"{rpc}-{profile}.json"
    command = [str(GHZ), "--config", str(FOLDER / f"{rpc}-{profile}.json"), "--format", "json", "--output", str(path)]
    host = [str(changed["host"])] if "host" in changed else []
    command += [f"--{name}={value}" for name, value in changed.items() if name != "host"] + host
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    ended = subprocess.run([*pinned, *command], capture_output=True, text=True, check=False, cwd=ROOT)
    if ended.returncode != 0:
        raise BenchError(f"ghz failed: {ended.stderr.strip()[-2000:]}")
    with path.open() as report, path.with_suffix(".html").open("w") as page:
        subprocess.run([str(HTML)], stdin=report, stdout=page, check=True)
    found: Report = json.loads(path.read_text())
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One call of a report. Times are seconds; `began` counts from the first call's."""

    began: float
    took: float
    ok: bool


def calls(report: Report) -> list[Call]:
    """The calls, in the order in which they began. (ghz notes when they ended.)"""
    noted = [
        (dt.datetime.fromisoformat(each["timestamp"]).timestamp() - each["latency"] / 1e9, each)
        for each in report["details"] or ()
    ]
    first = min((began for began, _ in noted), default=0.0)
    return sorted(
        (Call(began - first, each["latency"] / 1e9, each["status"] == "OK") for began, each in noted),
        key=lambda call: call.began,
    )


def percentile(latencies: Sequence[float], percent: float) -> float:
    """The nearest rank, in milliseconds; 0 of none."""
    if not latencies:
        return 0.0
    return sorted(latencies)[max(0, math.ceil(percent / 100 * len(latencies)) - 1)] * 1e3


def figures(report: Report, items: int = 1) -> dict[str, float]:
    """Figures of a report whose calls have so many items: items/s that were answered, and latencies of calls."""
    made = calls(report)
    answered = [call.took for call in made if call.ok]
    # Of the calls that are counted: the first may have been skipped.
    elapsed = max((call.began + call.took for call in made), default=0.0)
    return {
        "rps": len(answered) * items / elapsed if elapsed else 0.0,
        "p50_ms": percentile(answered, 50),
        "p99_ms": percentile(answered, 99),
        "p99_9_ms": percentile(answered, 99.9),
        "failures": float(len(made) - len(answered)),
    }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a schedule: calls a second that were due, calls that were sent and answered, and the p99."""

    rate: float
    due: float
    sent: int
    answered: int
    p99_ms: float

    @property
    def held(self) -> bool:
        """Whether the server kept up."""
        return self.answered >= HELD_OK * self.sent

    @property
    def told(self) -> bool:
        """Whether ghz kept up, so that the step says something about the server."""
        return self.sent >= HELD_SENT * self.due


def stepped(report: Report) -> list[Step]:
    """What happened in each step of the schedule that a report was made with."""
    said = report["options"]
    length = said["load-step-duration"] / 1e9
    groups: list[list[Call]] = [[] for _ in range(steps(said))]
    for call in calls(report):
        index = int(call.began / length)
        if index < len(groups):
            groups[index].append(call)
    found = []
    for index, group in enumerate(groups):
        rate = float(said["load-start"] + index * said["load-step"])
        answered = [call.took for call in group if call.ok]
        found.append(
            Step(
                rate=rate,
                due=rate * length,
                sent=len(group),
                answered=len(answered),
                p99_ms=percentile(answered, 99),
            )
        )
    return found


def breaking_point(made: Sequence[Step]) -> dict[str, float]:
    """The last rate of calls that was held before the first that was not, and that one; 0 for what was not found.

    A step in which ghz could not send what was due ends the search: nothing is known of the server beyond it.
    """
    held = broke = limit = 0.0
    for step in made:
        if not step.held:
            broke = step.rate
            break
        if not step.told:
            limit = step.rate
            break
        held = step.rate
    return {"held_per_s": held, "broke_per_s": broke, "ghz_limit_per_s": limit}


def drift(report: Report) -> float:
    """The p99 of the last quarter of the calls over that of the first; 0 if there are too few."""
    answered = [call.took for call in calls(report) if call.ok]
    quarter = len(answered) // 4
    if quarter < 1:
        return 0.0
    return percentile(answered[-quarter:], 99) / percentile(answered[:quarter], 99)
