"""An exception from a rule of the linter or of the type checker says which rule, and has its reason beside it."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
FOLDERS = ("bench", "clients", "examples", "server", "tests", "tools")

SILENCED = re.compile(r"# (?:noqa: [A-Z]+[0-9]+(?:, [A-Z]+[0-9]+)*|type: ignore\[[a-z-]+(?:,[a-z-]+)*\])")
ANY = re.compile(r"# (?:noqa|type: ignore)\b")


def unexplained(text: str) -> list[int]:
    """The numbers of the lines that silence a rule and do not say which, or why."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        said = SILENCED.sub("", line)
        if ANY.search(said) or (said != line and not re.search(r"\w", line.rpartition(SILENCED.findall(line)[-1])[2])):
            found.append(number)
    return found


def test_every_exception_has_its_reason():
    """So that whoever comes later can tell whether it is still one."""
    files = [file for folder in FOLDERS for file in (REPOSITORY / folder).rglob("*.py") if file != Path(__file__)]
    wrong = [f"{file.relative_to(REPOSITORY)}:{line}" for file in files for line in unexplained(file.read_text())]

    assert wrong == []
    assert len(files) > 300  # it has looked at something


def test_a_missing_reason_is_seen():
    """Positive control."""
    assert unexplained("x = 1  # noqa: E501  # a link\n") == []
    assert unexplained("x = f()  # type: ignore[arg-type]  # noqa: E501  # the stub is wrong\n") == []
    assert unexplained("x = 1  # noqa: E501\ny = 2  # noqa\nz = 3  # noqa: E501, S101\n") == [1, 2, 3]
    assert unexplained("x = f()  # type: ignore[arg-type]  # noqa: E501\n") == [1]
    assert unexplained("x = f()  # type: ignore  # the stub is wrong\n") == [1]
