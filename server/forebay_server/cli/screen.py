"""How `forebay top` looks: a view as lines of text, as wide and as many as there is room for. It works nothing out.

What there is no room for is left out by its importance: columns of the table first, then the batches of the models
that have the fewest requests.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from rich.text import Text

from forebay_server.cli.watched import ModelView, View

SIZES: Final = ("1", "2", "3-4", "5-8", "9-16", "17-32", "33-64", "65-128", "129-256", "257-512", "> 512")
"""The names of the bins of batch sizes."""

GAP: Final = "  "
BAR: Final = 24  # columns of the longest bar of a histogram
LEAST_MODELS: Final = 3  # rows of the table that are never given up for details

Line = Text


class Ramp(NamedTuple):
    """The characters of bars."""

    steps: str
    """From nothing to full, of one column's height."""
    full: str
    """A full column of a lying bar."""


BLOCKS: Final = Ramp(" ▁▂▃▄▅▆▇█", "█")
PLAIN: Final = Ramp(" .:-=+*#@", "#")
"""For terminals that know ASCII only."""


class Column(NamedTuple):
    """A column of the table of models."""

    title: str
    cell: Callable[[ModelView, Ramp], str]
    worth: int
    """Those worth least are left out first."""
    left: bool = False
    """Flush left."""


def _state(model: ModelView, _ramp: Ramp) -> str:
    if model.instances and model.usable_instances < model.instances and model.state == "ready":
        return f"{model.usable_instances}/{model.instances} usable"
    return model.state


def _sizes(model: ModelView, ramp: Ramp) -> str:
    return spark(model.batch_sizes, ramp)


COLUMNS: Final = (
    Column("MODEL", lambda model, _: f"{model.model}:{model.version}", 100, left=True),
    Column("STATE", _state, 60, left=True),
    Column("REQ/S", lambda model, _: number(model.ok_rate), 99),
    Column("FAIL/S", lambda model, _: number(model.failed_rate), 70),
    Column("P50", lambda model, _: duration(model.request.p50), 80),
    Column("P99", lambda model, _: duration(model.request.p99), 90),
    Column("IN QUEUE P99", lambda model, _: duration(model.queue.p99), 40),
    Column("IN ENGINE P50", lambda model, _: duration(model.compute.p50), 30),
    Column("QUEUED", lambda model, _: number(model.queued_rows), 85),
    Column("ROWS/BATCH", lambda model, _: number(model.rows_per_batch), 50),
    Column("1 ... 512", _sizes, 20, left=True),
    Column("BUSY", lambda model, _: share(model.busy), 75),
)


def screen(view: View, *, width: int, height: int, ramp: Ramp = BLOCKS) -> Text:
    """The whole screen.

    Args:
        view: What is to be seen.
        width: Columns that there are.
        height: Lines that there are.
        ramp: The characters of bars.
    """
    head = [_title(view, width), _totals(view), _history(view, width, ramp)]
    foot = _jobs(view)
    room = height - len(head) - len(foot) - 2  # an empty line, and the table's titles
    models = sorted(view.models, key=lambda model: -((model.ok_rate or 0.0) + (model.failed_rate or 0.0)))
    details: list[list[Line]] = []
    rows = max(min(len(models), room), min(len(models), LEAST_MODELS))
    left = room - rows
    for model in models:
        detail = _detail(model, width, ramp)
        if not detail or len(detail) > left:
            break
        details.append(detail)
        left -= len(detail)
    more = len(models) - rows
    best = models[: rows - 1] if more > 0 else models  # a line is for the others
    table = _table([model for model in view.models if model in best], width, ramp)
    if more > 0:
        table.append(Text(f"and {more + 1} more with fewer requests", style="dim"))
    body = [Text(""), *table, *(line for detail in details for line in detail)] if view.models else []
    lines = [*head, *body, *foot][:height]
    if view.lost_for is not None:
        for line in lines[1:]:
            line.stylize("dim")
    for line in lines:
        line.rstrip()
        line.truncate(width)
    return Text("\n").join(lines)


def _title(view: View, width: int) -> Line:
    title = Text.assemble(("forebay top", "bold"), f"{GAP}{view.address}")
    if view.lost_for is not None:
        title.append(f"{GAP}NO ANSWER for {view.lost_for:.0f} s", style="bold red")
        title.append(f": {view.trouble}")
        return title
    if not view.release:
        return title
    if view.restarted:
        title.append(f"{GAP}RESTARTED", style="bold yellow")
    if view.draining:
        title.append(f"{GAP}DRAINING", style="bold yellow")
    title.append(f"{GAP}up {_span(view.uptime)}")
    if len(title) + len(view.release) + len(view.front_end) + 3 <= width:
        title.append(f"{GAP}{view.release} {view.front_end}", style="dim")
    return title


def _totals(view: View) -> Line:
    line = Text()
    for what, value, style in (
        ("req/s", number(view.ok_rate), "bold green"),
        ("fail/s", number(view.failed_rate), "bold red" if view.failed_rate else "bold"),
        ("p50", duration(view.request.p50), "bold"),
        ("p99", duration(view.request.p99), "bold"),
        ("queued", number(view.queued_rows), "bold"),
        ("held", size(view.held_bytes), "bold"),
    ):
        line.append(f"{what} ")
        line.append(f"{value:<6}", style=style)
        line.append(GAP)
    return line


def _history(view: View, width: int, ramp: Ramp) -> Line:
    rates = view.history[-width:]
    return Text(spark(rates, ramp), style="green")


def _table(models: Sequence[ModelView], width: int, ramp: Ramp) -> list[Line]:
    """The titles, and a line for each model; the columns that fit."""
    cells = {column: [column.cell(model, ramp) for model in models] for column in COLUMNS}
    widths = {
        column: max(len(column.title), *map(len, texts)) if texts else len(column.title)
        for column, texts in cells.items()
    }
    columns = list(COLUMNS)
    while len(columns) > 1 and sum(widths[column] + len(GAP) for column in columns) - len(GAP) > width:
        columns.remove(min(columns, key=lambda column: column.worth))

    def line(texts: Mapping[Column, str]) -> str:
        return GAP.join(
            texts[column].ljust(widths[column]) if column.left else texts[column].rjust(widths[column])
            for column in columns
        )

    lines = [Text(line({column: column.title for column in columns}), style="bold")]
    for place, model in enumerate(models):
        text = Text(line({column: cells[column][place] for column in columns}))
        if model.state != "ready" or model.usable_instances < model.instances:
            text.stylize("yellow")
        lines.append(text)
    return lines


def _detail(model: ModelView, width: int, ramp: Ramp) -> list[Line]:
    """The batches of a model in the window: how large, why they started; and why requests failed."""
    used = [place for place, count in enumerate(model.batch_sizes) if count]
    if not used and not model.errors:
        return []
    lines = [Text("")]
    title = Text(f"{model.model}:{model.version}", style="bold")
    title.append(
        f"{GAP}{model.engine}, {model.usable_instances}/{model.instances} instances, {model.running_batches} running",
        style="not bold",
    )
    lines.append(title)
    if used:
        most = max(model.batch_sizes)
        beside = [f"{reason} {share(part)}" for reason, part in _parts(model.dispatches)]
        head = f"{'rows':>7}  batches".ljust(9 + BAR + 9)
        lines.append(Text(f"{head}started because" if width >= len(head) + 16 else head, style="dim"))
        for number_, place in enumerate(range(used[0], used[-1] + 1)):
            count = model.batch_sizes[place]
            bar = ramp.full * max(round(BAR * count / most), 1 if count else 0)
            line = Text(f"{SIZES[place]:>7}  ")
            line.append(bar, style="cyan")
            line.append(f" {count}")
            line.pad_right(max(0, 9 + BAR + 9 - len(line)))
            if number_ < len(beside):
                line.append(beside[number_])
            lines.append(line)
        lines.extend(Text(" " * (9 + BAR + 9) + rest) for rest in beside[used[-1] + 1 - used[0] :])
    if model.errors:
        reasons = sorted(model.errors.items(), key=lambda item: -item[1])
        lines.append(
            Text(f"{'errors':>7}  " + ", ".join(f"{reason} {count}" for reason, count in reasons), style="red")
        )
    return lines


def _parts(counts: Mapping[str, int]) -> list[tuple[str, float]]:
    """Counts as shares of their sum, the largest first."""
    total = sum(counts.values())
    return [(name, count / total) for name, count in sorted(counts.items(), key=lambda item: -item[1])]


def _jobs(view: View) -> list[Line]:
    jobs = view.jobs
    if jobs is None:
        return []
    line = Text.assemble(("jobs", "bold"), f"{GAP}{jobs.store}")
    if not jobs.available:
        line.append(f"{GAP}STORE DOES NOT ANSWER", style="bold red")
    for state, count in jobs.states.items():
        line.append(f"{GAP}{state.value.lower()} ")
        line.append(f"{count:,}", style="bold")
    return [Text(""), line]


# --- Figures as text ----------------------------------------------------------------------------------------------


def spark(values: Sequence[float], ramp: Ramp) -> str:
    """A line of bars, the highest as high as the line; what is not zero is seen."""
    most = max(values, default=0)
    if most <= 0:
        return ramp.steps[0] * len(values)
    top = len(ramp.steps) - 1
    return "".join(ramp.steps[max(round(top * value / most), 1 if value > 0 else 0)] for value in values)


def number(value: float | None) -> str:
    """Three digits where there are decimals."""
    if value is None:
        return "-"
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def duration(seconds: float | None) -> str:
    """Such as `0.12 ms`, `3.4 ms`, `1.2 s`."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{_digits(seconds * 1e3)} ms"
    return f"{_digits(seconds)} s"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def share(part: float | None) -> str:
    """In percent."""
    return "-" if part is None else f"{part:.0%}"


def size(nbytes: float) -> str:
    """Such as `12 KiB`."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{number(round(nbytes, 1))} {unit}"
        nbytes /= 1024
    return f"{number(nbytes)} GiB"


def _span(seconds: float) -> str:
    """Such as `2 d 03:04:05`."""
    days, rest = divmod(int(seconds), 86_400)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} d {clock}" if days else clock
