"""Writes docs/modules.md, every module in a sentence: the first of what it says of itself.

Called as `python tools/modules_page.py`; `make docs` does.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "modules.md"
SERVER = ROOT / "server" / "forebay_server"
CLIENT = ROOT / "clients" / "python" / "forebay_client"
CRATE = ROOT / "server" / "native" / "src"

_HEAD = """\
# Every module in a sentence

*This page is made by `make docs`: the sentences are the first of each module's own documentation.*

[architecture.md](architecture.md) shows how the packages hang together.
"""


def sections() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The packages from the way in to the leaves, each with its modules and what they are."""
    rooms = ["", "cli", "app", "wire", "services", "scheduling", "models", "jobs", "engines", "telemetry", "config"]
    for room in rooms:
        files = SERVER.glob("*.py") if not room else SERVER.joinpath(room).rglob("*.py")
        yield ".".join(filter(None, ["forebay_server", room])), list(_python(files, SERVER))
    yield "forebay_client", list(_python(CLIENT.glob("*.py"), CLIENT))
    yield "forebay_native (Rust)", list(_rust(CRATE.rglob("*.rs")))


def _python(files: Iterator[Path], package: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(files):
        name = ".".join(file.relative_to(package).with_suffix("").parts).removesuffix(".__init__")
        yield name.replace("__init__", package.name), _first(ast.get_docstring(ast.parse(file.read_text())) or "")


def _rust(files: Iterator[Path]) -> Iterator[tuple[str, str]]:
    for file in sorted(files):
        lines = [line for line in file.read_text().splitlines() if line.startswith("//!")]
        name = "::".join(file.relative_to(CRATE).with_suffix("").parts).removesuffix("::mod")
        yield name, _first("\n".join(line.removeprefix("//!").strip() for line in lines))


def _first(text: str) -> str:
    """The first sentence of a documentation."""
    found = re.match(r".+?\.(?=\s|$)", text, re.DOTALL)
    return " ".join(found[0].split()) if found else ""


def page() -> str:
    """The whole page."""
    lines = [_HEAD]
    for package, modules in sections():
        lines += [f"## {package}", "", "| module | is |", "|---|---|"]
        lines += [f"| `{name}` | {sentence.replace('|', chr(92) + '|')} |" for name, sentence in modules]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
