"""The GPU check where there is no GPU: every part says why it was not executed, and the report says so too."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bench.gpu import __main__ as command
from bench.gpu import here, report, site, wheels
from bench.gpu.child import missing
from bench.gpu.outcome import FAILED, NOT_EXECUTED, PASSED, Notes, Outcome, read
from bench.gpu.parts import PARTS, Part
from bench.gpu.report import Report
from forebay_server.engines.gpu import cuda
from forebay_server.engines.gpu.device import NoDevice

ROOT = Path(__file__).parents[2]


def gpu():
    """Whether there is one."""
    try:
        return cuda.devices()
    except NoDevice:
        return 0


without_gpu = pytest.mark.skipif(bool(gpu()), reason="there is a GPU here: `make gpu-check` tests it")


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A whole run of the command."""
    folder = tmp_path_factory.mktemp("report")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-m", "bench.gpu", "--report", str(folder)]
    finished = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return finished, json.loads((folder / "gpu-check.json").read_text()), (folder / "gpu-check.md").read_text()


@without_gpu
def test_every_part_says_why_it_was_not_executed(checked):
    """None claims anything, none fails, and each names what it lacks."""
    finished, told, page = checked
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert [part["part"] for part in told["parts"]] == list(PARTS)
    for part in told["parts"]:
        assert (part["state"], part["findings"]) == (NOT_EXECUTED, []), part
        assert "is not installed" in part["reason"] or "NVIDIA" in part["reason"], part
    assert f"0 of {len(PARTS)} parts executed, 0 failed" in finished.stdout
    assert page.count("*not executed*") == len(PARTS)
    assert "passed" not in page
    assert "passed" not in finished.stdout


@without_gpu
def test_the_report_says_where_and_when(checked):
    """Hardware, versions and date; no paths, no host names."""
    _, told, page = checked
    assert told["machine"]["gpus"] == []
    assert told["machine"]["python"].startswith("CPython")
    assert told["machine"]["packages"]["numpy"]
    assert told["date"].endswith("UTC")
    assert told["date"] in page
    assert "No GPU. " in page
    assert str(ROOT) not in json.dumps(told)
    assert os.uname().nodename not in page


def test_the_readme_repeats_the_last_report_and_nothing_better():
    """What stands between its marks is what docs/gpu-check.json comes to, word for word."""
    last = report.read(ROOT / "docs" / "gpu-check.json")
    page = (ROOT / "README.md").read_text()
    assert report.readme(page, last) == page
    assert "<!-- gpu:begin -->" in page
    assert (ROOT / "docs" / "gpu-check.md").read_text() == last.page()


def test_a_part_that_takes_too_long_is_ended(tmp_path):
    """Its time is bounded, and what it has started ends with it."""
    (tmp_path / "packages").mkdir()
    environment, _ = site.make(tmp_path / "packages", None)
    found = command.run_part("device", environment, tmp_path, 0.01)
    assert (found.state, found.reason) == (FAILED, "it was ended after 0.01 s")


def test_a_part_for_which_no_time_is_left_is_not_executed(tmp_path):
    """That of all parts together is bounded too."""
    found = command.run_part("device", {}, tmp_path, 0.0)
    assert (found.state, found.reason) == (NOT_EXECUTED, "no time was left for it")


def test_runs_on_one_machine_are_joined(tmp_path):
    """Of each part the last that was executed, in the order of the parts; of two machines nothing is joined."""

    def write(name, date, machine="one", **states):
        outcomes = [Outcome(part=part, title=part, state=state, reason=date) for part, state in states.items()]
        told = Report(date=date, machine={"gpus": [{"name": machine}]}, wheels=[], outcomes=outcomes)
        folder = tmp_path / name
        folder.mkdir()
        (folder / "gpu-check.json").write_text(told.as_json())
        return folder / "gpu-check.json"

    files = [
        write("a", "first", bert=NOT_EXECUTED, device=PASSED, graphs=FAILED),
        write("b", "second", bert=PASSED, device=NOT_EXECUTED, graphs=PASSED, leaks=NOT_EXECUTED),
    ]
    found = report.joined(files)
    assert [(each.part, each.state, each.reason) for each in found.outcomes] == [
        ("device", PASSED, "first"),
        ("graphs", PASSED, "second"),
        ("leaks", NOT_EXECUTED, "second"),
        ("bert", PASSED, "second"),
    ]
    assert (found.date, found.machine) == ("first to second", {"gpus": [{"name": "one"}]})
    with pytest.raises(ValueError, match="it is of another machine"):
        report.joined([*files, write("c", "third", machine="two", bert=PASSED)])


def test_parts_can_be_picked():
    """By name; an unknown name is an error that lists the known ones."""
    assert command.options(["--part", "bert, device"]).part == ["bert", "device"]
    assert command.options([]).part == list(PARTS)
    with pytest.raises(SystemExit) as caught:
        command.options(["--part", "berth"])
    assert caught.value.code == 2


def test_what_a_part_needs_is_looked_for_before_it_runs():
    """The first package that is missing is named, also one inside a package that is missing."""
    part = Part(title="", module="", needs=("json", "no_such_package.inner", "other"))
    assert missing(part) == "no_such_package.inner"
    assert missing(Part(title="", module="", needs=("json",))) == ""


def test_every_part_has_its_function():
    """The table and the modules agree; found by reading, because they import what is not here."""
    for name, part in PARTS.items():
        file = ROOT.joinpath(*part.module.split(".")).with_suffix(".py")
        assert f"\ndef {part.function}(notes: Notes) -> None:\n" in file.read_text(), name


@pytest.mark.parametrize(
    ("write", "state", "reason"),
    [
        (lambda notes: notes.check("a", good=True), PASSED, ""),
        (lambda notes: notes.check("a", good=False), FAILED, "a"),
        (lambda notes: notes.figure("a", 0.89, least=0.9), FAILED, "a"),
        (lambda notes: notes.figure("a", 50.1, "us", most=50), FAILED, "a"),
        (lambda notes: notes.figure("a", 1), PASSED, ""),
        (lambda notes: None, FAILED, "it looked at nothing"),
    ],
)
def test_a_part_passes_only_if_all_that_it_found_is_good(tmp_path, write, state, reason):
    """A figure beyond its goal is a failure, and so is a part that found nothing; what it wrote is read back."""
    notes = Notes(tmp_path / "part.json", Outcome(part="p", title="t"))
    write(notes)
    notes.end(PASSED)
    found = read(tmp_path / "part.json")
    assert (found.state, found.reason) == (state, reason)
    assert found.findings == notes.outcome.findings


def test_findings_survive_a_process_that_dies(tmp_path):
    """What was written before a crash is in the report, as a failure."""
    notes = Notes(tmp_path / "part.json", Outcome(part="p", title="t"))
    notes.check("before the crash", good=True)
    found = read(tmp_path / "part.json")
    assert (found.state, [finding.title for finding in found.findings]) == (FAILED, ["before the crash"])
    assert read(tmp_path / "nothing.json") is None


def test_the_page_shows_figures_goals_and_reasons():
    """Markdown with one table of parts and one for each part that found something."""
    bad = Outcome(part="bert", title="BERT", state=FAILED, reason="served | slow", seconds=1)
    notes = Notes.__new__(Notes)
    notes.outcome, notes.write = bad, lambda: None
    notes.figure("served over in-process", 0.8765, least=0.9)
    notes.figure("served", 12345.6, "items/s")
    notes.check("answers", good=True, detail="64 of them")
    machine = {**here.describe([]), "gpus": []}
    page = Report(date="2026-01-01 00:00 UTC", machine=machine, wheels=["a.whl"], outcomes=[bad]).page()
    assert "| `bert` | BERT | **failed**: served \\| slow |" in page
    assert "| served over in-process | 0.8765 | at least 0.9 | **no** |" in page
    assert "| served | 12,346 items/s |  |  |" in page
    assert "| answers | 64 of them |  | yes |" in page
    assert "From a folder of wheels: a.whl." in page


MINOR = sys.version_info.minor


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("a-1.0-py3-none-any.whl", True),
        (f"a-1.0-cp3{MINOR}-cp3{MINOR}-manylinux_2_28_x86_64.manylinux2014_x86_64.whl", True),
        (f"a-1.0-cp3{MINOR - 1}-abi3-manylinux_2_28_x86_64.whl", True),
        (f"a-1.0-cp3{MINOR - 1}-cp3{MINOR - 1}-manylinux_2_28_x86_64.whl", False),
        (f"a-1.0-cp3{MINOR + 1}-abi3-manylinux_2_28_x86_64.whl", False),
        ("a-1.0-py3-none-win_amd64.whl", False),
        ("a-1.0-1-py2.py3-none-any.whl", True),
        ("a.whl", False),
    ],
)
def test_wheels_that_fit_are_known_by_their_names(name, fits, monkeypatch):
    """Python version, ABI and machine."""
    monkeypatch.setattr(wheels.sysconfig, "get_platform", lambda: "linux-x86_64")
    assert wheels.fits(name) is fits


def test_a_folder_of_wheels_becomes_importable_and_nothing_is_installed(tmp_path):
    """Those that fit are unpacked, the parts that belong to the top go there, and nothing leaves the folder."""
    folder, target = tmp_path / "wheels", tmp_path / "packages"
    folder.mkdir()
    target.mkdir()
    with zipfile.ZipFile(folder / "thing-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("thing/__init__.py", "value = 7\n")
        archive.writestr("thing-1.0.data/purelib/beside.py", "value = 8\n")
        archive.writestr("thing-1.0.data/scripts/run", "no")
        archive.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        archive.writestr("nvidia/cu13/lib/libthing.so", "a library")
        archive.writestr("../outside.py", "no")
    (folder / "other-1.0-py3-none-win_amd64.whl").write_bytes(b"not even a zip file")
    environment, used = site.make(target, folder)
    code = (
        "import thing, beside; from importlib.metadata import version, entry_points as e;"
        "print(thing.value, beside.value, version('thing'), sorted(p.name for p in e(group='forebay.engines'))[0])"
    )
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["7", "8", "1.0", "check"]
    assert used == ["thing-1.0-py3-none-any.whl"]
    assert environment["LD_LIBRARY_PATH"].split(os.pathsep)[0] == str(target / "nvidia/cu13/lib")
    assert not (tmp_path / "outside.py").exists()
    assert not (target / "run").exists()
