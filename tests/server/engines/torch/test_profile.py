"""What a package says of itself, and that batches are held to it."""

import json

import pytest

from forebay_server.engines.base import RejectInput
from forebay_server.engines.torch import profile
from forebay_server.engines.torch.profile import Range, Tensor
from forebay_server.tensors import FREE, DataType, ModelSpec, TensorSpec
from tests.server.engines.torch.packages import profile_like


def test_the_specification():
    """Free dimensions are free; the batch is dimension 0 if that is the same everywhere."""
    assert profile_like().spec() == ModelSpec(
        inputs=(
            TensorSpec(name="x", data_type=DataType.FP32, shape=(FREE, 4)),
            TensorSpec(name="ids", data_type=DataType.INT64, shape=(FREE, FREE)),
        ),
        outputs=(TensorSpec(name="y", data_type=DataType.FP32, shape=(FREE, FREE)),),
        batched=True,
    )


@pytest.mark.parametrize(
    ("output", "batch"),
    [(("b", 2), "b"), (("s", 2), None), ((1, 2), None), ((None, 2), None), ((), None)],
)
def test_the_batch_is_the_same_everywhere(output, batch):
    """One output whose dimension 0 is another makes the model one without a batch."""
    made = profile_like(outputs=(Tensor("y", "FP32", output),))
    assert (made.batch, made.spec().batched, made.max_batch_size) == (batch, batch is not None, 8 if batch else 0)


def test_lengths_are_measured():
    """A batch that fits gives the lengths of the free dimensions, and those the shapes of the outputs."""
    made = profile_like()
    lengths = made.measure([(3, 4), (3, 17)])
    assert (lengths, made.output_shapes(lengths)) == ({"b": 3, "s": 17}, [(3, 17)])


def test_an_output_of_unknown_length():
    """Lengths that only the run tells leave the shapes of the outputs unknown."""
    made = profile_like(outputs=(Tensor("y", "FP32", ("b", None)),))
    assert made.output_shapes(made.measure([(3, 4), (3, 17)])) is None


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ([(9, 4), (9, 2)], "dimension 0 of the input 'x' is 9, but the model was compiled for 1 to 8"),
        ([(2, 4), (2, 513)], "dimension 1 of the input 'ids' is 513, but the model was compiled for 1 to 512"),
        ([(2, 4), (2, 0)], "dimension 1 of the input 'ids' is 0, but the model was compiled for 1 to 512"),
        ([(2, 5), (2, 1)], "dimension 1 of the input 'x' is 5, not 4"),
        ([(2, 4), (3, 1)], "dimension 0 of the input 'ids' is 3, but must be 2, as elsewhere in the request"),
        ([(2, 4, 1), (2, 1)], "the input 'x' has 3 dimensions, not 2"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, sentence):
    """Each misfit is refused with a sentence for the caller: the package itself would compute it."""
    with pytest.raises(RejectInput) as caught:
        profile_like().measure(shapes)
    assert (caught.value.message, caught.value.rows) == (sentence, None)


def test_what_fits_just_so_is_taken():
    """The ends of the ranges belong to them."""
    made = profile_like(dimensions={"b": Range(1, 8), "s": Range(3, None)})
    assert made.measure([(8, 4), (8, 2**31 - 1)]) == {"b": 8, "s": 2**31 - 1}
    assert made.measure([(1, 4), (1, 3)]) == {"b": 1, "s": 3}
    with pytest.raises(RejectInput, match="is 2, but the model was compiled for 3 or more"):
        made.measure([(1, 4), (1, 2)])


def test_to_text_and_back():
    """A profile survives the package's metadata."""
    made = profile_like(dimensions={"b": Range(1, 8), "s": Range(3, None)})
    assert profile.decode(profile.encode(made)) == made


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "its profile has the format 2, not 1"),
        ({"inputs": []}, "it has no inputs or no outputs"),
        ({"outputs": [["y", "FP128", ["b"]]]}, "'y' is of the type 'FP128', which can't be served"),
        ({"outputs": [["y", "BYTES", ["b"]]]}, "'y' is of the type 'BYTES', which can't be served"),
        ({"inputs": [["x", "FP32", ["n"]]]}, "'x' has a dimension 'n' that is not described"),
        ({"inputs": [["x", "FP32", [-1]]]}, "'x' has a dimension of the length -1"),
        ({"inputs": [["x", "FP32", [None]]]}, "an input has a dimension of no length"),
        ({"inputs": [["x", "FP32", [1] * 9]]}, "'x' has more than 8 dimensions"),
        ({"dimensions": {"b": {"least": 3, "most": 2}}}, "no lengths from 3 to 2"),
        ({"extra": 1}, "unknown field `extra`"),
        ({"torch": 3}, "Expected `str`, got `int`"),
    ],
)
def test_a_foreign_profile_is_refused(change, reason):
    """What a package says is not believed blindly."""
    fields = json.loads(profile.encode(profile_like()))
    fields["inputs"] = [list(tensor.values()) for tensor in fields["inputs"]]
    fields["outputs"] = [list(tensor.values()) for tensor in fields["outputs"]]
    fields.update(change)
    for what in ("inputs", "outputs"):
        fields[what] = [dict(zip(("name", "data_type", "shape"), tensor, strict=True)) for tensor in fields[what]]
    with pytest.raises(ValueError, match=r".+") as caught:
        profile.decode(json.dumps(fields))
    assert reason in str(caught.value)


def test_no_profile_at_all():
    """Text that is no JSON is refused as such."""
    with pytest.raises(ValueError, match="malformed"):
        profile.decode("not json")
