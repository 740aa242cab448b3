"""Whether a `PredictRequest` is what the contract and a model's specification want: one pure function.

`validate` yields what the scheduler and the collator need, or raises `InvalidRequest` with every violation found. What
a caller can make long is measured in O(1) before it is walked. The usual message (raw data, the inputs in the order of
the specification) takes a short way; anything else is looked at thoroughly, and the two agree (a test compares them).

It does not know models by name, versions, queues or tenants. Called by `services.intake`.
"""

import re
from typing import Final

from forebay.v1 import inference_pb2, tensor_pb2
from forebay_server.errors import InvalidRequest
from forebay_server.services.elements import (
    MAX_BYTES_ELEMENTS,
    MAX_READABLE,
    InputRule,
    RawInput,
    content_problem,
    from_data,
    from_numbers,
    from_strings,
    product,
)
from forebay_server.tensors import FREE, MAX_DIMENSION, MAX_RANK, NUMPY_DTYPES, DataType, ModelSpec

MAX_INPUTS: Final = 64
MAX_PARAMETERS: Final = 32
MAX_PARAMETER_TEXT: Final = 1024
"""Characters of a parameter's name or text: parameters are kept as long as the queue that they select."""
MAX_REQUEST_ID: Final = 128
"""Characters."""
BYTES_OVERHEAD: Final = 40
"""What an element of a BYTES tensor holds in memory beside its payload."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")

Violations = list[tuple[str, str]]
Checked = tuple[int, tuple[tuple[int, ...], ...], list[RawInput], int, tuple[int, ...] | None]
"""(rows, shapes, inputs, nbytes, wanted).

`rows` is 1 for a model that is not batched. `shapes` has one shape per input without the batch dimension, `inputs` the
raw elements, both in the order of the specification. `nbytes` is what the inputs hold in memory. `wanted` has the
indices of the outputs in the order asked for, or is None for all of them."""


class Rules:
    """A model's specification, prepared for `validate`. Immutable; made once per model version."""

    __slots__ = ("batched", "by_name", "inputs", "output_names", "outputs", "quick", "rows", "spec")

    def __init__(self, spec: ModelSpec, *, reject_nan: bool = False) -> None:
        self.spec = spec
        self.batched = spec.batched
        self.inputs = tuple(
            InputRule(index, one, batched=spec.batched, reject_nan=reject_nan) for index, one in enumerate(spec.inputs)
        )
        self.rows = tuple(rule.row for rule in self.inputs)
        """The specification's shapes of one row."""
        self.by_name = {rule.name: rule for rule in self.inputs}
        self.outputs = spec.outputs
        self.output_names = {one.name: index for index, one in enumerate(spec.outputs)}
        self.quick = spec.batched and all(rule.row_bytes is not None for rule in self.inputs)
        """Whether the short way applies: every input has rows of a fixed, positive number of bytes."""


def check_name(name: str, version: str = "") -> None:
    """Checks the name of a model, and a version or label; empty means none.

    Raises:
        InvalidRequest: One of them is not as names have to be.
    """
    violations: Violations = []
    if _NAME.fullmatch(name) is None:
        violations.append(
            ("model", "must have 1 to 128 letters, digits, '_', '.' or '-' and begin with a letter, a digit or '_'")
        )
    if version and _NAME.fullmatch(version) is None:
        violations.append(("version", "must be a version number or a label"))
    if violations:
        raise InvalidRequest(violations)


def validate(message: inference_pb2.PredictRequest, rules: Rules) -> Checked:
    """Checks a request against a model's specification.

    Raises:
        InvalidRequest: With all violations that were found.
    """
    if rules.quick:
        checked = _quick(message, rules)
        if checked is not None:
            return checked
    return _thorough(message, rules)


def _quick(message: inference_pb2.PredictRequest, rules: Rules) -> Checked | None:
    """The short way; None if the message isn't plain enough for it, be it right or wrong."""
    tensors = message.inputs
    expected = rules.inputs
    if (
        len(tensors) != len(expected)
        or message.outputs
        or message.readable
        or len(message.request_id) > MAX_REQUEST_ID
        or message.parameters
    ):
        return None
    rows = 0
    nbytes = 0
    inputs: list[RawInput] = []
    for rule, tensor in zip(expected, tensors, strict=True):
        data = tensor.data
        # A positive row count that accounts for every byte is within all limits by itself.
        count, excess = divmod(len(data), rule.row_bytes)  # type: ignore[operator]  # `quick` says that none is None
        if (
            not count
            or excess
            or (rows and count != rows)
            or tensor.name != rule.name
            or tensor.data_type != rule.data_type
            or tensor.shape != (rule.one_row if count == 1 else [count, *rule.row])
            or tensor.numbers
            or tensor.strings
            or (rule.inspect and content_problem(data, rule) is not None)
        ):
            return None
        rows = count
        nbytes += len(data)
        inputs.append(data)
    if not rows:  # a model without inputs
        return None
    return rows, rules.rows, inputs, nbytes, None


def _thorough(message: inference_pb2.PredictRequest, rules: Rules) -> Checked:
    if len(message.inputs) > MAX_INPUTS:
        raise InvalidRequest([("inputs", f"at most {MAX_INPUTS}, not {len(message.inputs)}")])
    violations: Violations = []
    inputs, shapes, positions = _inputs(message, rules, violations)
    rows = 1
    if rules.batched and not violations:
        rows = _rows(shapes, rules, positions, violations)
    wanted = _wanted(message, rules, violations)
    _rest(message, violations)
    if message.readable and not violations:
        _readable(rows, rules, wanted, violations)
    if violations:
        raise InvalidRequest(violations)
    if rules.batched:
        shapes = [shape[1:] for shape in shapes]
    return rows, tuple(shapes), inputs, sum(map(_held, inputs)), wanted


def _inputs(
    message: inference_pb2.PredictRequest, rules: Rules, violations: Violations
) -> tuple[list[RawInput], list[tuple[int, ...]], dict[str, int]]:
    """The inputs' elements and shapes in the order of the specification, and their positions in the message."""
    inputs: list[RawInput] = [b""] * len(rules.inputs)
    shapes: list[tuple[int, ...]] = [()] * len(rules.inputs)
    positions: dict[str, int] = {}
    budget = MAX_BYTES_ELEMENTS
    for position, tensor in enumerate(message.inputs):
        path = f"inputs[{position}]"
        name = tensor.name
        rule = rules.by_name.get(name)
        if rule is None:
            violations.append((f"{path}.name", f"the model has no input {_quote(name)}"))
            continue
        if name in positions:
            violations.append((f"{path}.name", f"{_quote(name)} was given before, as inputs[{positions[name]}]"))
            continue
        positions[name] = position
        values = _tensor(tensor, rule, path, budget, batched=rules.batched, violations=violations)
        if values is not None:
            shapes[rule.index], inputs[rule.index] = values
            if not rule.item:
                budget -= len(values[1])
    for rule in rules.inputs:
        if rule.name not in positions:
            violations.append(("inputs", f"the input {_quote(rule.name)} is missing"))
    return inputs, shapes, positions


def _tensor(
    tensor: tensor_pb2.Tensor, rule: InputRule, path: str, budget: int, *, batched: bool, violations: Violations
) -> tuple[tuple[int, ...], RawInput] | None:
    """The shape and raw elements of an input, or None after adding to the violations."""
    before = len(violations)
    if tensor.data_type != rule.data_type:
        violations.append(
            (f"{path}.data_type", f"must be {DataType(rule.data_type).name}, not {_type_name(tensor.data_type)}")
        )
    if len(tensor.shape) > MAX_RANK:
        violations.append((f"{path}.shape", f"at most {MAX_RANK} dimensions, not {len(tensor.shape)}"))
        return None
    shape = tuple(tensor.shape)
    problem = _shape_problem(shape, rule, batched=batched)
    if problem is not None:
        violations.append((f"{path}.shape", problem))
    forms = (len(tensor.data) > 0) + (len(tensor.numbers) > 0) + (len(tensor.strings) > 0)
    if forms > 1:
        violations.append((path, "only one of data, numbers and strings may be set"))
    if len(violations) > before:
        return None
    if tensor.numbers:
        field = "numbers"
        data, problem = from_numbers(tensor.numbers, rule, shape)
    elif tensor.strings:
        field = "strings"
        data, problem = from_strings(tensor.strings, rule, shape, budget)
    else:
        field = "data"
        data, problem = from_data(tensor.data, rule, shape, budget)
    if problem is None and rule.inspect and isinstance(data, bytes):
        problem = content_problem(data, rule)
    if problem is not None:
        violations.append((f"{path}.{field}", problem))
        return None
    return shape, data


def _rows(shapes: list[tuple[int, ...]], rules: Rules, positions: dict[str, int], violations: Violations) -> int:
    """The number of rows, which all inputs must share."""
    if not shapes:
        return 1
    rows = shapes[0][0]
    for rule, shape in zip(rules.inputs, shapes, strict=True):
        if shape[0] != rows:
            violations.append(
                (
                    f"inputs[{positions[rule.name]}].shape",
                    f"{shape[0]} rows, but {_quote(rules.inputs[0].name)} has {rows}",
                )
            )
    return rows


def _wanted(message: inference_pb2.PredictRequest, rules: Rules, violations: Violations) -> tuple[int, ...] | None:
    names = message.outputs
    if not names:
        return None
    if len(names) > len(rules.outputs):
        violations.append(("outputs", f"the model has only {len(rules.outputs)}; some names are unknown or repeated"))
        return None
    wanted: list[int] = []
    for position, name in enumerate(names):
        index = rules.output_names.get(name)
        if index is None:
            violations.append((f"outputs[{position}]", f"the model has no output {_quote(name)}"))
        elif index in wanted:
            violations.append((f"outputs[{position}]", f"{_quote(name)} was asked for before"))
        else:
            wanted.append(index)
    return tuple(wanted)


def _rest(message: inference_pb2.PredictRequest, violations: Violations) -> None:
    if len(message.request_id) > MAX_REQUEST_ID:
        violations.append(("request_id", f"at most {MAX_REQUEST_ID} characters, not {len(message.request_id)}"))
    parameters = message.parameters
    if len(parameters) > MAX_PARAMETERS:
        violations.append(("parameters", f"at most {MAX_PARAMETERS}, not {len(parameters)}"))
        return
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("value")
        if not 0 < len(name) <= MAX_PARAMETER_TEXT or len(parameter.string_value) > MAX_PARAMETER_TEXT:
            violations.append(("parameters", f"names and texts must have at most {MAX_PARAMETER_TEXT} characters"))
        elif kind is None:
            violations.append((f"parameters[{_quote(name)}]", "has no value"))
        elif kind == "double_value" and parameter.double_value != parameter.double_value:
            violations.append((f"parameters[{_quote(name)}]", "must not be NaN"))


def _readable(rows: int, rules: Rules, wanted: tuple[int, ...] | None, violations: Violations) -> None:
    """Refuses what is known to be too much before it is computed; free dimensions are looked at when they are known."""
    for index in range(len(rules.outputs)) if wanted is None else wanted:
        output = rules.outputs[index]
        row = output.shape[1:] if rules.batched else output.shape
        if FREE not in row and rows * product(row) > MAX_READABLE:
            violations.append(("readable", f"the output {_quote(output.name)} has more than {MAX_READABLE} elements"))


def _shape_problem(shape: tuple[int, ...], rule: InputRule, *, batched: bool) -> str | None:
    if len(shape) != rule.rank:
        return f"must have {rule.rank} dimensions, not {len(shape)}"
    if not all(0 <= length <= MAX_DIMENSION for length in shape):
        return f"each dimension must be from 0 to {MAX_DIMENSION}"
    if not _fits(shape, rule.shape, batched=batched):
        return f"{list(shape)} does not fit {_show(rule.shape, batched=batched)}"
    return None


def _fits(shape: tuple[int, ...], expected: tuple[int, ...], *, batched: bool) -> bool:
    pairs = list(zip(shape, expected, strict=True))
    return all(wanted in (FREE, length) for length, wanted in (pairs[1:] if batched else pairs))


def _held(value: RawInput) -> int:
    if isinstance(value, bytes):
        return len(value)
    return sum(map(len, value)) + BYTES_OVERHEAD * len(value)


def _quote(name: str) -> str:
    return repr(name if len(name) <= 48 else name[:45] + "...")


def _type_name(number: int) -> str:
    return DataType(number).name if number in NUMPY_DTYPES else str(number)


def _show(shape: tuple[int, ...], *, batched: bool) -> str:
    texts = ["any" if length == FREE else str(length) for length in shape]
    if batched:
        texts[0] = "rows"
    return f"[{', '.join(texts)}]"
