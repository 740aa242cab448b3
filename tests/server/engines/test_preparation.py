"""What becomes of inputs between the message and the model: exact values, served specifications, wrong settings."""

import ml_dtypes
import numpy as np
import pytest

from forebay_server.config.tree import InputConfig
from forebay_server.engines.base import EngineBatch
from forebay_server.engines.preparation import AT_ONCE, plan
from forebay_server.engines.prepared import PreparedInstance
from forebay_server.errors import ConfigError
from forebay_server.tensors import FREE, NUMPY_DTYPES, DataType, ModelSpec, TensorSpec

IMAGENET = InputConfig(
    data_type="UINT8", layout="channels_last", scale=1 / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]
)


def spec_of(data_type=DataType.FP32, shape=(FREE, 3, 5, 7), *, batched=True):
    """A model with one input `x`."""
    tensor = TensorSpec(name="x", data_type=data_type, shape=shape)
    return ModelSpec(inputs=(tensor,), outputs=(), batched=batched)


def only(spec, config):
    """The served specification of `x`, and how it is prepared."""
    served, (made,) = plan(spec, {"x": config})
    return served.inputs[0], made


def pixels_of(*shape):
    """All 256 values, in an order that differs from place to place."""
    values = np.arange(np.prod(shape)).astype("u1")
    return np.random.default_rng(7).permutation(values).reshape(shape)


@pytest.mark.parametrize("data_type", [DataType.FP16, DataType.BF16, DataType.FP32, DataType.FP64])
def test_images_become_what_the_formula_says(data_type):
    """(x * scale - mean) / std per channel, channels first, rounded once from double precision."""
    sent, made = only(spec_of(data_type), IMAGENET)
    pixels = pixels_of(4, 5, 7, 3)
    target = np.empty((4, 3, 5, 7), NUMPY_DTYPES[data_type])
    made.apply(pixels, target)

    exact = (pixels.astype("f8") * IMAGENET.scale - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    assert target.tobytes() == exact.transpose(0, 3, 1, 2).astype(NUMPY_DTYPES[data_type]).tobytes()
    assert made.target_shape((4, 5, 7, 3)) == (4, 3, 5, 7)
    assert made.source_shape((4, 3, 5, 7)) == (4, 5, 7, 3)
    assert sent == TensorSpec(name="x", data_type=DataType.UINT8, shape=(FREE, 5, 7, 3), measures=True)


@pytest.mark.parametrize(
    ("shape", "config"),
    [
        ((3, 130, 140), IMAGENET),
        ((2, 3, 130, 140), IMAGENET),
        ((3, 130, 140), InputConfig(data_type="UINT8", mean=[1.0, 2.0, 3.0])),
        ((130, 140, 3), InputConfig(data_type="UINT8", mean=[1.0, 2.0, 3.0])),
        ((3, 130, 140), InputConfig(data_type="UINT8", layout="channels_last", scale=0.1)),
        ((7, 20_000), InputConfig(data_type="UINT8", scale=0.1)),
    ],
)
@pytest.mark.parametrize("batched", [True, False])
def test_large_batches_are_prepared_row_by_row(shape, config, batched):
    """The same bits as in one go, of models without a batch as well."""
    spec = spec_of(DataType.FP32, (FREE, *shape) if batched else shape, batched=batched)
    sent, made = only(spec, config)
    full = (2, *sent.shape[1:]) if batched else sent.shape
    pixels = pixels_of(*full)
    target = np.empty(made.target_shape(full), "f4")
    assert pixels.size > AT_ONCE or not batched
    made.apply(pixels, target)

    mean, std = (np.array(values or [empty]) for values, empty in ((config.mean, 0.0), (config.std, 1.0)))
    last = np.moveaxis(pixels, made.channel_axis, -1) if len(mean) > 1 else pixels
    exact = (last * config.scale - mean) / std
    exact = np.moveaxis(exact, -1, made.channel_axis) if len(mean) > 1 else exact
    exact = np.moveaxis(exact, -1, -3) if config.layout == "channels_last" else exact
    assert target.tobytes() == exact.astype("f4").tobytes()


def test_one_number_holds_for_all_channels():
    """Without a list per channel no channel axis is needed, and the shape stays."""
    sent, made = only(spec_of(shape=(FREE, 6)), InputConfig(data_type="UINT8", scale=0.5, mean=[3.0], std=[4.0]))
    target = np.empty((2, 6), "f4")
    made.apply(np.array([[0, 1, 2, 3, 254, 255], [9, 9, 9, 0, 0, 0]], "u1"), target)
    assert sent.shape == (FREE, 6)
    assert target.tolist() == [
        [-0.75, -0.625, -0.5, -0.375, 31.0, 31.125],
        [0.375, 0.375, 0.375, -0.75, -0.75, -0.75],
    ]


@pytest.mark.parametrize(("shape", "axis"), [((FREE, 3, 4, 4), 1), ((FREE, 4, 4, 3), 3), ((3, 2, 2), 0)])
def test_channels_are_found_where_their_number_stands(shape, axis):
    """A layout that stays has its channels in the one dimension of their length."""
    batched = shape[0] == FREE
    _, made = only(spec_of(shape=shape, batched=batched), InputConfig(data_type="UINT8", mean=[0.0, 100.0, 200.0]))
    full = tuple(2 if length == FREE else length for length in shape)
    target = np.empty(full, "f4")
    made.apply(np.full(full, 210, "u1"), target)
    for channel, value in enumerate((210.0, 110.0, 10.0)):
        assert (np.take(target, channel, axis) == value).all()


@pytest.mark.parametrize(
    ("sent", "taken"),
    [("UINT16", "INT64"), ("INT32", "INT64"), ("UINT8", "INT32"), ("UINT32", "UINT64"), ("INT8", "INT16")],
)
def test_integers_are_widened(sent, taken):
    """Every value of the narrow type comes out as itself, the least and the largest as well."""
    served, made = only(spec_of(DataType[taken], (FREE, 4)), InputConfig(data_type=sent))
    limits = np.iinfo(NUMPY_DTYPES[DataType[sent]])
    ids = np.array([[limits.min, 0, 1, limits.max]], NUMPY_DTYPES[DataType[sent]])
    target = np.empty((1, 4), NUMPY_DTYPES[DataType[taken]])
    made.apply(ids, target)
    assert target.tolist() == [[limits.min, 0, 1, limits.max]]
    assert (served.data_type, served.shape, served.measures) == (DataType[sent], (FREE, 4), False)


def test_the_layout_alone_can_change():
    """Floats in another order of dimensions are only moved; frames of videos are dimensions before them."""
    _, made = only(spec_of(shape=(FREE, FREE, 3, 2, 2)), InputConfig(layout="channels_last"))
    source = np.arange(2 * 4 * 2 * 2 * 3, dtype="f4").reshape(2, 4, 2, 2, 3)
    target = np.empty((2, 4, 3, 2, 2), "f4")
    made.apply(source, target)
    assert np.array_equal(target, source.transpose(0, 1, 4, 2, 3))


def test_inputs_that_nobody_speaks_of_stay():
    """No settings, or settings that change nothing, make no preparation."""
    spec = spec_of()
    assert plan(spec, {}) == (spec, (None,))
    assert plan(spec, {"x": InputConfig()}) == (spec, (None,))


@pytest.mark.parametrize(
    ("spec", "name", "config", "sentence"),
    [
        (spec_of(), "y", InputConfig(data_type="UINT8"), "the model has no input 'y'; it has x"),
        (spec_of(), "x", InputConfig(data_type="INT32"), "inputs.x.data_type: INT32 can't be made FP32"),
        (spec_of(DataType.INT32), "x", InputConfig(data_type="UINT32"), "UINT32 can't be made INT32"),
        (spec_of(DataType.BYTES), "x", InputConfig(data_type="UINT8"), "text is taken as it is sent"),
        (spec_of(DataType.INT64), "x", InputConfig(data_type="INT32", scale=2.0), "are for UINT8"),
        (spec_of(), "x", InputConfig(mean=[1.0]), "scale, mean and std are for UINT8"),
        (spec_of(shape=(FREE, 3, 4)), "x", InputConfig(layout="channels_last"), r"a row of \[3, 4\] has no channels"),
        (spec_of(), "x", InputConfig(data_type="UINT8", mean=[1.0, 2.0], std=[1.0] * 3), "2 numbers in mean and 3 in"),
        (spec_of(), "x", InputConfig(data_type="UINT8", std=[1.0, 0.0, 1.0]), "no std is 0"),
        (spec_of(), "x", InputConfig(data_type="UINT8", scale=float("nan")), "are finite"),
        (spec_of(), "x", InputConfig(data_type="UINT8", layout="channels_last", mean=[1.0] * 4), "4 channels in mean"),
        (spec_of(shape=(FREE, 3, 3, 9)), "x", InputConfig(data_type="UINT8", mean=[1.0] * 3), "isn't clear"),
        (spec_of(DataType.FP16), "x", InputConfig(data_type="UINT8", scale=300.0), "numbers that float16 can't hold"),
    ],
)
def test_what_cannot_be_done_exactly_is_refused(spec, name, config, sentence):
    """One sentence, before anything runs."""
    with pytest.raises(ConfigError, match=sentence):
        plan(spec, {name: config})


class Recorder:
    """An instance that keeps copies of what it is given; it has staging buffers if wanted."""

    def __init__(self, *, stages):
        self.stages = stages
        self.given = []
        self.staged = []
        self.closed = False

    def stage(self, shapes):
        if not self.stages:
            return None
        self.staged = [np.zeros(shapes[0], ml_dtypes.bfloat16), np.zeros(shapes[1], "f4")]
        return self.staged

    def infer(self, batch):
        self.given.append([array.copy() for array in batch.inputs])
        self.used = list(batch.inputs)
        self.rows, self.parameters = batch.rows, batch.parameters
        return ["answer"]

    def close(self):
        self.closed = True


@pytest.mark.parametrize("stages", [False, True])
def test_an_instance_prepares_its_batches(stages):
    """Prepared inputs go to the engine, into its own buffers if it has some; the others as they are."""
    image = TensorSpec(name="image", data_type=DataType.BF16, shape=(FREE, 3, 2, 2))
    other = TensorSpec(name="other", data_type=DataType.FP32, shape=(FREE, 2))
    spec = ModelSpec(inputs=(image, other), outputs=(), batched=True)
    _, preparations = plan(spec, {"image": InputConfig(data_type="UINT8", layout="channels_last", scale=2.0)})
    inner = Recorder(stages=stages)
    instance = PreparedInstance(inner, preparations)
    assert instance.stage([(1, 2, 2, 3), (1, 2)]) is None

    for rows in (2, 1, 3):
        pixels = np.arange(rows * 12, dtype="u1").reshape(rows, 2, 2, 3)
        plain = np.full((rows, 2), rows, "f4")
        assert instance.infer(EngineBatch([pixels, plain], rows - 1 or 1, {"a": 1})) == ["answer"]
        expected = (2.0 * pixels.transpose(0, 3, 1, 2)).astype(ml_dtypes.bfloat16)
        assert inner.given[-1][0].tobytes() == expected.tobytes()
        assert inner.given[-1][1].tobytes() == plain.tobytes()
        assert (inner.rows, inner.parameters) == (rows - 1 or 1, {"a": 1})
        if stages:
            assert [used is staged for used, staged in zip(inner.used, inner.staged, strict=True)] == [True, True]
    instance.close()
    assert inner.closed


def test_memory_is_kept_from_batch_to_batch():
    """A batch that is not larger than an earlier one is prepared in the same memory."""
    _, preparations = plan(spec_of(shape=(FREE, 3)), {"x": InputConfig(data_type="UINT8")})
    inner = Recorder(stages=False)
    instance = PreparedInstance(inner, preparations)
    addresses = []
    for rows in (8, 3, 8):
        instance.infer(EngineBatch([np.ones((rows, 3), "u1")], rows))
        addresses.append(inner.used[0].ctypes.data)
    assert len(set(addresses)) == 1
