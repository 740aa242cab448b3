"""Puts the table of a run of `make bench` into the pages: all of it into docs/benchmarks.md, its head into README.md.

Called as `python tools/publish_bench.py bench/results/DATE.md`.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
HEAD = 13
"""Rows about serving, which come first; those after them are about jobs, tracing and the bench itself."""


def parts(report: str) -> tuple[list[str], list[str]]:
    """What a report says of the run, and its first table."""
    lines = report.splitlines()
    begin = next(place for place, line in enumerate(lines) if line.startswith("| what |"))
    end = next(place for place in range(begin, len(lines)) if not lines[place].startswith("|"))
    told = [line for line in lines[1:begin] if line and not line.startswith("Medians;")]
    return told, lines[begin:end]


def block(report: str, most: int | None = None) -> str:
    """What goes between the marks: at most so many rows of the table."""
    told, table = parts(report)
    kept = table if most is None else table[: 2 + most]
    about = " ".join(told)
    return "\n".join([BEGIN, f"{about} Medians, and the least and greatest repeat.", "", *kept, END])


def put(page: str, text: str) -> str:
    """A page with another text between its marks."""
    before, _, rest = page.partition(BEGIN)
    return before + text + rest.partition(END)[2]


def main() -> None:
    """The command."""
    report = Path(sys.argv[1]).read_text()
    for name, most in (("README.md", HEAD), ("docs/benchmarks.md", None)):
        page = ROOT / name
        page.write_text(put(page.read_text(), block(report, most)))


if __name__ == "__main__":
    main()
