"""ghz: that it takes every file, that all its calls are answered, and the reading of its reports."""

import importlib.util
import itertools
import json
from datetime import datetime

import pytest

from bench import ghz_cases, ghz_runs, models, server
from bench.case import figures_of
from bench.ghz_runs import Step

FILES = list(itertools.product(ghz_runs.RPCS, ghz_runs.PROFILES))
CALLS = {
    "predict": "forebay.v1.InferenceService.Predict",
    "stream": "forebay.v1.InferenceService.StreamPredict",
    "submit": "forebay.v1.JobService.Submit",
}
SHAPE = {
    "latency": {"rps", "async"},
    "breaking-point": {"load-schedule", "load-start", "load-step", "load-end", "load-step-duration", "async"},
    "maximum": set(),
    "stress": {"rps", "async"},
}
ALWAYS = {
    "name", "insecure", "host", "protoset", "call", "binary-file", "concurrency", "connections", "duration",
    "duration-stop", "timeout",
}  # fmt: skip


@pytest.mark.parametrize(("rpc", "profile"), FILES)
def test_a_file_says_what_its_name_says(rpc, profile):
    """ghz takes no notice of settings that it does not know, so that a slip of the pen would go unseen."""
    said = ghz_runs.settings(rpc, profile)
    assert said["name"] == f"{rpc}, {profile}"
    assert said["call"] == CALLS[rpc]
    optional = {"skipFirst"} | ({"stream-call-count"} if rpc == "stream" else set())
    assert ALWAYS | SHAPE[profile] <= said.keys() <= ALWAYS | SHAPE[profile] | optional
    assert ghz_runs.seconds(said["timeout"]) < ghz_runs.seconds(said["duration"])
    if profile == "breaking-point":
        length = ghz_runs.seconds(said["load-step-duration"])
        assert ghz_runs.steps(said) * length == ghz_runs.seconds(said["duration"])


def test_there_are_no_other_files():
    """Each is run below."""
    assert {path.stem for path in ghz_runs.FOLDER.glob("*.json")} == {f"{rpc}-{profile}" for rpc, profile in FILES}


@pytest.fixture(scope="module")
def serving(model_files, core, tmp_path_factory):
    """A server that takes jobs, too."""
    if importlib.util.find_spec("forebay_native") is None:
        pytest.skip("native front end not installed")
    models.protoset(model_files.model.parent / "forebay.binpb")
    store = tmp_path_factory.mktemp("jobs") / "jobs.db"
    column = server.COLUMNS["forebay"]
    options = ("--jobs", str(store))
    with server.Server(column, model_files.model, model_files.calls, str(core), options=options) as running:
        yield running


@pytest.mark.parametrize(("rpc", "profile"), FILES)
def test_every_file_runs_and_all_calls_are_ok(ghz, serving, model_files, tmp_path, rpc, profile):
    """Shortened, at rates that any machine can do, with time enough for each call; the report is kept twice."""
    folder = model_files.model.parent
    changed = {
        "host": serving.target,
        "protoset": folder / "forebay.binpb",
        "binary-file": folder / f"small.{rpc}.bin",
        "timeout": "60s",
        "skipFirst": 0,
    }
    said = ghz_runs.settings(rpc, profile)
    if "load-step" in said:
        changed |= {"load-start": 5, "load-step": 5, "load-end": 25}
    if "rps" in said:
        changed |= {"rps": 10}
    changed |= ghz_runs.lasting(said | changed, 0.5)
    report = ghz_runs.run(rpc, profile, tmp_path, changed)

    assert report["statusCodeDistribution"] == {"OK": report["count"]}, report["errorDistribution"]
    assert len(report["details"]) == report["count"] > 0
    assert report["options"]["call"] == CALLS[rpc]
    assert "<html" in (tmp_path / f"{rpc}-{profile}.html").read_text()
    if profile == "breaking-point":
        made = ghz_runs.stepped(report)
        assert [step.rate for step in made] == [5, 10, 15, 20, 25]
        assert all(step.held for step in made)
        assert sum(step.sent for step in made) <= report["count"]


def test_the_case_puts_both_generators_side_by_side(ghz, loadgen, bench_of, monkeypatch):
    """For a profile of each kind; ours has checked every answer."""
    monkeypatch.setattr(ghz_runs, "RPCS", ("predict",))
    monkeypatch.setattr(ghz_runs, "PROFILES", ("latency", "maximum"))
    bench = bench_of(seconds=0.3)
    monkeypatch.setattr(ghz_runs, "run", in_folder(bench.directory, ghz_runs.run))
    samples = list(ghz_cases.ghz(bench, "forebay", 0))

    assert [sample.load for sample in samples] == [
        "predict, latency: ghz", "predict, latency: own", "predict, maximum: ghz", "predict, maximum: own",
    ]  # fmt: skip
    assert all(sample.metrics["rps"] > 0 and sample.metrics["failures"] == 0 for sample in samples)
    assert samples[0].detail["files"] == ["kept/ghz/predict-latency.json", "kept/ghz/predict-latency.html"]
    assert all((bench.kept.parent / file).exists() for file in samples[0].detail["files"])


def in_folder(folder, run):
    """Runs ghz with the files of a test instead of those in `build/bench`."""

    def changed(rpc, profile, kept, settings, core=None):
        here = {"protoset": folder / "forebay.binpb", "binary-file": folder / f"small.{rpc}.bin", "skipFirst": 0}
        return run(rpc, profile, kept, {**settings, **here}, core)

    return changed


# --- reading ---------------------------------------------------------------------------------------------------------


def report_of(calls, **options):
    """A report of calls, each (seconds when it began, seconds that it took, status)."""
    details = [
        {
            "timestamp": datetime.fromtimestamp(1_800_000_000 + began + took).astimezone().isoformat(),
            "latency": round(took * 1e9),
            "status": status,
        }
        for began, took, status in calls
    ]
    return {"details": details, "options": options}


def test_latencies_are_those_of_answered_calls():
    """A refusal is quick and says nothing about speed."""
    report = report_of([(0.0, 0.1, "OK"), (0.5, 0.3, "OK"), (0.2, 0.001, "ResourceExhausted")])
    found = ghz_runs.figures(report, items=32)
    assert found == pytest.approx(
        {"rps": 80.0, "p50_ms": 100.0, "p99_ms": 300.0, "p99_9_ms": 300.0, "failures": 1.0}, rel=1e-3
    )
    assert ghz_runs.figures({"details": None}) == dict.fromkeys(found, 0.0)


def test_the_figures_have_the_names_of_our_own_generator():
    """They stand in one table."""
    latency = {"p50": 1.0, "p99": 1.0, "p99_9": 1.0}
    own = figures_of({"rps": 1, "goodput_rps": 1, "latency_ms": latency, "requests": 1, "ok": 1, "cpu_share": 0.1})
    assert ghz_runs.figures(report_of([(0.0, 0.1, "OK")])).keys() <= own.keys()


def test_calls_belong_to_the_step_in_which_they_began():
    """ghz notes when a call ended, which may be later."""
    report = report_of(
        [(0.0, 0.1, "OK"), (0.9, 0.5, "OK"), (1.0, 0.1, "OK"), (1.5, 0.1, "Unavailable"), (2.5, 0.1, "OK")],
        **{"load-start": 2, "load-step": 1, "load-end": 3, "load-step-duration": 10**9},
    )
    first, second = ghz_runs.stepped(report)
    assert (first.rate, first.due, first.sent, first.answered, first.held, first.told) == (2, 2, 2, 2, True, True)
    assert (second.rate, second.due, second.sent, second.answered, second.held, second.told) == (
        3,
        3,
        2,
        1,
        False,
        False,
    )


@pytest.mark.parametrize(
    ("steps", "held", "broke", "limit"),
    [
        ([(10, 10, 10), (20, 20, 20)], 20, 0, 0),
        ([(10, 10, 10), (20, 20, 19), (30, 30, 30)], 10, 20, 0),
        ([(10, 10, 1)], 0, 10, 0),
        ([(10, 10, 10), (20, 15, 15), (30, 15, 1)], 10, 0, 20),
    ],
)
def test_the_breaking_point_is_the_first_step_that_is_not_held(steps, held, broke, limit):
    """Unless ghz itself could not keep up, when nothing is known of the server."""
    made = [Step(rate=rate, due=rate, sent=sent, answered=answered, p99_ms=1.0) for rate, sent, answered in steps]
    assert ghz_runs.breaking_point(made) == {"held_per_s": held, "broke_per_s": broke, "ghz_limit_per_s": limit}


def test_drift_compares_the_end_with_the_beginning():
    """Twice as slow is 2; too few calls are 0."""
    calls = [(float(index), 0.1 if index < 4 else 0.2, "OK") for index in range(8)]
    assert ghz_runs.drift(report_of(calls)) == pytest.approx(2.0)
    assert ghz_runs.drift(report_of(calls[:3])) == 0


@pytest.mark.parametrize(("text", "seconds"), [("250ms", 0.25), ("3s", 3.0), ("10m", 600.0)])
def test_durations_are_gos(text, seconds):
    """Of one unit, as the files have them."""
    assert ghz_runs.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "3", "1m30s", "1.5s"])
def test_other_durations_are_refused(text):
    """Rather than misread."""
    with pytest.raises(ValueError, match="is no duration"):
        ghz_runs.seconds(text)


def test_a_shorter_schedule_has_all_its_steps():
    """They become shorter, not fewer."""
    said = ghz_runs.settings("predict", "breaking-point")
    changed = ghz_runs.lasting(said, 4.0)
    assert changed == {"duration": "4000ms", "load-step-duration": "200ms"}
    assert json.dumps(ghz_runs.lasting(ghz_runs.settings("predict", "maximum"), 4.0)) == '{"duration": "4000ms"}'
