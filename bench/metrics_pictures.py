"""Draws `docs/images/metrics-*.svg`: panels of the dashboards, as a real Prometheus has scraped a real server.

    python -m bench.metrics_pictures

`make pictures` runs it, which needs `make prometheus`. The server has one synthetic model that takes 10 ms a batch and
1 ms a row, so it can do about 600 rows a second. Callers come in four phases: few, many, more than it can do within
their deadlines, and few again. The panels are those of `tools/dashboards.py`, asked for as Grafana asks.
"""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, PercentFormatter

from bench.errors import BenchError
from bench.starting import free_ports, until
from forebay_client import Client, ForebayError
from tools.dashboards import DASHBOARDS, RATE, Panel

mpl.use("svg")

from matplotlib import pyplot as plt

ROOT: Final = Path(__file__).parents[1]
PICTURES: Final = ROOT / "docs" / "images"
PROMETHEUS: Final = ROOT / "build" / "prometheus" / "bin" / "prometheus"

MODEL: Final = "synthetic:base_ms=10,row_ms=1"
PHASE: Final = 30.0
"""Seconds of each phase."""
DEADLINE: Final = 0.12
"""Seconds that callers wait, at most."""
RATE_OVER: Final = "5s"
"""What rates are taken over; Prometheus scrapes every second here."""
START_WITHIN: Final = 30.0  # seconds
PATIENCE: Final = 0.02  # seconds that a caller waits after a refusal


class Phase(NamedTuple):
    """So many callers for a while, each of whom sends one row at a time."""

    title: str
    callers: int


PHASES: Final = (
    Phase("2 callers", 2),
    Phase("16 callers", 16),
    Phase("160 callers", 160),
    Phase("2 callers", 2),
)

FIGURES: Final = {
    "metrics-requests": (
        "forebay-requests",
        ("Requests per second", "Not OK", "From arrival to outcome", "Waiting"),
    ),
    "metrics-scheduler": (
        "forebay-scheduler",
        ("Batches per second, by what started them", "Rows in a batch", "Busy", "Real over predicted time"),
    ),
}
"""By the name of the picture: a dashboard, and the titles of its panels."""


class Series(NamedTuple):
    """A line of a panel."""

    name: str
    times: list[float]
    """Seconds since the first phase began."""
    values: list[float]


def panel(uid: str, title: str) -> Panel:
    """A panel of a dashboard.

    Raises:
        BenchError: There is none of this title.
    """
    for panels in DASHBOARDS[uid][2].values():
        for found in panels:
            if found[0] == title:
                return found
    raise BenchError(f"the dashboard {uid} has no panel {title!r}")


def filled(expression: str) -> str:
    """An expression with the dashboard's variables filled in."""
    return expression.replace(RATE, RATE_OVER).replace("$instance", ".*").replace("$model", "synthetic")


def named(legend: str, labels: dict[str, str]) -> str:
    """A legend, its labels filled in."""
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), legend)


class Prometheus:
    """A running one, that scrapes a server every second."""

    def __init__(self, scraped: str, folder: Path) -> None:
        settings = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text()
        settings = settings.replace("127.0.0.1:9464", scraped).replace("15s", "1s")
        settings = settings.replace("forebay.rules.yml", str(ROOT / "deploy" / "prometheus" / "forebay.rules.yml"))
        (folder / "prometheus.yml").write_text(settings)
        self.address = free_address()
        self._process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.address}",
                "--log.level=error",
            ]
        )

    def get(self, path: str, **parameters: str) -> dict[str, object]:
        """The data of an answer of its API.

        Raises:
            BenchError: It says that the question is wrong.
        """
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            answer = json.load(response)
        if answer["status"] != "success":
            raise BenchError(f"Prometheus: {answer}")
        found: dict[str, object] = answer["data"]
        return found

    def wait_for(self, expression: str) -> None:
        """Waits until an expression gives something.

        Raises:
            BenchError: It does not.
        """

        def there() -> bool:
            with contextlib.suppress(OSError):
                return bool(self.get("query", query=expression)["result"])
            return False

        until(there, f"Prometheus has no {expression}", within=START_WITHIN, every=0.1)

    def series(self, shown: Panel, began: float, ended: float) -> list[Series]:
        """The lines of a panel between two instants, seconds since 1970; what is not a number is left out."""
        lines = []
        for expression, legend in shown[3]:
            data = self.get("query_range", query=filled(expression), start=str(began), end=str(ended), step="1")
            for found in data["result"]:  # type: ignore[attr-defined]  # a list, by the API
                points = [(at - began, float(value)) for at, value in found["values"] if value != "NaN"]
                if points:
                    times, values = zip(*points, strict=True)
                    lines.append(Series(named(legend, found["metric"]), list(times), list(values)))
        return lines

    def stop(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait()


def free_address() -> str:
    """Where nobody listens."""
    return f"127.0.0.1:{free_ports(1)[0]}"


@contextlib.contextmanager
def served(address: str, scraped: str) -> Iterator[None]:
    """Runs the server."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "forebay_server", "serve", MODEL, "--max-batch-size", "16", "--listen", address),
            *("--set", f"telemetry.prometheus.address={scraped}", "--set", "log.level=error"),
        ]
    )
    try:
        with Client(address) as client:

            def ready() -> bool:
                with contextlib.suppress(ForebayError):
                    return client.health(deadline=1.0) == "SERVING"
                return False

            until(ready, "the server does not become ready", within=START_WITHIN, process=process)
        yield
    finally:
        process.terminate()
        process.wait()


def crowd(address: str, phase: Phase) -> None:
    """Calls for as long as the phase lasts. What is refused is not sent again at once."""
    end = time.monotonic() + PHASE
    row = {"x": np.ones((1, 4), np.float32)}
    with Client(address, retry=None) as client:

        def call() -> None:
            while time.monotonic() < end:
                try:
                    client.predict("synthetic", row, deadline=DEADLINE)
                except ForebayError:
                    time.sleep(PATIENCE)  # A caller who is refused comes again, but not at once.

        threads = [threading.Thread(target=call) for _ in range(phase.callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def draw(title: str, panels: Sequence[tuple[Panel, Sequence[Series]]], path: Path) -> None:
    """Writes a picture of four panels, with the phases marked."""
    mpl.rcParams["svg.hashsalt"] = title  # so that the same figures make the same file
    figure, grid = plt.subplots(2, 2, figsize=(10, 6), sharex=True)
    for axes, (shown, lines) in zip(grid.flat, panels, strict=True):
        for line in lines:
            axes.plot(line.times, line.values, label=line.name, linewidth=1.2)
        _dress(axes, shown)
    for axes in grid[-1]:
        axes.set_xlabel("s")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _dress(axes: Axes, shown: Panel) -> None:
    axes.set_title(shown[0], fontsize=10)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    if shown[1] == "s":
        axes.yaxis.set_major_formatter(EngFormatter("s"))
    elif shown[1] == "percentunit":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    top = axes.get_ylim()[1]
    for number, phase in enumerate(PHASES):
        axes.axvline(number * PHASE, color="grey", linewidth=0.6, linestyle=":")
        axes.text((number + 0.05) * PHASE, top, phase.title, fontsize=6, color="grey", va="top")
    axes.set_ylim(top=top * 1.02)
    axes.set_xlim(0, PHASE * len(PHASES))
    axes.legend(fontsize=7, loc="best", framealpha=0.6)


def main() -> None:
    """Runs the server, Prometheus and the callers, and draws."""
    if not PROMETHEUS.exists():
        sys.exit("there is no Prometheus here: make prometheus")
    address, scraped = free_address(), free_address()
    with tempfile.TemporaryDirectory() as folder, served(address, scraped):
        prometheus = Prometheus(scraped, Path(folder))
        try:
            prometheus.wait_for("forebay_serving == 1")
            began = time.time()
            for phase in PHASES:
                print(f"{PHASE:.0f} s: {phase.title}", flush=True)
                crowd(address, phase)
            ended = time.time()
            PICTURES.mkdir(exist_ok=True)
            for name, (uid, titles) in FIGURES.items():
                panels = [panel(uid, title) for title in titles]
                found = [(each, prometheus.series(each, began, ended)) for each in panels]
                draw(DASHBOARDS[uid][0], found, PICTURES / f"{name}.svg")
                print(PICTURES / f"{name}.svg")
        finally:
            prometheus.stop()


if __name__ == "__main__":
    main()
