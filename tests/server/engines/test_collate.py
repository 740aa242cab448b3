"""Collation: what goes in is what the engine sees, and each request gets its own rows back."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay_server.engines.collate import SMALL, BatchOutputs, Collator, OutputShape
from forebay_server.tensors import FREE, NUMPY_DTYPES, DataType, ModelSpec, TensorSpec, decode_bytes_elements


@dataclass
class Sent:
    """A request, as far as the collator looks."""

    inputs: list
    rows: int = 1
    shapes: tuple | None = None


@dataclass
class Part:
    request: Sent
    start: int
    rows: int


class Plain:
    """An instance that takes any memory."""

    def stage(self, shapes):
        return None


class Staging:
    """An instance with buffers of its own, dirty from the batch before."""

    def __init__(self, types):
        self.types = types
        self.buffers = []

    def stage(self, shapes):
        self.buffers = [
            np.full(shape, b"dirt" if kind is DataType.BYTES else 7, NUMPY_DTYPES[kind])
            for kind, shape in zip(self.types, shapes, strict=True)
        ]
        return self.buffers


def spec_of(*types, shape=(FREE, FREE), batched=True):
    tensors = [TensorSpec(name=f"t{index}", data_type=kind, shape=shape) for index, kind in enumerate(types)]
    return ModelSpec(inputs=tuple(tensors), outputs=tuple(tensors), batched=batched)


def whole(*requests):
    return [Part(request, 0, request.rows) for request in requests]


def test_rows_of_many_requests_become_one_array():
    """Requests lie one after the other, in the order of the parts."""
    collator = Collator(spec_of(DataType.FP32))
    sent = [Sent([np.full((rows, 2), rows, "<f4").tobytes()], rows) for rows in (1, 3, 2)]
    batch = collator.collate(whole(*sent), ((2,),), 6, Plain())
    assert batch.rows == 6
    assert batch.inputs[0].tolist() == [[1, 1]] + [[3, 3]] * 3 + [[2, 2]] * 2
    assert batch.inputs[0].flags.c_contiguous
    assert batch.parameters == {}


def test_parameters_reach_the_engine():
    """The lane's parameters are the batch's."""
    collator = Collator(spec_of(DataType.UINT8))
    assert collator.collate(whole(Sent([b"\1"])), ((1,),), 1, Plain(), {"k": 3}).parameters == {"k": 3}


def test_a_single_request_is_not_copied():
    """The engine reads a lone request's bytes where they are."""
    data = bytes(range(8))
    batch = Collator(spec_of(DataType.UINT8)).collate(whole(Sent([data])), ((8,),), 1, Plain())
    assert np.shares_memory(batch.inputs[0], np.frombuffer(data, np.uint8))


def test_padding_rows_hold_the_pad_value():
    """A batch is padded up to the rows that the engine wants; `rows` says how many count."""
    collator = Collator(spec_of(DataType.INT32), pad_value=-1)
    batch = collator.collate(whole(Sent([np.array([4, 5], "<i4").tobytes()])), ((2,),), 3, Plain())
    assert (batch.rows, batch.inputs[0].tolist()) == (1, [[4, 5], [-1, -1], [-1, -1]])


def test_a_part_takes_only_its_rows():
    """Of a request that was split, each batch gets the rows of its part."""
    request = Sent([np.arange(10, dtype="<i8").tobytes()], rows=5)
    batch = Collator(spec_of(DataType.INT64)).collate([Part(request, 2, 2)], ((2,),), 2, Plain())
    assert batch.inputs[0].tolist() == [[4, 5], [6, 7]]


def test_staging_buffers_are_used_whole():
    """An engine's own buffers get every element, nothing of the batch before stays."""
    for requests in (1, 8):
        collator = Collator(spec_of(DataType.BF16, DataType.BYTES))
        instance = Staging([DataType.BF16, DataType.BYTES])
        data = np.arange(2).astype(NUMPY_DTYPES[DataType.BF16]).tobytes()
        parts = whole(*[Sent([data, [b"a", b"b"]]) for _ in range(requests)])
        batch = collator.collate(parts, ((2,), (2,)), requests + 1, instance)
        assert batch.inputs[0] is instance.buffers[0]
        assert batch.inputs[0].astype(float).tolist() == [[0, 1]] * requests + [[0, 0]]
        assert batch.inputs[1].tolist() == [[b"a", b"b"]] * requests + [[b"", b""]]


def test_an_unbatched_model_gets_the_array_as_sent():
    """Without a batch dimension no row is put in front."""
    spec = spec_of(DataType.FP32, shape=(FREE,), batched=False)
    collator = Collator(spec)
    batch = collator.collate(whole(Sent([np.array([1, 2], "<f4").tobytes()])), ((2,),), 1, Plain())
    assert (batch.rows, batch.inputs[0].tolist()) == (1, [1, 2])
    outputs = collator.outputs([np.array([3, 4, 5], "<f4")], 1)
    assert outputs.data(0, 0, 1) == (np.array([3, 4, 5], "<f4").tobytes(), (3,))


def test_bucket_padding_is_put_on_and_cut_off():
    """Rows of several shapes meet in their bucket; outputs that follow an input's dimension lose the padding again."""
    collator = Collator(spec_of(DataType.FP32), pad_value=9.0, output_cuts={"t0": [0]})
    short = Sent([np.array([[1, 2]], "<f4").tobytes()], 1, ((2,),))
    long = Sent([np.array([[3, 4, 5], [6, 7, 8]], "<f4").tobytes()], 2, ((3,),))
    batch = collator.collate(whole(short, long), ((4,),), 4, Plain())
    assert batch.inputs[0].tolist() == [[1, 2, 9, 9], [3, 4, 5, 9], [6, 7, 8, 9], [9, 9, 9, 9]]
    outputs = collator.outputs([batch.inputs[0] * 10], 3)
    assert outputs.data(0, 0, 1, short.shapes) == (np.array([10, 20], "<f4").tobytes(), (1, 2))
    assert outputs.data(0, 1, 2, long.shapes) == (np.array([30, 40, 50, 60, 70, 80], "<f4").tobytes(), (2, 3))


def test_outputs_that_follow_nothing_are_not_cut():
    """Without a rule the output stays as the model gave it."""
    collator = Collator(spec_of(DataType.FP32))
    outputs = collator.outputs([np.ones((1, 4), "<f4")], 1)
    assert outputs.data(0, 0, 1, ((2,),))[1] == (1, 4)


def test_small_and_large_outputs_give_the_same_bytes():
    """The two ways of cutting outputs agree."""
    collator = Collator(spec_of(DataType.FP64))
    for columns in (3, SMALL):
        array = np.arange(4 * columns, dtype="<f8").reshape(4, columns)
        for laid_out in (array, np.asfortranarray(array)):
            outputs = collator.outputs([laid_out], 4)
            assert outputs.data(0, 1, 2) == (array[1:3].tobytes(), (2, columns))
            assert outputs.data(0, 3, 1) == (array[3:].tobytes(), (1, columns))


def test_outputs_that_do_not_fit_the_batch_are_a_fault():
    """Fewer rows or outputs than asked for would reach the wrong callers."""
    collator = Collator(spec_of(DataType.FP32))
    for arrays in ([], [np.ones((2, 1), "<f4")], [np.float32(1.0)]):
        with pytest.raises(OutputShape):
            collator.outputs(arrays, 3)


def test_pieces_of_a_split_request_are_joined():
    """Rows from several batches come back as one, in order; different shapes are a fault."""
    collator = Collator(spec_of(DataType.INT32))
    first = collator.outputs([np.array([[0], [1], [2]], "<i4")], 3)
    second = collator.outputs([np.array([[3], [4]], "<i4")], 2)
    joined = BatchOutputs.join([(first, 1, 2), (second, 0, 1)])
    assert joined.rows == 3
    assert joined.data(0, 0, 3) == (np.array([1, 2, 3], "<i4").tobytes(), (3, 1))
    other = collator.outputs([np.ones((1, 2), "<i4")], 1)
    with pytest.raises(OutputShape):
        BatchOutputs.join([(first, 0, 1), (other, 0, 1)])


@st.composite
def batches(draw):
    """Parts of requests of several inputs and types, a bucket that holds them, and padding."""
    types = draw(st.lists(st.sampled_from(list(DataType)), min_size=1, max_size=3))
    rank = draw(st.integers(0, 2))
    padded = draw(st.booleans())
    bucket = tuple(tuple(draw(st.integers(1, 4)) for _ in range(rank)) for _ in types)
    parts = []
    arrays = []
    for _ in range(draw(st.integers(1, 6))):
        rows = draw(st.integers(1, 5))
        shapes = tuple(tuple(draw(st.integers(1, most)) if padded else most for most in shape) for shape in bucket)
        seed = draw(st.integers(0, 1000))
        rng = np.random.default_rng(seed)
        own = []
        inputs = []
        for kind, shape in zip(types, shapes, strict=True):
            if kind is DataType.BYTES:
                lengths = rng.integers(0, 5, rows * math.prod(shape))
                elements = [rng.bytes(length) for length in lengths]
                array = np.empty((rows, *shape), object)
                array.reshape(-1)[:] = elements
                inputs.append(elements)
            else:
                array = rng.integers(0, 2 if kind is DataType.BOOL else 100, (rows, *shape)).astype(NUMPY_DTYPES[kind])
                inputs.append(array.tobytes())
            own.append(array)
        start = draw(st.integers(0, rows - 1))
        count = draw(st.integers(1, rows - start))
        parts.append(Part(Sent(inputs, rows, shapes if padded else None), start, count))
        arrays.append(own)
    return types, bucket, parts, arrays, draw(st.integers(0, 3)), padded, draw(st.booleans())


@given(batches())
@settings(max_examples=150, deadline=None)
def test_collate_and_split_agree_with_a_slow_oracle(case):
    """An echo gives each part its own rows, bit for bit, whatever the types, shapes, paddings and neighbours."""
    types, bucket, parts, arrays, extra, padded, staging = case
    rank = len(bucket[0])
    cuts = {f"t{index}": list(range(rank)) for index in range(len(types))}
    spec = spec_of(*types, shape=(FREE,) * (rank + 1))
    collator = Collator(spec, 5.0, {"t0": cuts["t0"]} if padded else None)
    total = sum(part.rows for part in parts)
    batch = collator.collate(parts, bucket, total + extra, Staging(types) if staging else Plain())
    assert batch.rows == total
    for index, kind in enumerate(types):
        pad = b"" if kind is DataType.BYTES else np.asarray(5.0).astype(NUMPY_DTYPES[kind])
        expected = np.full((total + extra, *bucket[index]), pad, NUMPY_DTYPES[kind])
        row = 0
        for part, own in zip(parts, arrays, strict=True):
            for offset in range(part.rows):
                for place in np.ndindex(own[index].shape[1:]):
                    expected[(row, *place)] = own[index][(part.start + offset, *place)]
                row += 1
        assert batch.inputs[index].dtype == expected.dtype
        assert np.array_equal(batch.inputs[index], expected)
    outputs = collator.outputs(batch.inputs, total)
    row = 0
    for part, own in zip(parts, arrays, strict=True):
        data, shape = outputs.data(0, row, part.rows, part.request.shapes)
        mine = own[0][part.start : part.start + part.rows]
        assert shape == mine.shape
        if types[0] is DataType.BYTES:
            assert decode_bytes_elements(data, mine.size) == mine.reshape(-1).tolist()
        else:
            assert data == mine.tobytes()
        row += part.rows
