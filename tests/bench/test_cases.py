"""The choice of cases, and what stands in their way."""

import importlib.util
import subprocess
import sys

import pytest

from bench import cases, models, run, server, targets
from bench.case import Case
from bench.errors import BenchError
from bench.peers import inprocess


def test_everything_is_chosen_by_default():
    """Without names all cases are measured, with all columns that they have."""
    chosen = cases.select([], list(server.COLUMNS))
    assert [case.key for case in chosen] == list(cases.CASES)
    assert all(case.columns == cases.CASES[case.key].columns for case in chosen)


def test_columns_narrow_a_case_but_not_its_bounds():
    """Bounds (in process, fixed server) are measured with any choice; a case without columns is left out."""
    chosen = {case.key: case.columns for case in cases.select([], ["grpc_aio"])}
    assert chosen["unary"] == ("grpc_aio",)
    assert chosen["medium"] == ("inprocess", "grpc_aio")
    assert chosen["ceiling"] == ("fixed-server",)
    assert "memory" not in chosen


def test_cases_come_in_their_order():
    """The order of the names does not matter."""
    assert [case.key for case in cases.select(["large", "unary"], ["forebay"])] == ["unary", "large"]


@pytest.mark.parametrize(("only", "columns"), [(["speed"], []), ([], ["triton"])])
def test_unknown_names_are_refused_with_those_that_exist(only, columns):
    """A wrong name is one clear sentence that lists the right ones."""
    with pytest.raises(BenchError, match=r"there is no .*; there are "):
        cases.select(only, columns)


def test_every_target_asks_for_what_a_case_measures():
    """A target's case and column exist, so that no row is silently missing."""
    for target in targets.TARGETS:
        for point in (target.top, target.bottom):
            assert point is None or point.column in cases.CASES[point.case].columns


def test_repeats_begin_with_another_column_each_time():
    """No column is always measured first."""
    seen = []

    def measure(bench, column, repeat):
        seen.append((repeat, column))
        return iter(())

    case = Case(key="x", title="x", columns=("a", "b", "c"), measure=measure)
    run.measure([case], None, 2)
    assert seen == [(0, "a"), (0, "b"), (0, "c"), (1, "b"), (1, "c"), (1, "a")]


def test_the_bench_refuses_without_the_native_front_end(monkeypatch):
    """Figures of the second front end must not pass for ours; the peers alone may be measured."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "forebay_native" else find(name))
    with pytest.raises(BenchError, match="native front end is not installed"):
        run.check(["forebay"])


def test_an_error_is_one_sentence_and_an_exit_status():
    """No traceback for a mistake on the command line."""
    command = [sys.executable, "-m", "bench.run", "--only", "speed"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=server.ROOT)
    assert finished.returncode == 1
    assert finished.stderr.startswith("bench: there is no `speed`")
    assert "Traceback" not in finished.stderr


def test_the_bound_of_the_medium_model_is_measured_in_a_process_of_its_own(bench_of):
    """The case runs the real program on the server's core and makes a sample of each batch size."""
    bench = bench_of(seconds=0.02)
    models.make("medium", bench.directory)
    samples = list(cases.medium(bench, "inprocess", 3))
    assert [sample.load for sample in samples] == [f"batches of {size}" for size in inprocess.BATCH_SIZES]
    assert all(sample.metrics["rps"] > 0 and sample.repeat == 3 for sample in samples)
