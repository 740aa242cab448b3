"""The python engine: a model that is a Python function or class, named `module:object`.

A function takes one array per input, named by its parameters, and returns one array per output: an array, a sequence in
the order of the specification, or a mapping by name. What it takes and gives is declared beside it:

    @model(inputs={"x": ("FP32", (-1, 4))}, outputs={"y": ("FP32", (-1,))})
    def predict(x):
        return x.sum(axis=1)

Shapes include the batch dimension (-1) unless `batched=False`. With `per_row=True` the function sees one row at a time,
without that dimension. A parameter called `parameters` receives the request's parameters.

A class has `infer` in place of the function, `spec` (a `ModelSpec`, or the decorator), and if it likes `load()`,
`warm_up()` and `close()`. Each instance gets an object of its own, so an object is used by one thread at a time; a
function is shared by all instances and must bear that. The class is made with the engine's options as keywords.

Rules for the code: the arrays it gets are read-only and not to be kept; those it returns must be fresh ones (views of
inputs are copied). BYTES tensors are object arrays of `bytes`; returned text is encoded as UTF-8. To refuse an input
with a text for the caller, raise `forebay_server.engines.base.RejectInput(message, rows)`; any other exception becomes
an internal error whose text only the log shows.

This runs the operator's code in the server's process. The path comes from the operator only: `module:object` (found on
PYTHONPATH or in the folder of the option `path`), or `folder/module.py:object`. Files of one name in two folders are
two modules; what they import from beside them is not told apart.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from forebay_server.engines.base import (
    EngineBatch,
    EngineOptions,
    Instance,
    ModelLoadError,
    OutputMismatch,
    ParameterValue,
    RejectInput,
)
from forebay_server.engines.objects import guarded, resolve
from forebay_server.engines.options import Options
from forebay_server.tensors import FREE, NUMPY_DTYPES, Array, DataType, ModelSpec, TensorSpec, data_type_of

Tensors = Mapping[str, tuple[str | DataType, Sequence[int]]]
"""Name -> (data type, shape), such as `{"x": ("FP32", (-1, 4))}`."""

Model = TypeVar("Model", bound=Callable[..., Any])


def model(
    *, inputs: Tensors, outputs: Tensors, batched: bool = True, per_row: bool = False
) -> Callable[[Model], Model]:
    """Declares what a function or class takes and gives.

    Args:
        inputs: What `infer` or the function takes, in any order; the names are those of its parameters.
        outputs: What it returns, in this order.
        batched: Whether dimension 0 of every tensor is the batch.
        per_row: Whether it wants one row at a time.

    Raises:
        ValueError: A data type is unknown, a batched tensor has no free dimension 0, or `per_row` without `batched`.
    """
    spec = ModelSpec(inputs=_tensors(inputs), outputs=_tensors(outputs), batched=batched)
    if batched:
        for tensor in (*spec.inputs, *spec.outputs):
            if not tensor.shape or tensor.shape[0] != FREE:
                raise ValueError(f"{tensor.name}: dimension 0 of a batched model is -1, not {tensor.shape}")
    elif per_row:
        raise ValueError("per_row needs batched")

    def declare(target: Model) -> Model:
        target.spec = spec  # type: ignore[attr-defined]  # functions and classes take attributes
        target.per_row = per_row  # type: ignore[attr-defined]  # see above
        return target

    return declare


def _tensors(tensors: Tensors) -> tuple[TensorSpec, ...]:
    specs = []
    for name, (data_type, shape) in tensors.items():
        try:
            kind = data_type if isinstance(data_type, DataType) else DataType[data_type]
        except KeyError:
            raise ValueError(
                f"{name}: no data type {data_type!r}; there are {', '.join(DataType.__members__)}"
            ) from None
        specs.append(TensorSpec(name=name, data_type=kind, shape=tuple(shape)))
    return tuple(specs)


class PythonEngine:
    """A function or class."""

    suffixes: ClassVar[Sequence[str]] = ()
    devices: ClassVar[Sequence[str]] = ("cpu",)

    name = "python"

    def __init__(self, path: Path | str, options: EngineOptions) -> None:
        self._path = str(path)
        self._options = options
        self._target: Any = None
        self._arguments: dict[str, ParameterValue] = {}
        self._first: Any = None
        self._spec = ModelSpec(inputs=(), outputs=(), batched=False)
        self.version = "{}.{}.{}".format(*sys.version_info[:3])
        self.device = "cpu"
        self.always_worker = False
        self.batch_sizes: Sequence[int] = ()
        self.holds_gil = False
        self.gives_way = False
        self.max_batch_size = 0

    def load(self) -> ModelSpec:
        """Imports the module, makes and loads the first object, and reads its specification."""
        options = Options(self.name, self._options.options)
        self._target = resolve(self._path, options.take("path", ""))
        if inspect.isclass(self._target):
            self._arguments = options.rest()
        options.done()
        if not callable(self._target):
            raise ModelLoadError(f"{self._path}: neither a function nor a class")
        self._first = self._make()
        spec = getattr(self._first, "spec", None)
        if not isinstance(spec, ModelSpec):
            raise ModelLoadError(
                f"{self._path}: it doesn't say what it takes and gives; "
                "decorate it with forebay_server.engines.python.model(inputs=..., outputs=...)"
            )
        self._spec = spec
        return spec

    def instance(self, index: int) -> Instance:
        """Makes an instance; of a class, with an object of its own."""
        target = self._first if index == 0 or not inspect.isclass(self._target) else self._make()
        instance = _Instance(self._path, target, self._spec)
        if callable(warm_up := getattr(target, "warm_up", None)):
            guarded(self._path, "warm_up", warm_up)
        return instance

    def close(self) -> None:
        """Forgets the object. The module stays imported: Python can't take that back."""
        self._first = self._target = None

    def _make(self) -> Any:
        if not inspect.isclass(self._target):
            return self._target
        made = guarded(self._path, "its constructor", lambda: self._target(**self._arguments))
        if callable(load := getattr(made, "load", None)):
            guarded(self._path, "load", load)
        return made


class _Instance:
    """Runs batches through one object."""

    def __init__(self, path: str, target: Any, spec: ModelSpec) -> None:
        self._target = target
        self._spec = spec
        self._per_row = bool(getattr(target, "per_row", False))
        call = target.infer if hasattr(target, "infer") else target
        if not callable(call):
            raise ModelLoadError(f"{path}: its infer can't be called")
        self._call: Callable[..., Any] = call
        self._names, self._wants_parameters = _binding(path, call, spec)

    def stage(self, shapes: Sequence[tuple[int, ...]]) -> None:  # the port's name
        """Any memory will do."""

    def infer(self, batch: EngineBatch) -> Sequence[Array]:
        """Calls the model with the whole batch, or with each of its rows.

        Raises:
            OutputMismatch: What it returned is not what its specification says.
            RejectInput: It said so.
        """
        inputs = [_read_only(array) for array in batch.inputs]
        extra = {"parameters": batch.parameters} if self._wants_parameters else {}
        if self._per_row:
            return self._rows(inputs, batch.rows, extra)
        returned = self._call(**dict(zip(self._names, inputs, strict=True)), **extra)
        rows = len(inputs[0]) if self._spec.batched else None
        return [
            _checked(tensor, value, tensor.shape, rows, inputs)
            for tensor, value in zip(self._spec.outputs, self._in_order(returned), strict=True)
        ]

    def close(self) -> None:
        """Closes the object, if it can be."""
        if callable(close := getattr(self._target, "close", None)):
            close()

    def _rows(self, inputs: Sequence[Array], rows: int, extra: Mapping[str, Any]) -> Sequence[Array]:
        columns: list[list[Array]] = [[] for _ in self._spec.outputs]
        refusals: dict[str, list[int]] = {}
        for row in range(rows):
            given = {name: _read_only(np.asarray(array[row])) for name, array in zip(self._names, inputs, strict=True)}
            try:
                returned = self._call(**given, **extra)
            except RejectInput as refusal:
                refusals.setdefault(refusal.message, []).append(row)
                continue
            for column, tensor, value in zip(columns, self._spec.outputs, self._in_order(returned), strict=True):
                column.append(_checked(tensor, value, tensor.shape[1:], None, ()))
        if refusals:  # the rows of another text are run again, and refused with it
            message, refused = next(iter(refusals.items()))
            raise RejectInput(message, refused)
        try:
            return [np.stack(column) for column in columns]
        except ValueError as error:
            raise OutputMismatch(f"rows of one batch gave outputs of different shapes: {error}") from error

    def _in_order(self, returned: Any) -> Sequence[Any]:
        outputs = self._spec.outputs
        if isinstance(returned, Mapping):
            if returned.keys() != {tensor.name for tensor in outputs}:
                raise OutputMismatch(f"it returned {sorted(returned)}, not {[tensor.name for tensor in outputs]}")
            return [returned[tensor.name] for tensor in outputs]
        if isinstance(returned, tuple) or (isinstance(returned, list) and len(outputs) > 1):
            if len(returned) != len(outputs):
                raise OutputMismatch(f"it returned {len(returned)} outputs, not {len(outputs)}")
            return returned
        if len(outputs) != 1:
            raise OutputMismatch(f"it returned one {type(returned).__name__}, not {len(outputs)} outputs")
        return [returned]


def _binding(path: str, call: Callable[..., Any], spec: ModelSpec) -> tuple[list[str], bool]:
    """The parameters that the inputs go to, and whether there is one for the request's parameters."""
    names = [tensor.name for tensor in spec.inputs]
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # some callables of compiled modules don't tell
        return names, False
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return names, True
    taken = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL}
    wanted = {parameter.name for parameter in parameters if parameter.default is parameter.empty} - {"parameters"}
    if missing := [name for name in names if name not in taken]:
        raise ModelLoadError(f"{path}: the input {missing[0]!r} is in its spec but not among its parameters")
    if left := sorted(wanted - set(names)):
        raise ModelLoadError(f"{path}: its parameter {left[0]!r} is not an input of its spec")
    return names, "parameters" in taken and "parameters" not in names


def _read_only(array: Array) -> Array:
    if not array.flags.writeable:
        return array
    view = array.view()
    view.flags.writeable = False
    return view


def _checked(tensor: TensorSpec, value: Any, shape: Sequence[int], rows: int | None, inputs: Sequence[Array]) -> Array:
    """An output as the specification says: its type, rank, fixed dimensions, rows; a copy if it is part of an input."""
    array = np.asarray(value)
    if tensor.data_type is DataType.BYTES:
        array = _as_bytes(tensor, array if array.dtype.kind in "OSU" else np.asarray(value, np.object_))
    else:
        try:
            found = data_type_of(array.dtype)
        except KeyError:
            raise OutputMismatch(f"the output {tensor.name!r} is of the numpy type {array.dtype}") from None
        if found is not tensor.data_type:
            raise OutputMismatch(f"the output {tensor.name!r} is {found.name}, not {tensor.data_type.name}")
        array = array.astype(NUMPY_DTYPES[found], copy=any(np.may_share_memory(array, given) for given in inputs))
    if array.ndim != len(shape) or any(n not in (FREE, m) for n, m in zip(shape, array.shape, strict=True)):
        raise OutputMismatch(f"the output {tensor.name!r} has the shape {list(array.shape)}, not {list(shape)}")
    if rows is not None and len(array) != rows:
        raise OutputMismatch(f"the output {tensor.name!r} has {len(array)} rows for a batch of {rows}")
    return array


def _as_bytes(tensor: TensorSpec, array: Array) -> Array:
    elements = []
    for element in array.reshape(-1).tolist():
        if isinstance(element, str):
            elements.append(element.encode())
        elif isinstance(element, bytes):
            elements.append(element)
        else:
            raise OutputMismatch(f"the output {tensor.name!r} holds a {type(element).__name__}, not text or bytes")
    result = np.empty(array.shape, np.object_)
    result.reshape(-1)[:] = elements
    return result
