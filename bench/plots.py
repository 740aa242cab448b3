"""Draws the figures of a run: throughput against concurrency, latency against load, goodput, batch sizes."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes

from bench.cases import batch_sizes
from bench.report import Sample, Summary, summaries
from bench.server import COLUMNS

mpl.use("svg")

from matplotlib import pyplot as plt

BATCH_LOAD = "32 in flight"


def draw(directory: Path, date: str, samples: Sequence[Sample]) -> list[str]:
    """Writes the figures that the samples allow; gives the names of the files."""
    made = summaries(samples)
    names = []
    for name, title, case, painter in (
        ("throughput", "Throughput against concurrency (small model)", "unary", _throughput),
        ("latency", "Latency against load (small model, open loop)", "latency", _latency),
        ("goodput", "Goodput against load (medium model, open loop)", "goodput", _goodput),
    ):
        chosen = [summary for summary in made if summary.case == case]
        if not chosen:
            continue
        figure, axes = plt.subplots(figsize=(7, 4.5))
        painter(axes, chosen)
        axes.set_title(title)
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
        names.append(f"{date}-{name}.svg")
        figure.savefig(directory / names[-1], bbox_inches="tight")
        plt.close(figure)
    if any(sample.case == "unary" for sample in samples):
        names.append(f"{date}-batches.svg")
        _batches(directory / names[-1], samples)
    return names


def _by_column(chosen: Sequence[Summary]) -> dict[str, list[Summary]]:
    columns: dict[str, list[Summary]] = {}
    for summary in chosen:
        columns.setdefault(summary.column, []).append(summary)
    return columns


def _title(column: str) -> str:
    return COLUMNS[column].title if column in COLUMNS else column


def _throughput(axes: Axes, chosen: Sequence[Summary]) -> None:
    for column, points in _by_column(chosen).items():
        in_flight = [int(point.load.split()[0]) for point in points]
        rates = [point.medians["rps"] for point in points]
        below = [point.medians["rps"] - point.spreads["rps"][0] for point in points]
        above = [point.spreads["rps"][1] - point.medians["rps"] for point in points]
        axes.errorbar(in_flight, rates, yerr=[below, above], marker="o", capsize=3, label=_title(column))
    axes.set(xscale="log", yscale="log", xlabel="requests in flight", ylabel="requests/s")


def _latency(axes: Axes, chosen: Sequence[Summary]) -> None:
    for column, points in _by_column(chosen).items():
        rates = [point.medians["rps"] for point in points]
        (line,) = axes.plot(rates, [point.medians["p50_ms"] for point in points], marker="o", label=_title(column))
        p99 = [point.medians["p99_ms"] for point in points]
        axes.plot(rates, p99, marker="^", linestyle="--", color=line.get_color(), label=f"{_title(column)}, p99")
    axes.set(xscale="log", yscale="log", xlabel="requests/s", ylabel="latency from the due time, ms (p50, p99 dashed)")


def _goodput(axes: Axes, chosen: Sequence[Summary]) -> None:
    for column, points in _by_column(chosen).items():
        offered = [point.medians["offered_rps"] for point in points]
        axes.plot(offered, [point.medians["goodput_rps"] for point in points], marker="o", label=_title(column))
    axes.set(xscale="log", xlabel="offered requests/s", ylabel="answered within the deadline, requests/s")
    axes.set_ylim(bottom=0)


def _batches(path: Path, samples: Sequence[Sample]) -> None:
    columns = list(dict.fromkeys(sample.column for sample in samples if sample.case == "unary"))
    figure, grid = plt.subplots(len(columns), figsize=(7, 1.8 * len(columns)), sharex=True, squeeze=False)
    for axes, column in zip(grid[:, 0], columns, strict=True):
        sizes = batch_sizes(samples, column, BATCH_LOAD)
        rows = {size: size * count for size, count in sizes.items()}
        total = max(1, sum(rows.values()))
        axes.bar(list(rows), [100 * number / total for number in rows.values()], width=0.9)
        axes.set(ylabel="% of rows", title=_title(column))
    grid[-1, 0].set_xlabel("rows in the batch")
    figure.suptitle(f"Batch sizes, small model, {BATCH_LOAD}")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
