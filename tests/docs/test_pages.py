"""The documentation does what it says."""

import re

import pytest

from forebay.v1 import error_pb2
from forebay_server.cli.root import COMMANDS
from forebay_server.jobs.states import TRANSITIONS
from forebay_server.services.status import CODE_NAMES
from tests.docs.conftest import PAGES, REPOSITORY, blocks_of

RUN = [page for page in PAGES if blocks_of(page)]
READ = [
    *PAGES,
    *(REPOSITORY / name for name in ("CONTRIBUTING.md", "bench/ghz/README.md", "tests/conformance/README.md")),
]
"""Those, and what stands beside what it is about."""

WRITTEN = {"bench/results/DATE.md", "deploy/compose/production.env"}
"""Files that pages speak of and that people or programs write."""

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FILE = re.compile(r"`((?:bench|clients|deploy|docs|examples|gen|protos|server|tests|tools)/[\w./-]+)`")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("script", RUN, indirect=True, ids=[page.name for page in RUN])
def test_what_a_page_says_can_be_done(script):
    """Every marked block of a page runs in a clean folder and prints what the page promises."""
    script.run()
    script.stop()


@pytest.mark.parametrize("page", READ, ids=[str(page.relative_to(REPOSITORY)) for page in READ])
def test_links_lead_somewhere(page):
    """A link within the repository names a file that exists, and a heading in it if it names one."""
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if heading:
            assert heading in anchors(target.read_text()), f"{page.name}: {link}"


@pytest.mark.parametrize("page", READ, ids=[str(page.relative_to(REPOSITORY)) for page in READ])
def test_files_are_there(page):
    """A file or folder of the repository that a page names exists."""
    named = set(_FILE.findall(_FENCE.sub("", page.read_text()))) - WRITTEN
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []


def test_the_index_names_every_page():
    """A page that nobody links to is not read."""
    linked = set(_LINK.findall((REPOSITORY / "docs" / "README.md").read_text()))
    pages = {page.name for page in (REPOSITORY / "docs").glob("*.md")} - {"README.md"}
    assert pages <= linked


def test_every_reason_is_explained_with_its_code():
    """The table of docs/errors.md has each ErrorReason once, with the status code that the server gives it."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", (REPOSITORY / "docs" / "errors.md").read_text(), re.MULTILINE)
    reasons = {name.removeprefix("ERROR_REASON_") for name, _ in error_pb2.ErrorReason.items()} - {"UNSPECIFIED"}
    assert sorted(reason for reason, _ in rows) == sorted(reasons)
    assert dict(rows) == CODE_NAMES


def test_the_states_of_jobs_are_those_of_the_code():
    """The table of docs/jobs.md is the one that the stores keep to, and its picture has the same arrows."""
    page = (REPOSITORY / "docs" / "jobs.md").read_text()
    rows = re.findall(r"^\| ([A-Z]+) \| ([A-Z]+) \| ([a-z, ]+) \|$", page, re.MULTILINE)
    expected = [(old.name, new.name, who) for old, following in TRANSITIONS.items() for new, who in following.items()]
    assert sorted(rows) == sorted(expected)
    picture = page.split("## The life of a job")[1].split("```")[1]
    assert set(re.findall(r"[A-Z]{2,}", picture)) == {state.name for state in TRANSITIONS}


def test_only_commands_that_exist_are_shown():
    """`forebay X` in a block of a page is one of the commands, and each command is shown somewhere."""
    shown = set()
    for page in PAGES:
        for block in _FENCE.findall(page.read_text()):
            for line in block.splitlines():
                found = re.match(r"(?:\$ )?(?:until |! |\w+=\$\()?forebay (\w[\w-]*)", line)
                if found:
                    assert found[1] in COMMANDS, f"{page.name}: {line}"
                    shown.add(found[1])
    assert shown == set(COMMANDS)


def anchors(text):
    """The names that headings have on the usual hosts."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(_FENCE.sub("", text)))
    return {heading.strip().replace(" ", "-") for heading in plain}
