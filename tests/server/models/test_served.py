"""Buckets: which one a request's shapes fall into."""

import pytest

from forebay_server.config.tree import BucketsConfig, ModelConfig
from forebay_server.errors import ConfigError, InvalidRequest
from forebay_server.models.served import Buckets, Served
from forebay_server.tensors import FREE, DataType, ModelSpec, TensorSpec


def spec_of(*shapes, batched=True):
    tensors = tuple(
        TensorSpec(name=f"x{index}", data_type=DataType.FP32, shape=shape) for index, shape in enumerate(shapes)
    )
    return ModelSpec(inputs=tensors, outputs=tensors[:1], batched=batched)


def test_fixed_shapes_have_one_bucket():
    """If every row has the same shape there is nothing to choose."""
    buckets = Buckets(spec_of((FREE, 4), (FREE, 2, 3)), BucketsConfig())
    assert buckets.only == ((4,), (2, 3))
    assert buckets.known() == [((4,), (2, 3))]


def test_free_shapes_are_their_own_bucket():
    """Without settings each exact shape is a bucket."""
    buckets = Buckets(spec_of((FREE, FREE)), BucketsConfig())
    assert buckets.only is None
    assert buckets.known() == []
    assert buckets.of(((5,),)) == ((5,),)


def test_shapes_fall_into_the_first_bucket_that_holds_them():
    """Rows are padded up to the smallest shape that is at least as long everywhere."""
    buckets = Buckets(spec_of((FREE, FREE), (FREE, FREE)), BucketsConfig(shapes={"x0": [[4], [8]], "x1": [[4], [8]]}))
    assert buckets.of(((3,), (4,))) == ((4,), (4,))
    assert buckets.of(((5,), (8,))) == ((8,), (8,))
    assert buckets.known() == [((4,), (4,)), ((8,), (8,))]
    with pytest.raises(InvalidRequest) as caught:
        buckets.of(((9,), (1,)))
    assert caught.value.violations == [("inputs[0].shape", "[9] of 'x0' is over its largest bucket, [8]")]


def test_inputs_with_different_ladders_are_combined():
    """If the numbers of shapes differ, all combinations are known, up to a limit."""
    config = BucketsConfig(shapes={"x0": [[1], [2]], "x1": [[1], [2], [3]]})
    buckets = Buckets(spec_of((FREE, FREE), (FREE, FREE)), config)
    assert len(buckets.known()) == 6
    assert len(buckets.known(4)) == 4


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (BucketsConfig(shapes={"z": [[1]]}), "no input 'z'"),
        (BucketsConfig(shapes={"x0": [[1, 2]]}), "does not fit the input 'x0'"),
        (BucketsConfig(shapes={"x1": [[5]]}), "does not fit the input 'x1'"),
        (BucketsConfig(outputs={"z": [0]}), "no output 'z'"),
        (BucketsConfig(outputs={"x0": [0, 0]}), "'x0' has 1 dimensions"),
        (BucketsConfig(outputs={"x0": [3]}), "'x0' has 1 dimensions"),
    ],
)
def test_settings_that_do_not_fit_the_model(config, text):
    """Buckets for what the model doesn't have are refused."""
    with pytest.raises(ConfigError, match=text):
        Buckets(spec_of((FREE, FREE), (FREE, 4)), config)


def test_served_starts_empty():
    """Before it is loaded a version has a name and a state, nothing else."""
    served = Served("m", 3, ModelConfig(), ["stable"])
    assert (served.key, served.labels, served.spec.inputs) == (("m", 3), ("stable",), ())


@pytest.mark.parametrize("value", [1000.0, -129.0, 0.5, float("nan")])
def test_padding_is_what_the_input_can_hold(value):
    """1000 would be -24 in an INT8 tensor. Inputs that are not padded, and floats, don't mind."""
    x = TensorSpec(name="x", data_type=DataType.INT8, shape=(FREE, FREE))
    y = TensorSpec(name="y", data_type=DataType.FP32, shape=(FREE, FREE))
    spec = ModelSpec(inputs=(x, y), outputs=(y,), batched=True)
    with pytest.raises(ConfigError, match="pad_value: the input 'x' is INT8, which can't hold"):
        Buckets(spec, BucketsConfig(shapes={"x": [[4]]}, pad_value=value))
    Buckets(spec, BucketsConfig(shapes={"y": [[4]]}, pad_value=value))
    Buckets(spec, BucketsConfig(shapes={"x": [[4]]}, pad_value=-128.0))
