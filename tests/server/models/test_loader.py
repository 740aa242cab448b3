"""From settings to a model that is ready to run."""

import os
import sys

import numpy as np
import pytest
import structlog
from onnx import TensorProto, helper, numpy_helper

from forebay_server.config.tree import BatchingConfig, BucketsConfig, EngineConfig, InputConfig, ModelConfig
from forebay_server.engines.base import EngineBatch, ModelLoadError
from forebay_server.engines.synthetic import SyntheticEngine
from forebay_server.errors import ConfigError
from forebay_server.models import warm_up
from forebay_server.models.catalogue import Catalogue
from forebay_server.models.costs import CostCache
from forebay_server.models.loader import load
from forebay_server.models.served import ModelState, RunMode, Served
from forebay_server.tensors import FREE, DataType


@pytest.fixture
def loaded(tmp_path):
    """Loads models, and closes them at the end."""
    models = []
    before = list(sys.path)

    def load_one(path, **settings):
        cache = settings.pop("cache_dir", None)
        for_jobs = settings.pop("for_jobs", False)
        model = load(ModelConfig(path=str(path), **settings), cache_dir=cache, for_jobs=for_jobs)
        models.append(model)
        return model

    yield load_one
    for model in models:
        model.close()
    sys.path[:] = before


def test_a_bare_file_is_enough(onnx_models, loaded):
    """A small model is batched, measured, and runs inline, with nothing set."""
    model = loaded(onnx_models.make_linear_model(), engine=EngineConfig(threads=1))
    assert (model.name, model.version, model.engine_name) == ("linear", 1, "onnxruntime")
    assert (model.spec.batched, model.max_batch_size, model.unbatched_because) == (True, 128, "")
    assert [rows for _, rows, _ in model.measurements][:3] == [1, 2, 4]
    assert {bucket for bucket, _, _ in model.measurements} == {((64,),)}
    assert 1 <= model.best_batch_size <= 128
    assert model.inline
    x = np.ones((2, 64), "f4")
    assert np.array_equal(model.instances[0].infer(EngineBatch([x], 2))[0], onnx_models.linear(x))


def test_the_steps_are_told(onnx_models):
    """Whoever asks hears loading, then warming."""
    steps = []
    config = ModelConfig(path=str(onnx_models.make_linear_model()))
    load(config, progress=lambda state, _words: steps.append(state)).close()
    assert steps == [ModelState.LOADING, ModelState.WARMING]


def test_a_served_version_takes_over_what_was_found(onnx_models, loaded):
    """After `adopt` the catalogue's entry has the model's specification, buckets and figures."""
    model = loaded(onnx_models.make_linear_model(), engine=EngineConfig(run="worker", instances=2))
    served = Served("linear", 1, ModelConfig())
    catalogue = Catalogue()
    catalogue.add(served)
    served.adopt(model)
    catalogue.set_state(served, ModelState.READY, ready_time=1.0)
    assert catalogue.resolve("linear", "").spec is model.spec
    assert (served.instances, served.run_mode, served.max_batch_size) == (2, RunMode.WORKER, 128)
    assert served.bucket_of([(64,)]) == ((64,),)


def test_a_model_has_an_engine_for_each_device(loaded):
    """Instances of all of them, each on its own device; the CPU's threads are shared among all."""
    model = loaded("synthetic:", engine=EngineConfig(devices=["fake:0", "fake:1"], instances=2))
    assert [engine.device for engine in model.engines] == ["fake:0", "fake:1"]
    assert (model.device, len(model.instances), model.inline) == ("fake:0,fake:1", 4, False)
    assert model.cost_key.device == "fake:0,fake:1"
    assert loaded("synthetic:").device == "cpu"
    with pytest.raises(ConfigError, match="the engine does not run on 'cuda:0', only on cpu, fake"):
        loaded("synthetic:", engine=EngineConfig(devices=["cuda:0"]))


def test_engines_of_one_model_must_agree(loaded, monkeypatch):
    """A plan for another GPU may have other shapes; mixing their instances would break callers by chance."""
    specs = iter(["FP32", "FP64"])
    load_one = SyntheticEngine.load

    def load_differently(engine):
        engine._options.options = {"data_type": next(specs)}
        return load_one(engine)

    monkeypatch.setattr(SyntheticEngine, "load", load_differently)
    with pytest.raises(ModelLoadError, match="not the same model on fake:1 as on fake:0"):
        loaded("synthetic:", engine=EngineConfig(devices=["fake:0", "fake:1"]))


def test_inputs_are_prepared_for_any_engine(loaded):
    """Warm-up, row check and costs are of what callers send; the engine is given what it takes."""
    pixels = InputConfig(data_type="UINT8", layout="channels_last", scale=0.5)
    model = loaded("synthetic:shape=3x4x5", inputs={"x": pixels})
    (x,) = model.spec.inputs
    assert (x.data_type, x.shape) == (DataType.UINT8, (FREE, 4, 5, 3))
    assert {bucket for bucket, _, _ in model.measurements} == {((4, 5, 3),)}
    given = np.arange(60, dtype="u1").reshape(1, 4, 5, 3)
    (y,) = model.instances[0].infer(EngineBatch([given], 1))
    assert np.array_equal(y, 0.5 * given.transpose(0, 3, 1, 2))


def test_rows_that_see_each_other_are_found_behind_preparation(loaded):
    """The pixels of the check are of the whole range, or tolerance would hide what neighbours do."""
    pixels = InputConfig(data_type="UINT8", scale=1 / 255)
    assert loaded("synthetic:coupled=true", inputs={"x": pixels}).max_batch_size == 1
    assert loaded("synthetic:coupled=true,data_type=FP16", inputs={"x": pixels}).max_batch_size == 1


def test_engines_hear_of_buckets_in_the_models_layout(loaded, monkeypatch):
    """Callers' buckets have the channels last; plans and packages are made for shapes that have them first."""
    heard = []
    load_one = SyntheticEngine.load
    monkeypatch.setattr(
        SyntheticEngine, "load", lambda engine: (heard.append(engine._options.buckets.shapes), load_one(engine))[1]
    )
    model = loaded(
        "synthetic:shape=3x?x?",
        inputs={"x": InputConfig(data_type="UINT8", layout="channels_last")},
        buckets=BucketsConfig(shapes={"x": [[8, 6, 3], [16, 12, 3]]}),
    )
    assert heard == [{"x": [[3, 8, 6], [3, 16, 12]]}]
    assert {bucket for bucket, _, _ in model.measurements} == {((8, 6, 3),), ((16, 12, 3),)}


def test_coupled_rows_run_alone(onnx_models, loaded):
    """A model whose rows see each other gets batches of one row, and says why; unless that is wanted."""
    path = onnx_models.make_coupled_model()
    model = loaded(path)
    assert (model.spec.batched, model.max_batch_size) == (True, 1)
    assert "output 'y' changes with the other rows of its batch" in model.unbatched_because
    assert [rows for _, rows, _ in model.measurements] == [1]
    assert loaded(path, batching=BatchingConfig(check_rows=False)).max_batch_size == 128
    assert loaded("synthetic:coupled=true").max_batch_size == 1


def test_settings_can_deny_the_batch(onnx_models, loaded):
    """With `none` every tensor is served whole, and the reason is said."""
    model = loaded(onnx_models.make_linear_model(), batching=BatchingConfig(batch_dimension="none"))
    assert (model.spec.batched, model.max_batch_size) == (False, 1)
    assert model.unbatched_because == "batch_dimension is none"


def test_outputs_that_do_not_follow_the_batch_are_served_whole(onnx_models, loaded):
    """If not even one row comes out as one, dimension 0 is no batch, whatever the file says."""
    shape = numpy_helper.from_array(np.array([-1], np.int64), "shape")
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    inputs, outputs = [("x", TensorProto.FLOAT, ["N", 4])], [("y", TensorProto.FLOAT, ["N"])]
    model = loaded(onnx_models.save("flat", [node], inputs, outputs, [shape]))
    assert (model.spec.batched, model.max_batch_size, model.inline) == (False, 1, False)
    assert model.unbatched_because == "the output 'y' has the shape [4] for a batch of 1 rows"
    assert [(bucket, rows) for bucket, rows, _ in model.measurements] == [(((1, 4),), 1)]


def test_a_fixed_batch_is_taken_if_the_settings_say_so(onnx_models, loaded):
    """Dimension 0 of length 8 is no batch by itself; with `first` all batches are padded to 8 rows."""
    path = onnx_models.make_linear_model(batch=8)
    model = loaded(path)
    assert (model.spec.batched, model.batch_sizes, model.max_batch_size) == (False, (), 1)
    model = loaded(path, batching=BatchingConfig(batch_dimension="first"))
    assert (model.spec.batched, model.batch_sizes, model.max_batch_size) == (True, (8,), 8)
    assert model.spec.inputs[0].shape == (FREE, 64)
    assert [rows for _, rows, _ in model.measurements] == [8]
    with pytest.raises(ConfigError, match="4 is below 8, the smallest batch"):
        loaded(path, batching=BatchingConfig(batch_dimension="first", max_batch_size=4))


def test_free_shapes_are_warmed_up_with_a_guess_and_get_a_worker(onnx_models, loaded):
    """What rows of any length cost isn't known, so such a model does not run inline by itself."""
    model = loaded(onnx_models.make_sequence_model())
    assert (model.max_batch_size, model.inline) == (128, False)
    assert {bucket for bucket, _, _ in model.measurements} == {((16,),)}


def test_every_bucket_is_measured(onnx_models, loaded):
    """With buckets all shapes are known beforehand."""
    model = loaded(onnx_models.make_sequence_model(), buckets=BucketsConfig(shapes={"x": [[4], [8]]}))
    assert {bucket for bucket, _, _ in model.measurements} == {((4,),), ((8,),)}
    assert model.buckets.of(((5,),)) == ((8,),)


def test_rows_that_are_too_large_are_refused(onnx_models, loaded):
    """A dimension that no message can hold (a damaged file, say) is refused before memory is asked for it."""
    with pytest.raises(ModelLoadError, match="take 4194304 MiB, more than can be served"):
        loaded(onnx_models.make_identity_model(shape=("N", 2**40)))


def test_ids_stay_in_the_vocabulary(onnx_models, loaded):
    """Integers are small at warm-up, so that embeddings work."""
    model = loaded(onnx_models.make_embedding_model(vocabulary=2))
    assert (model.max_batch_size, model.unbatched_because) == (128, "")


def test_text_models_warm_up(onnx_models, loaded):
    """BYTES inputs are made up too."""
    assert loaded(onnx_models.make_string_model()).max_batch_size == 128


def test_a_model_that_takes_no_made_up_input_is_served_row_by_row(loaded, tmp_path):
    """If rows can't be compared they don't share a batch, unless the settings trust the model."""
    (tmp_path / "picky_model.py").write_text(
        "from forebay_server.engines.base import RejectInput\n"
        "from forebay_server.engines.python import model\n"
        '@model(inputs={"x": ("INT32", (-1, 2))}, outputs={"y": ("INT32", (-1, 2))})\n'
        "def predict(x):\n"
        "    if (x < 1000).any():\n"
        "        raise RejectInput('too small')\n"
        "    return x + 1\n"
    )
    model = loaded(f"{tmp_path}/picky_model.py:predict")
    assert (model.max_batch_size, model.measurements, model.inline) == (1, [], False)
    assert model.unbatched_because == "warm-up found no input that it takes, so its rows could not be compared"
    trusting = loaded(f"{tmp_path}/picky_model.py:predict", batching=BatchingConfig(check_rows=False))
    assert (trusting.max_batch_size, trusting.unbatched_because) == (128, "")


def test_slow_models_get_a_worker(loaded):
    """Above about a millisecond a batch does not run in the dispatcher, unless it must."""
    assert not loaded("synthetic:base_ms=3").inline
    assert loaded("synthetic:base_ms=3", engine=EngineConfig(run="inline")).inline
    assert loaded("synthetic:").inline
    assert not loaded("synthetic:", engine=EngineConfig(run="worker")).inline
    assert not loaded("synthetic:worker=true").inline
    with pytest.raises(ConfigError, match="can't run inline"):
        loaded("synthetic:worker=true", engine=EngineConfig(run="inline"))


def test_jobs_have_instances_of_their_own_where_these_give_way(onnx_models, loaded):
    """As many again as the model has; none if it runs inline, takes more than one thread, or runs no jobs."""

    path = onnx_models.make_linear_model()

    def made(*, threads=1, run="worker", for_jobs=True):
        return loaded(path, engine=EngineConfig(threads=threads, instances=2, run=run), for_jobs=for_jobs)

    with_own = made()
    assert (len(with_own.instances), len(with_own.job_instances)) == (2, 2)
    x = np.ones((2, 64), "f4")
    assert np.array_equal(with_own.job_instances[1].infer(EngineBatch([x], 2))[0], onnx_models.linear(x))
    assert not made(threads=2).job_instances
    assert not made(run="inline").job_instances
    assert not made(for_jobs=False).job_instances


def test_costs_are_kept_and_checked(loaded, tmp_path):
    """A second start takes the kept costs; costs that are half off are measured again."""
    first = loaded("synthetic:base_ms=20", cache_dir=tmp_path)
    again = loaded("synthetic:base_ms=20", cache_dir=tmp_path)
    assert again.measurements == first.measurements
    cache = CostCache(tmp_path)
    assert first.cost_key == again.cost_key
    cache.save(first.cost_key, [(bucket, rows, seconds * 3) for bucket, rows, seconds in first.measurements])
    new = loaded("synthetic:base_ms=20", cache_dir=tmp_path)
    assert all(0.020 <= seconds < 0.050 for _, _, seconds in new.measurements)
    assert cache.load(first.cost_key) == new.measurements


def test_an_engine_may_say_how_large_its_batches_are(loaded, monkeypatch):
    """Batches go up to that size, whatever the default is; settings may ask for less, but not for more."""
    opened = SyntheticEngine.load

    def load_with_limit(engine):
        engine.max_batch_size = 200
        return opened(engine)

    monkeypatch.setattr(SyntheticEngine, "load", load_with_limit)
    model = loaded("synthetic:")
    assert (model.batch_sizes, model.max_batch_size) == ((), 200)
    assert loaded("synthetic:", batching=BatchingConfig(max_batch_size=100)).max_batch_size == 100
    with pytest.raises(ConfigError, match="201 is above 200, the largest batch of synthetic:"):
        loaded("synthetic:", batching=BatchingConfig(max_batch_size=201))


def test_what_holds_the_gil_runs_inline(loaded, monkeypatch):
    """A worker thread would stop the dispatcher all the same, and the watchdog would not know. Settings may differ."""
    monkeypatch.setattr(SyntheticEngine, "holds_gil", property(lambda _: True, lambda *_: None), raising=False)
    assert loaded("synthetic:base_ms=5").inline
    assert not loaded("synthetic:base_ms=5", engine=EngineConfig(run="worker")).inline


def test_of_what_holds_the_gil_there_is_one_instance(loaded, monkeypatch):
    """Others could only wait for it, and the watchdog would not know of their batches. The log says so."""
    assert len(loaded("synthetic:base_ms=5", engine=EngineConfig(instances=3)).instances) == 3
    monkeypatch.setattr(SyntheticEngine, "holds_gil", property(lambda _: True, lambda *_: None), raising=False)
    with structlog.testing.capture_logs() as logs:
        model = loaded("synthetic:base_ms=5", engine=EngineConfig(instances=3))
    assert (len(model.instances), model.inline) == (1, True)
    assert [(log["event"], log["instances"]) for log in logs] == [("one instance is made of several", 3)]


@pytest.mark.parametrize("sizes", [(1, 2, 3, 4, 6, 8), (1, 2), (8,)])
def test_rows_are_compared_where_batches_have_certain_sizes(loaded, monkeypatch, sizes):
    """A graph's ladder begins with one row, in which no row has a neighbour: a larger batch is looked at."""

    def sized(engine):
        engine.batch_sizes = sizes
        return opened(engine)

    opened = SyntheticEngine.load
    monkeypatch.setattr(SyntheticEngine, "load", sized)
    assert loaded("synthetic:").max_batch_size == sizes[-1]
    assert loaded("synthetic:coupled=true").max_batch_size == 1


def test_memory_caps_the_batch(loaded):
    """A model that runs out of memory at warm-up is capped at what fitted."""
    model = loaded("synthetic:oom_above=8,from_start=true")
    assert max(rows for _, rows, _ in model.measurements) == 8
    assert model.max_batch_size == 8


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "a folder, not a model file"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_bytes(b"hello"), "model.onnx"),
        (lambda path: path.symlink_to(path), "can't be read"),
    ],
)
def test_files_that_are_no_models(loaded, tmp_path, make, text):
    """Each is one sentence that names the file."""
    path = tmp_path / "model.onnx"
    make(path)
    with pytest.raises(ModelLoadError) as caught:
        loaded(path)
    assert text in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_a_file_without_permission(onnx_models, loaded):
    """A file that may not be read is said to be so."""
    path = onnx_models.make_linear_model()
    path.chmod(0)
    with pytest.raises(ModelLoadError, match="can't be read: Permission denied"):
        loaded(path)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"name": "a/b"}, "can't be called 'a/b'"),
        ({"labels": ["7"]}, "a label can't be the number 7"),
        ({"engine": EngineConfig(name="caffe")}, "no engine is called 'caffe'"),
        ({"buckets": BucketsConfig(shapes={"z": [[4]]})}, "no input 'z'"),
    ],
)
def test_wrong_settings(onnx_models, loaded, settings, text):
    """Settings that don't fit are one sentence."""
    with pytest.raises(ConfigError, match=text):
        loaded(onnx_models.make_linear_model(), **settings)


def test_a_model_that_breaks_its_promise_is_not_served(loaded, tmp_path):
    """A wrong output type shows at warm-up, not at the first caller's."""
    (tmp_path / "liar_model.py").write_text(
        "from forebay_server.engines.python import model\n"
        '@model(inputs={"x": ("FP32", (-1, 2))}, outputs={"y": ("FP32", (-1, 2))})\n'
        "def predict(x):\n"
        "    return x.astype('f8')\n"
    )
    with pytest.raises(ModelLoadError, match="'y' is FP64, not FP32"):
        loaded(f"{tmp_path}/liar_model.py:predict")


def test_warm_up_is_short_for_small_models(onnx_models, loaded, monkeypatch):
    """A small model is measured in far less than a second."""
    model = loaded(onnx_models.make_linear_model(), engine=EngineConfig(threads=1))
    assert sum(seconds for _, _, seconds in model.measurements) * warm_up.TIMINGS < 0.1
    assert model.load_seconds < 5


def test_a_module_that_ends_the_process_is_a_model_that_cannot_be_loaded(loaded, tmp_path):
    """Such as a script with `sys.exit` at its end. The loader's thread would end, and nobody would ever know."""
    (tmp_path / "script.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(ModelLoadError, match=r"script\.py:model: it wants to end the process \(SystemExit: 3\)"):
        loaded(f"{tmp_path / 'script.py'}:model")


def test_a_model_that_no_request_could_fit_cannot_be_loaded(loaded):
    """Tensors of the contract have eight dimensions at most."""
    assert len(loaded("synthetic:shape=1x1x1x1x1x1x1").spec.inputs[0].shape) == 8
    with pytest.raises(ModelLoadError, match="the input 'x' has 9 dimensions, and a tensor that is sent may have 8"):
        loaded("synthetic:shape=1x1x1x1x1x1x1x1")
