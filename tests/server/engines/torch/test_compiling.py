"""What an exported program says of itself becomes a profile: read off stand-ins with the attributes of torch's."""

from types import SimpleNamespace

import pytest

from forebay_server.engines.base import ModelLoadError
from forebay_server.engines.torch import compiling
from forebay_server.engines.torch.profile import Range, Tensor


class Free:
    """A free length, as `torch.SymInt` shows itself."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text


class Infinity:
    """One of sympy's: it is no integer."""

    def __int__(self):
        raise TypeError("Cannot convert infinity to integer")


ROWS, TOKENS = Free("s0"), Free("s1")


def tensor(dtype, *shape):
    return SimpleNamespace(dtype=f"torch.{dtype}", shape=shape)


def program(
    inputs=None,
    outputs=None,
    ranges=None,
    *,
    mutated=None,
    returned=lambda places: places[0] if len(places) == 1 else places,
):
    inputs = inputs or {"x": tensor("float32", ROWS, 4)}
    outputs = outputs or {"addmm": tensor("float32", ROWS, 3)}
    return SimpleNamespace(
        graph_signature=SimpleNamespace(
            user_inputs=tuple(inputs), user_outputs=tuple(outputs), buffers_to_mutate=mutated or {}
        ),
        graph=SimpleNamespace(
            nodes=[SimpleNamespace(name=name, meta={"val": value}) for name, value in {**inputs, **outputs}.items()]
        ),
        range_constraints=ranges or {ROWS: SimpleNamespace(lower=1, upper=64)},
        call_spec=SimpleNamespace(out_spec=SimpleNamespace(unflatten=returned)),
    )


def profile_of(made, **options):
    return compiling.profile_of(made, torch="2.13.0", instructions=("avx2",), **options)


def test_a_program_with_a_batch():
    """Names, types, shapes, ranges, and what has compiled it."""
    made = profile_of(program())
    assert made.inputs == (Tensor("x", "FP32", ("s0", 4)),)
    assert made.outputs == (Tensor("output", "FP32", ("s0", 3)),)
    assert made.dimensions == {"s0": Range(1, 64)}
    assert (made.torch, made.instructions, made.max_batch_size) == ("2.13.0", ("avx2",), 64)


def test_a_smaller_batch_can_be_asked_for():
    """The package is then held to it."""
    assert profile_of(program(), max_batch=16).max_batch_size == 16


def test_a_larger_batch_can_not():
    """The program was exported for less."""
    with pytest.raises(ModelLoadError, match="--max-batch-size: 65 is above 64, which the program was exported for"):
        profile_of(program(), max_batch=65)


def test_a_batch_without_an_end_gets_one():
    """Nothing else would hold batches to what was ever tried."""
    endless = {ROWS: SimpleNamespace(lower=0, upper=Infinity()), TOKENS: SimpleNamespace(lower=2, upper=Infinity())}
    made = profile_of(program({"x": tensor("float32", ROWS, TOKENS)}, ranges=endless))
    assert made.dimensions == {"s0": Range(1, 128), "s1": Range(2, None)}


def test_bounds_of_other_dimensions_are_kept():
    """Sequences from 3 to 512."""
    ranges = {ROWS: SimpleNamespace(lower=1, upper=8), TOKENS: SimpleNamespace(lower=3, upper=512)}
    made = profile_of(program({"ids": tensor("int64", ROWS, TOKENS)}, ranges=ranges))
    assert made.dimensions["s1"] == Range(3, 512)


def test_a_mapping_names_its_outputs():
    """What a model returns by name is called so."""
    outputs = {"a": tensor("float32", ROWS), "b": tensor("bool", ROWS)}
    made = profile_of(program(outputs=outputs, returned=lambda places: {"score": places[0], "sure": places[1]}))
    assert [(out.name, out.data_type) for out in made.outputs] == [("score", "FP32"), ("sure", "BOOL")]


def test_several_outputs_are_numbered_or_named():
    """A tuple has no names of its own."""
    outputs = {"a": tensor("float32", ROWS), "b": tensor("float32", ROWS)}
    assert [out.name for out in profile_of(program(outputs=outputs)).outputs] == ["output_0", "output_1"]
    assert [out.name for out in profile_of(program(outputs=outputs), names=["u", "v"]).outputs] == ["u", "v"]
    with pytest.raises(ModelLoadError, match="--outputs: 2 different names are needed, not u"):
        profile_of(program(outputs=outputs), names=["u"])


def test_a_computed_length_of_an_output_is_open():
    """`2*s0` rows, or a length that depends on the values."""
    made = profile_of(program(outputs={"a": tensor("float32", Free("2*s0"), 3), "b": tensor("int64", Free("u0"))}))
    assert [out.shape for out in made.outputs] == [(None, 3), (None,)]
    assert made.batch is None


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (program({"x": tensor("complex64", 2)}), "the input 'x' of the program is of the type torch.complex64, which"),
        (program({"x": 3}), "the input 'x' of the program is not a tensor"),
        (program(outputs={"y": None}), "the output 'output' of the program is not a tensor"),
        (
            program({"x": tensor("float32", ROWS, Free("2*s1"))}),
            r"dimension 1 of the input 'x' is 2\*s1, which must be a number or free by itself",
        ),
        (
            program(mutated={"add": "norm.running_mean"}),
            r"the program changes its own state \(norm.running_mean\), so callers would see each other",
        ),
        (
            program(ranges={ROWS: SimpleNamespace(lower=4, upper=8)}),
            "the program takes batches of 4 to 8 rows, but must take one row; export it with min=1",
        ),
    ],
)
def test_what_can_not_be_served(made, sentence):
    """One clear sentence each, before anything is compiled."""
    with pytest.raises(ModelLoadError, match=sentence):
        profile_of(made)


def test_a_batch_is_asked_for_where_there_is_none():
    """A fixed dimension 0 is no batch, whatever the command says."""
    with pytest.raises(ModelLoadError, match="--max-batch-size: the program has no batch dimension"):
        profile_of(program({"x": tensor("float32", 4)}, {"y": tensor("float32", 4)}), max_batch=8)


def test_a_compiled_package_is_not_compiled_again(tmp_path, monkeypatch):
    """Neither is something else; both are said before torch is asked."""
    from tests.server.engines.torch.packages import metadata_like, write_package  # noqa: PLC0415  # for this test alone

    path = write_package(tmp_path / "model.pt2", metadata_like())
    with pytest.raises(ModelLoadError, match="it is compiled already; this takes what"):
        compiling._program(None, path, "")
    path.write_bytes(b"nothing")
    with pytest.raises(ModelLoadError, match="not an exported program"):
        compiling._program(None, path, "")
