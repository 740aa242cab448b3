"""Puts the inputs of many requests together into one batch, and takes its outputs apart again.

One copy each way: the callers' bytes are joined straight into the memory that the engine reads (its own staging
buffers if it has such), and each caller's rows are cut out of the outputs as bytes. A `Collator` belongs to one model;
it may be used by several instances' threads at a time, because after its making it only reads (its one cache is filled
idempotently). The runner calls `collate` and `outputs`, whoever completes requests calls `BatchOutputs.data`.

Shapes of requests here, as in `scheduling.request.Request.shapes` and in buckets, are without the batch dimension; for
a model that is not batched they are whole. It checks nothing that `services.validation` has checked.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import numpy as np

from forebay_server.engines.base import NO_PARAMETERS, EngineBatch, Instance, ParameterValue
from forebay_server.tensors import (
    FREE,
    NUMPY_DTYPES,
    Array,
    Bucket,
    DataType,
    ModelSpec,
    encode_bytes_elements,
)

SMALL: Final = 65_536
"""Bytes. An output up to this size is turned into bytes once per batch, and requests get slices of these."""


class RequestLike(Protocol):
    """What is read of a request: see `scheduling.request.Request`."""

    @property
    def inputs(self) -> Sequence[bytes | list[bytes]]:
        """Per input its bytes, or the elements of a BYTES tensor."""

    @property
    def rows(self) -> int:
        """Rows."""

    @property
    def shapes(self) -> Sequence[tuple[int, ...]] | None:
        """Shapes that may differ from the bucket."""


class PartLike(Protocol):
    """A run of rows of one request: see `scheduling.request.Part`."""

    @property
    def request(self) -> RequestLike:
        """The request."""

    @property
    def start(self) -> int:
        """Its first row in this batch."""

    @property
    def rows(self) -> int:
        """How many of its rows."""


class OutputShape(Exception):
    """An engine gave outputs that the batch's rows can't be cut out of. A fault of the model."""


class Collator:
    """Knows how one model's batches are put together and taken apart.

    Args:
        spec: The model's specification.
        pad_value: What padding holds, of rows to a larger shape and of batches to more rows.
        output_cuts: Per output name, the input dimension that each of its dimensions follows (both counted without the
            batch), -1 for none: `config.tree.BucketsConfig.outputs`. Of several inputs the first one counts whose
            dimension of this number is free.
    """

    def __init__(
        self, spec: ModelSpec, pad_value: float = 0.0, output_cuts: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        self._batched = spec.batched
        self._count = len(spec.inputs)
        self._dtypes = [NUMPY_DTYPES[tensor.data_type] for tensor in spec.inputs]
        self._text = [tensor.data_type is DataType.BYTES for tensor in spec.inputs]
        self._pad_value = pad_value
        self._outputs = len(spec.outputs)
        self._output_text = [tensor.data_type is DataType.BYTES for tensor in spec.outputs]
        self._cuts = _resolve_cuts(spec, output_cuts or {})
        self._layouts: dict[tuple[Bucket, int], tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]] = {}

    def collate(
        self,
        parts: Sequence[PartLike],
        bucket: Bucket,
        padded_rows: int,
        instance: Instance,
        parameters: Mapping[str, ParameterValue] | None = None,
    ) -> EngineBatch:
        """Puts a batch together.

        Args:
            parts: What is in it, in order. Their data must stay as it is until the instance has run the batch, because
                the batch of a single large request is that request's own memory.
            bucket: The shape of a row of each input.
            padded_rows: Rows that the engine is given, at least those of the parts.
            instance: Who will run it; its staging buffers are used if it has any.
            parameters: The lane's.
        """
        rows = 0
        plain = True
        for part in parts:
            request = part.request
            count = part.rows
            rows += count
            if count != request.rows or request.shapes is not None:
                plain = False
        layout = self._layouts.get((bucket, padded_rows)) or self._layout(bucket, padded_rows)
        shapes, row_bytes = layout
        staged = instance.stage(shapes)
        inputs: list[Array] = []
        for index in range(self._count):
            if self._text[index]:
                inputs.append(self._collate_text(index, parts, bucket[index], shapes[index], staged))
                continue
            if plain:
                pieces = [part.request.inputs[index] for part in parts]
            elif self._same_shapes(index, parts, bucket[index]):
                pieces = _whole_or_sliced(index, parts, row_bytes[index])
            else:
                inputs.append(self._collate_padded(index, parts, bucket[index], shapes[index], staged))
                continue
            if padded_rows != rows:
                pieces.append(self._padding(index, bucket[index], padded_rows - rows))
            if staged is None:
                # `join` of one bytes object is that object: a single request costs no copy.
                data = b"".join(pieces)  # type: ignore[arg-type]  # no lists here: these are not BYTES inputs
                inputs.append(np.ndarray(shapes[index], self._dtypes[index], data))
            else:
                _fill(staged[index], pieces)  # type: ignore[arg-type]  # see above
                inputs.append(staged[index])
        return EngineBatch(inputs, rows, NO_PARAMETERS if parameters is None else parameters)

    def outputs(self, arrays: Sequence[Array], rows: int) -> "BatchOutputs":
        """Wraps what an engine gave.

        Args:
            arrays: One per output; of a batched model with the batch's rows first, padding after them.
            rows: Rows that hold requests.

        Raises:
            OutputShape: There are too few outputs, or one has fewer rows: rows would go to the wrong callers.
        """
        if len(arrays) != self._outputs:
            raise OutputShape(f"{len(arrays)} outputs instead of {self._outputs}")
        if self._batched:
            for array in arrays:
                shape = array.shape
                if not shape or shape[0] < rows:
                    raise OutputShape(f"an output of the shape {list(shape)} for a batch of {rows} rows")
        return BatchOutputs(arrays, rows, self._output_text, self._cuts, self._batched)

    @staticmethod
    def join(pieces: "Sequence[tuple[BatchOutputs, int, int]]") -> "BatchOutputs":
        """Puts the rows of a request that ran in several batches together: see `BatchOutputs.join`."""
        return BatchOutputs.join(pieces)

    def _layout(self, bucket: Bucket, padded_rows: int) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
        """Per input, the shape of the batch's array and the bytes in a row; remembered for the last few."""
        lead = (padded_rows,) if self._batched else ()
        shapes = tuple(lead + tuple(shape) for shape in bucket)
        sizes = tuple(dtype.itemsize * math.prod(shape) for dtype, shape in zip(self._dtypes, bucket, strict=True))
        if len(self._layouts) >= 4096:
            self._layouts.clear()
        self._layouts[bucket, padded_rows] = shapes, sizes
        return shapes, sizes

    def _padding(self, index: int, shape: tuple[int, ...], rows: int) -> bytes:
        return np.full((rows, *shape), self._pad_value, self._dtypes[index]).tobytes()

    @staticmethod
    def _same_shapes(index: int, parts: Sequence[PartLike], shape: tuple[int, ...]) -> bool:
        for part in parts:
            sent = part.request.shapes
            if sent is not None and tuple(sent[index]) != shape:
                return False
        return True

    def _target(self, index: int, shape: tuple[int, ...], staged: Sequence[Array] | None, pad: float | bytes) -> Array:
        if staged is None:
            return np.full(shape, pad, self._dtypes[index])
        staged[index][...] = pad
        return staged[index]

    def _collate_padded(
        self,
        index: int,
        parts: Sequence[PartLike],
        bucket: tuple[int, ...],
        shape: tuple[int, ...],
        staged: Sequence[Array] | None,
    ) -> Array:
        """Rows of smaller shapes into the corner of the bucket's shape."""
        target = self._target(index, shape, staged, self._pad_value)
        row = 0
        for part in parts:
            request = part.request
            sent = tuple(request.shapes[index]) if request.shapes is not None else bucket
            corner = tuple(slice(0, length) for length in sent)
            data = request.inputs[index]
            if not self._batched:
                target[corner] = np.ndarray(sent, self._dtypes[index], data)  # type: ignore[arg-type]  # not a list
                continue
            source: Array = np.ndarray((request.rows, *sent), self._dtypes[index], data)  # type: ignore[arg-type]  # not a list
            target[(slice(row, row + part.rows), *corner)] = source[part.start : part.start + part.rows]
            row += part.rows
        return target

    def _collate_text(
        self,
        index: int,
        parts: Sequence[PartLike],
        bucket: tuple[int, ...],
        shape: tuple[int, ...],
        staged: Sequence[Array] | None,
    ) -> Array:
        target = self._target(index, shape, staged, b"")
        row = 0
        for part in parts:
            request = part.request
            sent = tuple(request.shapes[index]) if request.shapes is not None else bucket
            rows = part.rows if self._batched else 1
            per_row = math.prod(sent)
            elements = request.inputs[index][part.start * per_row : (part.start + rows) * per_row]
            source = np.empty((rows, *sent), np.object_)
            source.reshape(-1)[:] = elements
            corner = tuple(slice(0, length) for length in sent)
            if self._batched:
                target[(slice(row, row + rows), *corner)] = source
            else:
                target[corner] = source[0]
            row += rows
        return target


class BatchOutputs:
    """The outputs of one batch, until every request has its rows.

    Used by one thread at a time. It keeps the arrays alive, nothing else.
    """

    __slots__ = ("_batched", "_cuts", "_small", "_text", "arrays", "rows")

    def __init__(
        self,
        arrays: Sequence[Array],
        rows: int,
        text: Sequence[bool],
        cuts: Sequence[Sequence[tuple[int, int]] | None],
        batched: bool,  # noqa: FBT001  # made once per batch, by `Collator.outputs` and `join`
    ) -> None:
        self.arrays = arrays
        """One per output, as the engine gave them."""
        self.rows = rows
        """Rows that hold requests."""
        self._text = text
        self._cuts = cuts
        self._batched = batched
        self._small: list[tuple[bytes, int, tuple[int, ...], tuple[int, ...]] | None] = [None] * len(arrays)

    def data(
        self, index: int, start: int, rows: int, shapes: Sequence[tuple[int, ...]] | None = None
    ) -> tuple[bytes, tuple[int, ...]]:
        """Some rows of one output as little-endian bytes, and their shape, rows included.

        Args:
            index: Of the output.
            start: The first row. For a model that is not batched, `start` and `rows` don't matter.
            rows: How many.
            shapes: The request's own shapes if it was padded to a bucket: its padding is cut away.
        """
        cuts = self._cuts[index] if shapes is not None else None
        if cuts is None:
            small = self._small[index] or self._prepare(index)
            if small is not None:
                whole, size, shape, row_shape = small
                begin = start * size
                return whole[begin : begin + rows * size], row_shape if rows == 1 else (rows, *shape)
        array = self.arrays[index]
        if self._batched:
            array = array[start : start + rows]
        if cuts is not None and shapes is not None:
            array = array[_corner(array.ndim, cuts, shapes, 1 if self._batched else 0)]
        if self._text[index]:
            return encode_bytes_elements(array.reshape(-1).tolist()), array.shape
        return array.tobytes(), array.shape

    def small(self, index: int) -> tuple[bytes, int, tuple[int, ...]] | None:
        """An output of which requests that are not padded get slices.

        Its bytes, the bytes in a row, and the shape of a batch of one row.
        None if it is large, or its rows can't be told apart by their size.
        """
        small = self._small[index] or self._prepare(index)
        return None if small is None else (small[0], small[1], small[3])

    def _prepare(self, index: int) -> tuple[bytes, int, tuple[int, ...], tuple[int, ...]] | None:
        """A small output as bytes, the bytes in a row, a row's shape, and the shape of a batch of one."""
        array = self.arrays[index]
        if not self._batched or self._text[index] or array.nbytes > SMALL:
            return None
        shape = array.shape
        whole = array.tobytes()
        small = whole, (len(whole) // shape[0] if shape[0] else 0), shape[1:], (1, *shape[1:])
        self._small[index] = small
        return small

    @staticmethod
    def join(pieces: "Sequence[tuple[BatchOutputs, int, int]]") -> "BatchOutputs":
        """Puts the rows of a request that was split together again.

        Args:
            pieces: (outputs, first row, rows), in the order of the request's rows.

        Raises:
            OutputShape: The pieces' rows have different shapes.
        """
        first = pieces[0][0]
        try:
            arrays = [
                np.concatenate([outputs.arrays[index][start : start + rows] for outputs, start, rows in pieces])
                for index in range(len(first.arrays))
            ]
        except ValueError as error:
            raise OutputShape(f"the pieces of a request gave different shapes: {error}") from error
        return BatchOutputs(arrays, sum(rows for _, _, rows in pieces), first._text, first._cuts, first._batched)  # noqa: SLF001  # its own class


def _whole_or_sliced(index: int, parts: Sequence[PartLike], row_bytes: int) -> "list[bytes | list[bytes]]":
    pieces: list[bytes | list[bytes]] = []
    for part in parts:
        data = part.request.inputs[index]
        if part.rows != part.request.rows:
            view = memoryview(data)  # type: ignore[arg-type]  # not a list: this is not a BYTES input
            data = view[part.start * row_bytes : (part.start + part.rows) * row_bytes]  # type: ignore[assignment]  # as good as bytes to `join`
        pieces.append(data)
    return pieces


def _fill(buffer: Array, pieces: Sequence[bytes]) -> None:
    """Copies pieces into a staging buffer, one after the other."""
    flat = memoryview(buffer.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # arrays are buffers; 3.11 can't say so
    if len(pieces) > 4 and flat.nbytes <= SMALL:
        flat[:] = b"".join(pieces)  # of small pieces two fast copies are cheaper than many assignments
        return
    position = 0
    for piece in pieces:
        end = position + len(piece)
        flat[position:end] = piece
        position = end


def _resolve_cuts(spec: ModelSpec, cuts: Mapping[str, Sequence[int]]) -> list[Sequence[tuple[int, int]] | None]:
    """Per output, for each of its dimensions (without the batch) the (input, dimension) that it follows, or None."""
    lead = 1 if spec.batched else 0
    resolved: list[Sequence[tuple[int, int]] | None] = []
    for tensor in spec.outputs:
        follows = cuts.get(tensor.name)
        if follows is None:
            resolved.append(None)
            continue
        resolved.append([(_input_with(spec, dimension, lead), dimension) for dimension in follows])
    return resolved


def _input_with(spec: ModelSpec, dimension: int, lead: int) -> int:
    for index, tensor in enumerate(spec.inputs):
        if 0 <= dimension < len(tensor.shape) - lead and tensor.shape[lead + dimension] == FREE:
            return index
    return -1


def _corner(
    ndim: int, cuts: Sequence[tuple[int, int]], shapes: Sequence[tuple[int, ...]], lead: int
) -> tuple[slice, ...]:
    slices = [slice(None)] * ndim
    for position, (source, dimension) in enumerate(cuts):
        if source >= 0:
            slices[lead + position] = slice(0, shapes[source][dimension])
    return tuple(slices)
