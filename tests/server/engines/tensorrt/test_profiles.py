"""Profiles: which are built for a model, which one a batch belongs to, and what does not fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay_server.engines.base import ModelLoadError
from forebay_server.engines.tensorrt import profiles
from forebay_server.engines.tensorrt.profiles import Range
from forebay_server.errors import ConfigError
from forebay_server.tensors import FREE, DataType, ModelSpec, TensorSpec

SMALL = (Range((1, 4), (4, 4), (8, 4)),)
LARGE = (Range((1, 4), (16, 8), (16, 16)),)
CHANGE = "change buckets.shapes or batching.max_batch_size, or build it again"


def spec(*shapes, batched=True, outputs=((FREE, 2),)):
    """Inputs a, b, ... of these shapes."""
    inputs = tuple(
        TensorSpec(name=name, data_type=DataType.FP32, shape=shape) for name, shape in zip("abcd", shapes, strict=False)
    )
    made = tuple(TensorSpec(name=f"y{n}", data_type=DataType.FP32, shape=shape) for n, shape in enumerate(outputs))
    return ModelSpec(inputs=inputs, outputs=made, batched=batched)


def test_a_model_of_fixed_rows_gets_one_profile():
    """From one row to the most, fastest at the most."""
    assert profiles.derive(spec((FREE, 3)), {}, most_rows=8) == [(Range((1, 3), (8, 3), (8, 3)),)]
    assert profiles.derive(spec((FREE, 3)), {}) == [(Range((1, 3), (128, 3), (128, 3)),)]
    assert profiles.derive(spec((FREE, 3)), {}, most_rows=8, best_rows=4) == [(Range((1, 3), (4, 3), (8, 3)),)]
    assert profiles.derive(spec((FREE, 3)), {}, most_rows=8, best_rows=99) == [(Range((1, 3), (8, 3), (8, 3)),)]


def test_each_bucket_gets_a_profile():
    """Inputs with equally many shapes go up together."""
    found = profiles.derive(
        spec((FREE, FREE), (FREE, FREE), (FREE, 5)), {"a": [[4], [9]], "b": [[4], [9]]}, most_rows=2
    )
    assert found == [
        (Range((1, 4), (2, 4), (2, 4)), Range((1, 4), (2, 4), (2, 4)), Range((1, 5), (2, 5), (2, 5))),
        (Range((1, 9), (2, 9), (2, 9)), Range((1, 9), (2, 9), (2, 9)), Range((1, 5), (2, 5), (2, 5))),
    ]


def test_one_profile_can_hold_all_buckets():
    """From the least of each dimension to the most of it."""
    found = profiles.derive(spec((FREE, FREE, FREE)), {"a": [[4, 20], [9, 10]]}, most_rows=2, spread="one")
    assert found == [(Range((1, 4, 10), (2, 9, 20), (2, 9, 20)),)]


def test_a_model_that_is_not_batched_has_whole_shapes():
    """And a model without free dimensions wants no profile."""
    assert profiles.derive(spec((FREE, 3), batched=False), {"a": [[7, 3]]}) == [(Range((7, 3), (7, 3), (7, 3)),)]
    assert profiles.derive(spec((4, 3), batched=False), {}) == []


def test_open_shapes_must_be_named():
    """A plan can't be built for any length; the sentence says what to set."""
    with pytest.raises(ModelLoadError) as caught:
        profiles.derive(spec((FREE, 3), (FREE, FREE)), {"a": [[3]]})
    assert str(caught.value) == (
        "the input 'b' has free dimensions, [-1, -1], and a plan is built for known ones: set buckets.shapes.b"
    )


@pytest.mark.parametrize(
    ("ladders", "said"),
    [
        ({"x": [[3]]}, "buckets.shapes: the model has no input 'x'; it has a"),
        ({"a": [[3, 3]]}, "buckets.shapes: [3, 3] does not fit the input 'a', whose rows are [-1]"),
        ({"a": [[0]]}, "buckets.shapes: [0] does not fit the input 'a', whose rows are [-1]"),
    ],
)
def test_buckets_must_suit_the_model(ladders, said):
    """Before a build of minutes, and in the words of the settings."""
    with pytest.raises(ConfigError) as caught:
        profiles.derive(spec((FREE, FREE)), ladders)
    assert str(caught.value) == said
    with pytest.raises(ConfigError):
        profiles.fitting(spec((FREE, FREE)), [LARGE], ladders, 0)


def test_a_batch_goes_to_the_profile_whose_best_is_nearest():
    """Of those that hold it; the first of two that are equally near."""
    assert profiles.choose([SMALL, LARGE], [(4, 4)]) == 0
    assert profiles.choose([SMALL, LARGE], [(8, 4)]) == 0
    assert profiles.choose([SMALL, LARGE], [(9, 4)]) == 1
    assert profiles.choose([SMALL, LARGE], [(8, 5)]) == 1
    assert profiles.choose([LARGE, SMALL, SMALL], [(1, 4)]) == 1
    assert profiles.choose([SMALL, LARGE], [(17, 4)]) is None
    assert profiles.choose([SMALL, LARGE], [(4, 4, 1)]) is None


@given(st.lists(st.tuples(*[st.integers(1, 20)] * 3).map(sorted), min_size=1, max_size=5), st.integers(1, 25))
def test_the_choice_is_the_best_of_all(bounds, length):
    """Whatever the profiles are."""
    held = [(Range((low,), (best,), (high,)),) for low, best, high in bounds]
    found = profiles.choose(held, [(length,)])
    fits = [(abs(best - length), index) for index, (low, best, high) in enumerate(bounds) if low <= length <= high]
    assert found == (min(fits)[1] if fits else None)


def test_the_batch_dimension_of_a_plan():
    """Free everywhere, alike in all inputs, and of more than one length."""
    two = [(Range((1, 4), (4, 4), (8, 4)), Range((1, 2), (4, 2), (8, 2)))]
    assert profiles.batched(spec((FREE, 4), (FREE, 2)), two)
    assert not profiles.batched(spec((FREE, 4), (FREE, 2), outputs=((3, 2),)), two)
    assert not profiles.batched(spec((FREE, 4), (FREE, 2), outputs=((),)), two)
    other = [(Range((1, 4), (4, 4), (8, 4)), Range((1, 2), (4, 2), (9, 2)))]
    assert not profiles.batched(spec((FREE, 4), (FREE, 2)), other)
    assert not profiles.batched(spec((FREE, 4)), [(Range((8, 4), (8, 4), (8, 4)),)])


def test_the_owner_has_the_last_word():
    """On the batch dimension."""
    assert profiles.served(spec((FREE, 4)), "auto").batched
    assert not profiles.served(spec((FREE, 4)), "none").batched
    assert profiles.served(spec((8, 4), batched=False), "first").batched


def test_lengths_that_are_the_same_everywhere_are_settled():
    """But for the batch, and for inputs that are padded to buckets."""
    two = [(Range((1, 4, 2), (4, 4, 5), (8, 4, 9)),), (Range((1, 4, 2), (4, 4, 2), (8, 4, 2)),)]
    free = spec((FREE, FREE, FREE))
    assert profiles.settled(free, two, {}).inputs[0].shape == (FREE, 4, FREE)
    assert profiles.settled(free, two, {"a": [[4, 2]]}) == free
    fixed = [(Range((8, 4), (8, 4), (8, 4)),)]
    assert profiles.settled(spec((FREE, FREE)), fixed, {}).inputs[0].shape == (FREE, 4)
    assert profiles.settled(spec((FREE, FREE), batched=False), fixed, {}).inputs[0].shape == (8, 4)


def test_a_plan_for_certain_shapes_needs_its_buckets():
    """Without them requests of other shapes would all be refused."""
    two = [(Range((1, n), (4, n), (8, n)),) for n in (3, 6)]
    with pytest.raises(ModelLoadError) as caught:
        profiles.fitting(spec((FREE, FREE)), two, {}, 0)
    assert str(caught.value) == (
        "it is built for certain shapes, a [1, 3] to [8, 3] and a [1, 6] to [8, 6]: set them in buckets.shapes"
    )
    assert profiles.fitting(spec((FREE, FREE)), two, {"a": [[3], [6]]}, 0) == [1, 2, 3, 4, 6, 8]


def test_batches_are_padded_to_sizes_that_every_bucket_has():
    """Up to the owner's most, or the plan's."""
    assert profiles.fitting(spec((FREE, 4)), [SMALL], {}, 0) == [1, 2, 3, 4, 6, 8]
    assert profiles.fitting(spec((FREE, 4)), [SMALL], {}, 5) == [1, 2, 3, 4, 5]
    assert profiles.fitting(spec((FREE, 4)), [(Range((8, 4), (8, 4), (8, 4)),)], {}, 0) == [8]
    assert profiles.fitting(spec((FREE, 4), batched=False), [SMALL], {"a": [[4, 4]]}, 0) == []
    assert profiles.fitting(spec((FREE, FREE)), [SMALL, LARGE], {"a": [[4], [9]]}, 0) == [1, 2, 3, 4, 6, 8, 12, 16]
    assert profiles.fitting(spec((FREE, FREE)), [LARGE], {}, 3) == [1, 2, 3]


def test_sizes_between_two_profiles_are_left_out():
    """A plan may have one profile for single rows and another for full batches."""
    one, full = (Range((1, 4), (1, 4), (1, 4)),), (Range((5, 4), (16, 4), (16, 4)),)
    assert profiles.fitting(spec((FREE, 4)), [one, full], {}, 0) == [1, 5, 6, 8, 12, 16]
    wide = (Range((5, 4), (16, 4), (16, 5)),)
    assert profiles.fitting(spec((FREE, FREE)), [one, wide], {}, 0) == [1, 5, 6, 8, 12, 16]


@pytest.mark.parametrize(
    ("ladders", "rows", "said"),
    [
        ({"a": [[4]]}, 9, "batching.max_batch_size is 9, but the plan takes at most 8 rows"),
        (
            {"a": [[4], [5]]},
            0,
            f"no profile of the plan holds a [8, 5]; it has a [1, 4] to [8, 4]: {CHANGE}",
        ),
    ],
)
def test_what_does_not_fit_is_told(ladders, rows, said):
    """In one sentence, with what there is."""
    with pytest.raises(ModelLoadError) as caught:
        profiles.fitting(spec((FREE, FREE)), [SMALL], ladders, rows)
    assert str(caught.value) == said


def test_a_bucket_that_takes_fewer_rows_is_told():
    """The owner wants 16 rows, and they have no profile in the small bucket."""
    only_large = (Range((1, 5), (16, 8), (16, 16)),)
    with pytest.raises(ModelLoadError, match=r"^no profile of the plan holds a \[16, 4\]; it has a \[1, 4\] to"):
        profiles.fitting(spec((FREE, FREE)), [SMALL, only_large], {"a": [[4], [9]]}, 16)
    assert profiles.fitting(spec((FREE, FREE)), [SMALL, only_large], {"a": [[4], [9]]}, 0)[-1] == 8


def test_whole_shapes_must_have_a_profile():
    """Also those of a model that is not batched."""
    with pytest.raises(ModelLoadError, match=r"^no profile of the plan holds a \[9, 4\]"):
        profiles.fitting(spec((FREE, 4), batched=False), [SMALL], {"a": [[4, 4], [9, 4]]}, 0)


def test_many_profiles_are_told_in_few_words():
    """Four of them, and how many more."""
    many = [(Range((1, n), (1, n), (2, n)),) for n in range(1, 7)]
    assert profiles.said(spec((FREE, FREE)), many) == (
        "a [1, 1] to [2, 1] and a [1, 2] to [2, 2] and a [1, 3] to [2, 3] and a [1, 4] to [2, 4] and 2 more"
    )
