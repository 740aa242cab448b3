"""Writes the table of docs/metrics.md from `telemetry.names`: `python tools/metrics_page.py`."""

from pathlib import Path

from forebay_server.telemetry.metric import Kind
from forebay_server.telemetry.names import LABELS, METRICS

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
BEGIN = "<!-- made by tools/metrics_page.py from server/forebay_server/telemetry/names.py -->\n"
END = "<!-- end -->\n"


def table() -> str:
    """All metrics and labels."""
    lines = ["| Prometheus | OpenTelemetry | kind, unit | labels | |", "|---|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        kind = f"{metric.kind.value}, {metric.unit}"
        lines.append(f"| `{metric.prometheus}` | `{metric.name}` | {kind} | {labels} | {metric.help} |")
    lines += ["", "| label | values |", "|---|---|"]
    lines += [f"| `{label}` | {text} |" for label, text in sorted(LABELS.items())]
    histograms = [metric for metric in METRICS if metric.kind is Kind.HISTOGRAM]
    lines += ["", "Buckets (inclusive upper bounds):", ""]
    for bounds in dict.fromkeys(metric.bounds for metric in histograms):
        names = ", ".join(f"`{metric.prometheus}`" for metric in histograms if metric.bounds == bounds)
        lines.append(f"* {', '.join(f'{bound:.3g}' for bound in bounds)}: {names}.")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """The page, its table made anew."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
