"""The shape of the tree of settings, read from its types: which settings there are, and what each may hold.

Called by `load`, which walks sources along this shape, and by `documentation`, which describes it.
"""

import re
import types
import typing
from dataclasses import dataclass
from typing import Any

import msgspec

from forebay_server.config.tree import Section

UNITS = {"_ms": "ms", "_s": "s", "_mib": "MiB", "_kib": "KiB"}
"""The unit by the end of a setting's name."""

_TYPE_NAMES = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "str": "a text",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A type that has settings of any name, each of the same type."""

    item: Any


@dataclass(frozen=True, slots=True)
class Rows:
    """A type that is a list of sections."""

    item: type[Section]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A type that is a value."""

    annotation: Any


Shape = type[Section] | Table | Rows | Leaf


def shape_of(annotation: Any) -> Shape:
    """What a setting of this type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        sections = [shape for shape in map(shape_of, arguments) if isinstance(shape, type)]
        if sections:
            return sections[0]
    if origin is dict:
        return Table(arguments[1])
    if origin is list and isinstance(shape_of(arguments[0]), type):
        return Rows(arguments[0])
    return Leaf(annotation)


def fields(section: type[Section]) -> dict[str, msgspec.structs.FieldInfo]:
    """The settings of a section by name, in their order."""
    return {field.name: field for field in msgspec.structs.fields(section)}


def unit_of(name: str) -> str:
    """The unit of a setting, or nothing."""
    return next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), "")


def sentence(error: msgspec.ValidationError, annotation: Any = None, text: str | None = None) -> str:
    """What msgspec says about a value, in the words of people who write TOML.

    Args:
        error: What it raised.
        annotation: The type of the setting.
        text: The text that was to be read as a value, if it was one.
    """
    message = str(error).split(" - at `")[0]
    if annotation is not None and message.startswith("Invalid enum value"):
        return f"expected {allowed(annotation)}, got {message.removeprefix('Invalid enum value ')}"
    if text is not None:
        message = message.replace("got `str`", f"got {text!r}")
    message = re.sub(r"`(\w+)`", lambda match: _TYPE_NAMES.get(match[1], f"`{match[1]}`"), message)
    message = re.sub(
        r"`(\w+)( [|<>=][^`]*)`", lambda match: f"{_TYPE_NAMES.get(match[1], match[1])}{match[2]}", message
    )
    return message[:1].lower() + message[1:]


def allowed(annotation: Any) -> str:  # noqa: C901, PLR0911  # one case for each kind of value
    """What a value may be, for the documentation: `integer >= 1`, `auto | native`, ..."""
    arguments = typing.get_args(annotation)
    if type(None) in arguments:
        return allowed(next(argument for argument in arguments if argument is not type(None)))
    match msgspec.inspect.type_info(annotation):
        case msgspec.inspect.LiteralType(values=values):
            return " | ".join(str(value) for value in values)
        case msgspec.inspect.IntType(ge=least):
            return "integer" if least is None else f"integer >= {least}"
        case msgspec.inspect.FloatType(gt=above, ge=least):
            bound = "" if above is None else f" > {above:g}"
            return f"number{bound}" if least is None else f"number >= {least:g}"
        case msgspec.inspect.BoolType():
            return "true | false"
        case msgspec.inspect.ListType(item_type=msgspec.inspect.ListType()):
            return "list of lists of integers"
        case msgspec.inspect.ListType(item_type=msgspec.inspect.IntType()):
            return "list of integers"
        case msgspec.inspect.ListType(item_type=msgspec.inspect.FloatType()):
            return "list of numbers"
        case msgspec.inspect.ListType():
            return "list of texts"
        case msgspec.inspect.UnionType(types=several) if len(several) > 2:
            return "true | false, number or text"
    return "text"
