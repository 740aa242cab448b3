"""Validation against single rules, and against a slow oracle that uses numpy alone."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.v1 import inference_pb2
from forebay_server.errors import InvalidRequest
from forebay_server.services import elements, validation
from forebay_server.services.validation import Rules, check_name, validate
from forebay_server.tensors import FREE, ITEM_SIZES, NUMPY_DTYPES, DataType, ModelSpec, TensorSpec

INTEGERS = [kind for kind in DataType if "INT" in kind.name]


def spec_of(*inputs, outputs=(("y", DataType.FP32, (FREE, 3)),), batched=True):
    def specs(entries):
        return tuple(TensorSpec(name=name, data_type=kind, shape=shape) for name, kind, shape in entries)

    return ModelSpec(inputs=specs(inputs), outputs=specs(outputs), batched=batched)


ONE = Rules(spec_of(("x", DataType.FP32, (FREE, 2))))
TWO = Rules(spec_of(("a", DataType.INT32, (FREE, FREE)), ("b", DataType.BOOL, (FREE,))))


def message_of(*tensors, **fields):
    message = inference_pb2.PredictRequest(model="m", **fields)
    for tensor in tensors:
        message.inputs.add(**tensor)
    return message


def x(shape=(1, 2), data=None, **fields):
    fields = {"name": "x", "data_type": 12, "shape": shape, **fields}
    if data is None and not {"numbers", "strings"} & set(fields):
        data = bytes(4 * math.prod(shape))
    return {**fields, "data": data} if data is not None else fields


def fields_of(message, rules=ONE):
    """The fields that are found to be wrong."""
    with pytest.raises(InvalidRequest) as caught:
        validate(message, rules)
    return [field for field, _ in caught.value.violations]


def test_plain_request():
    """Rows, shapes without the batch dimension, the very bytes, their number, and all outputs."""
    data = np.arange(6, dtype="<f4").tobytes()

    assert validate(message_of(x((3, 2), data)), ONE) == (3, ((2,),), [data], 24, None)


def test_inputs_come_in_the_order_of_the_specification():
    """However the caller orders them."""
    message = message_of(
        {"name": "b", "data_type": 1, "shape": [2], "data": b"\x00\x01"},
        {"name": "a", "data_type": 8, "shape": [2, 1], "data": b"aaaabbbb"},
    )

    assert validate(message, TWO) == (2, ((1,), ()), [b"aaaabbbb", b"\x00\x01"], 10, None)


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (message_of(), ["inputs"]),
        (message_of(x(), x()), ["inputs[1].name"]),
        (message_of(x(), x(name="z")), ["inputs[1].name"]),
        (message_of(x(name="z")), ["inputs[0].name", "inputs"]),
        (message_of(*[x()] * 65), ["inputs"]),
        (message_of(x(data_type=13, data=bytes(8))), ["inputs[0].data_type"]),
        (message_of(x(data_type=0)), ["inputs[0].data_type"]),
        (message_of(x(data_type=99)), ["inputs[0].data_type"]),
        (message_of(x((2,))), ["inputs[0].shape"]),
        (message_of(x((1, 2, 1))), ["inputs[0].shape"]),
        (message_of(x((1,) * 9)), ["inputs[0].shape"]),
        (message_of(x((1, 3))), ["inputs[0].shape"]),
        (message_of(x((-1, 2), b"")), ["inputs[0].shape"]),
        (message_of(x((2**31, 2), b"")), ["inputs[0].shape"]),
        (message_of(x((2**31 - 1, 2), b"")), ["inputs[0].data"]),
        (message_of(x((1, 2), b"1234567")), ["inputs[0].data"]),
        (message_of(x((1, 2), b"123456789")), ["inputs[0].data"]),
        (message_of(x((0, 2), b"12345678")), ["inputs[0].data"]),
        (message_of(x(data=bytes(8), numbers=[1, 2])), ["inputs[0]"]),
        (message_of(x(strings=["a", "b"])), ["inputs[0].strings"]),
        (message_of(x(numbers=[1])), ["inputs[0].numbers"]),
        (message_of(x(numbers=[1, 1e39])), ["inputs[0].numbers"]),
        (message_of(x((2049, 2), numbers=[0] * 4098)), ["inputs[0].numbers"]),
        (message_of(x(), outputs=["z"]), ["outputs[0]"]),
        (message_of(x(), outputs=["y", "y"]), ["outputs"]),
        (message_of(x(), request_id="i" * 129), ["request_id"]),
        (message_of(x((1366, 2)), readable=True), ["readable"]),
        (message_of(x((1, 3)), request_id="i" * 129, outputs=["z"]), ["inputs[0].shape", "outputs[0]", "request_id"]),
    ],
)
def test_violations(message, fields):
    """Each rule names the field that breaks it, and all that are broken are named."""
    assert fields_of(message) == fields


def test_duplicate_output_among_several():
    """A repeated name is named by its place."""
    rules = Rules(spec_of(("x", DataType.FP32, (FREE, 2)), outputs=[(n, DataType.FP32, (FREE,)) for n in "abc"]))

    assert fields_of(message_of(x(), outputs=["b", "a", "b"]), rules) == ["outputs[2]"]
    assert validate(message_of(x(), outputs=["c", "a"]), rules)[4] == (2, 0)


def test_inputs_of_different_rows():
    """All inputs have the same number of rows."""
    message = message_of(
        {"name": "a", "data_type": 8, "shape": [2, 1], "data": bytes(8)},
        {"name": "b", "data_type": 1, "shape": [3], "data": bytes(3)},
    )

    assert fields_of(message, TWO) == ["inputs[1].shape"]


def test_bool_bytes():
    """A BOOL element is 0 or 1."""
    rules = Rules(spec_of(("x", DataType.BOOL, (FREE, 2))))
    assert validate(message_of(x(data_type=1, data=b"\x00\x01")), rules)[2] == [b"\x00\x01"]

    assert fields_of(message_of(x(data_type=1, data=b"\x01\x02")), rules) == ["inputs[0].data"]


@pytest.mark.parametrize("kind", [DataType.FP16, DataType.BF16, DataType.FP32, DataType.FP64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_policy(kind, value):
    """A model may refuse NaN and infinity; others take them."""
    spec = spec_of(("x", kind, (FREE, 2)))
    data = np.array([1.0, value]).astype(NUMPY_DTYPES[kind]).tobytes()
    message = message_of(x(data_type=int(kind), data=data))

    assert validate(message, Rules(spec))[2] == [data]
    assert fields_of(message, Rules(spec, reject_nan=True)) == ["inputs[0].data"]
    finite = np.array([1.0, 2.0]).astype(NUMPY_DTYPES[kind]).tobytes()
    assert validate(message_of(x(data_type=int(kind), data=finite)), Rules(spec, reject_nan=True))[0] == 1


@pytest.mark.parametrize(
    ("kind", "data"),
    [(DataType.BF16, b"\x81\x7f"), (DataType.FP16, b"\x01\x7c"), (DataType.FP32, b"\x01\0\x80\x7f")],
)
def test_signalling_nan(kind, data):
    """A NaN like others: refused, and nothing is warned of (a warning fails a test)."""
    message = message_of(x((1, 1), data_type=int(kind), data=data))

    rules = Rules(spec_of(("x", kind, (FREE, 1))), reject_nan=True)
    assert fields_of(message, rules) == ["inputs[0].data"]


def test_no_rows_and_no_elements():
    """A batch of no rows is right, and so is a dimension of 0 where the model leaves it free."""
    assert validate(message_of(x((0, 2), b"")), ONE) == (0, ((2,),), [b""], 0, None)
    rules = Rules(spec_of(("x", DataType.FP32, (FREE, FREE))))
    assert validate(message_of(x((3, 0), b"")), rules) == (3, ((0,),), [b""], 0, None)
    assert fields_of(message_of(x((3, 0), b"")), ONE) == ["inputs[0].shape"]


def test_product_does_not_overflow():
    """Dimensions whose product is 0 modulo 2^64 are not taken for no elements."""
    rules = Rules(spec_of(("x", DataType.FP32, (FREE,) * 5)))

    assert fields_of(message_of(x((2**16,) * 4 + (1,), b"")), rules) == ["inputs[0].data"]
    assert fields_of(message_of(x((2**30,) * 5, b"")), rules) == ["inputs[0].data"]


def test_model_without_a_batch_dimension():
    """The whole shape must fit, and the request counts as one row."""
    rules = Rules(spec_of(("x", DataType.FP32, (2, FREE)), batched=False))

    assert validate(message_of(x((2, 3))), rules) == (1, ((2, 3),), [bytes(24)], 24, None)
    assert fields_of(message_of(x((3, 3))), rules) == ["inputs[0].shape"]


def test_scalar_input():
    """A tensor of rank 0 has one element."""
    rules = Rules(spec_of(("x", DataType.FP32, ()), batched=False))

    assert validate(message_of(x((), b"1234")), rules) == (1, ((),), [b"1234"], 4, None)


def test_bytes_elements():
    """BYTES elements become a list, from data and from strings alike."""
    rules = Rules(spec_of(("x", DataType.BYTES, (FREE,))))
    data = struct.pack("<I3sI0sI2s", 3, b"abc", 0, b"", 2, b"\xff\x00")

    rows, shapes, inputs, nbytes, _ = validate(message_of(x((3,), data, data_type=14)), rules)
    assert (rows, shapes, inputs) == (3, ((),), [[b"abc", b"", b"\xff\x00"]])
    assert nbytes == 5 + 3 * validation.BYTES_OVERHEAD
    assert validate(message_of(x((2,), strings=["a", "ä"], data_type=14)), rules)[2] == [[b"a", "ä".encode()]]
    assert fields_of(message_of(x((2,), strings=["a"], data_type=14)), rules) == ["inputs[0].strings"]
    assert fields_of(message_of(x((2,), numbers=[1, 2], data_type=14)), rules) == ["inputs[0].numbers"]


def test_bytes_elements_are_bounded(monkeypatch):
    """All BYTES inputs together have a bounded number of elements."""
    monkeypatch.setattr(validation, "MAX_BYTES_ELEMENTS", 5)
    rules = Rules(spec_of(("x", DataType.BYTES, (FREE,)), ("y", DataType.BYTES, (FREE,))))

    def both(rows):
        return message_of(*({"name": name, "data_type": 14, "shape": [rows], "data": bytes(4 * rows)} for name in "xy"))

    assert validate(both(2), rules)[0] == 2
    assert fields_of(both(3), rules) == ["inputs[1].data"]


@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_as_numbers(kind):
    """Each number is exactly representable in the type, or refused."""
    limits = np.iinfo(NUMPY_DTYPES[kind])
    rules = Rules(spec_of(("x", kind, (FREE, 2))))

    def given(*numbers):
        return message_of(x(data_type=int(kind), numbers=numbers))

    low = max(int(limits.min), -(2**53))
    high = min(int(limits.max), 2**53)
    (data,) = validate(given(low, high), rules)[2]
    assert np.frombuffer(data, NUMPY_DTYPES[kind]).tolist() == [low, high]
    for wrong in (0.5, float(limits.max) + 1.0, float(limits.min) * 2 - 1, math.nan, math.inf):
        if wrong != limits.max:
            assert fields_of(given(0, wrong), rules) == ["inputs[0].numbers"]


def test_parameters():
    """At most 32, each with a value, none of them NaN, names and texts of bounded length."""
    message = message_of(x())
    for index in range(32):
        message.parameters[f"p{index}"].int_value = index
    assert validate(message, ONE)[0] == 1
    message.parameters["one more"].int_value = 1
    assert fields_of(message) == ["parameters"]

    for wrong in ("nothing", "nan", "long"):
        message = message_of(x())
        parameter = message.parameters["p"]
        if wrong == "nan":
            parameter.double_value = math.nan
        if wrong == "long":
            parameter.string_value = "x" * 1025
        assert fields_of(message) == ["parameters" if wrong == "long" else "parameters['p']"]


@pytest.mark.parametrize("name", ["", ".", "-a", "a/b", "a b", "ä", "a" * 129, "a\n", "a\x00"])
def test_bad_names(name):
    """Names of models follow a strict pattern."""
    with pytest.raises(InvalidRequest):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "9", "_x", "resnet-50.v1_2", "a" * 128])
def test_good_names(name):
    """What the pattern allows."""
    check_name(name, "stable")


# --- The oracle ------------------------------------------------------------------------------------------------------


def oracle(message, spec, *, reject_nan):
    """The inputs as arrays, or None if the request is wrong. Slow, and written without a look at the real one."""
    given = {tensor.name: tensor for tensor in message.inputs}
    if len(given) != len(message.inputs) or set(given) != {one.name for one in spec.inputs}:
        return None
    arrays = []
    for one in spec.inputs:
        array = tensor_oracle(given[one.name], one, batched=spec.batched)
        if array is None:
            return None
        floats = array.dtype != object and array.dtype.kind not in "iub"
        with np.errstate(invalid="ignore"):  # signalling NaNs
            wide = array.astype(np.float64) if floats else None
        if reject_nan and wide is not None and not np.isfinite(wide).all():
            return None
        arrays.append(array)
    if spec.batched and len({array.shape[0] for array in arrays}) > 1:
        return None
    return arrays


def tensor_oracle(tensor, spec, *, batched):  # noqa: C901, PLR0911  # a list of rules
    if tensor.data_type != spec.data_type or len(tensor.shape) != len(spec.shape):
        return None
    for index, (length, wanted) in enumerate(zip(tensor.shape, spec.shape, strict=True)):
        if not 0 <= length < 2**31 or (wanted not in (FREE, length) and not (batched and index == 0)):
            return None
    count = math.prod(tensor.shape)
    if spec.data_type == DataType.BYTES:
        values, rest = [], tensor.data
        while rest:
            if len(rest) < 4:
                return None
            (length,) = struct.unpack_from("<I", rest)
            if len(rest) < 4 + length:
                return None
            values.append(rest[4 : 4 + length])
            rest = rest[4 + length :]
        if len(values) != count:
            return None
        array = np.empty(count, object)
        array[:] = values
        return array.reshape(tensor.shape)
    if len(tensor.data) != count * ITEM_SIZES[spec.data_type]:
        return None
    raw = np.frombuffer(tensor.data, np.uint8)
    if spec.data_type == DataType.BOOL and not np.isin(raw, [0, 1]).all():
        return None
    return raw.view(NUMPY_DTYPES[spec.data_type]).reshape(tensor.shape)


@st.composite
def cases(draw):
    """A specification, and a request that is right or nearly so."""
    batched = draw(st.booleans())
    rows = draw(st.integers(0, 3))
    specs, tensors = [], []
    for name in draw(st.sampled_from([("a",), ("a", "b")])):
        kind = draw(st.sampled_from(DataType))
        shape = draw(st.lists(st.integers(0, 3), min_size=1 if batched else 0, max_size=4))
        if batched:
            shape[0] = rows
        expected = [FREE if draw(st.booleans()) else length for length in shape]
        specs.append(TensorSpec(name=name, data_type=kind, shape=tuple(expected)))
        sent = list(shape)
        if sent and draw(st.integers(0, 9)) == 0:
            sent[draw(st.integers(0, len(sent) - 1))] = draw(st.sampled_from([-1, 0, 1, 5, 2**16, 2**31 - 1, 2**31]))
        if draw(st.integers(0, 19)) == 0:
            sent = sent[:-1] if draw(st.booleans()) else [*sent, 1]
        count = math.prod(sent)
        count = count if 0 <= count < 1000 else 1
        if kind == DataType.BYTES:
            values = draw(st.lists(st.binary(max_size=3), min_size=count, max_size=count))
            data = b"".join(struct.pack("<I", len(value)) + value for value in values)
        elif kind == DataType.BOOL:
            data = bytes(draw(st.lists(st.sampled_from([0, 1]), min_size=count, max_size=count)))
        else:
            size = count * ITEM_SIZES[kind]
            data = draw(st.binary(min_size=size, max_size=size))
        if draw(st.integers(0, 9)) == 0:
            data = draw(st.sampled_from([data + b"\x01", data[:-1], data + b"\x00" * 4, data[:-1] + b"\x02"]))
        sent_kind = draw(st.sampled_from(DataType)) if draw(st.integers(0, 19)) == 0 else kind
        sent_name = draw(st.sampled_from("abc")) if draw(st.integers(0, 19)) == 0 else name
        tensors.append({"name": sent_name, "data_type": int(sent_kind), "shape": sent, "data": data})
    if draw(st.booleans()):
        tensors.reverse()
    spec = ModelSpec(inputs=tuple(specs), outputs=(), batched=batched)
    return spec, message_of(*tensors), draw(st.booleans())


@settings(max_examples=400, deadline=None)
@given(cases())
def test_agrees_with_the_oracle(case):
    """What the oracle takes is taken, with the same elements; what it refuses is refused."""
    spec, message, reject_nan = case
    rules = Rules(spec, reject_nan=reject_nan)
    expected = oracle(message, spec, reject_nan=reject_nan)
    if expected is None:
        with pytest.raises(InvalidRequest):
            validate(message, rules)
        return

    rows, shapes, inputs, _, wanted = validate(message, rules)

    assert rows == (expected[0].shape[0] if spec.batched else 1)
    assert shapes == tuple(array.shape[1:] if spec.batched else array.shape for array in expected)
    assert wanted is None
    for array, value in zip(expected, inputs, strict=True):
        assert value == (array.ravel().tolist() if array.dtype == object else array.tobytes())


@settings(max_examples=300, deadline=None)
@given(cases())
def test_the_short_way_agrees_with_the_thorough_one(case):
    """If the short way takes a message, the thorough one takes it with the same result."""
    spec, message, reject_nan = case
    rules = Rules(spec, reject_nan=reject_nan)
    if rules.quick:
        quick = validation._quick(message, rules)
        if quick is not None:
            assert quick == validation._thorough(message, rules)


@given(st.lists(st.integers(0, 2**31 - 1), max_size=8), st.integers(0, 2**24))
def test_product_with_a_limit(shape, limit):
    """Up to the limit the product is exact, above it is known to be above."""
    exact = math.prod(shape)
    found = elements.product(shape, stop=limit)

    assert found == exact if exact <= limit else found > limit
