"""The documentation of every setting: the text under its field in `config.tree`, read from the source once.

Called by `forebay config` and `forebay check`. A page made by `markdown` is committed as docs/configuration.md.
"""

import ast
import functools
import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from forebay_server.config import schema, tree
from forebay_server.config.tree import Config, Section

PREFIX = "FOREBAY_"


class Setting(NamedTuple):
    """What can be said about a setting before anybody has set it."""

    path: str
    """`server.drain_grace_s`; `N` stands for the number of a model, `NAME` for a name of the operator's choice."""
    variable: str
    """The environment variable that sets it."""
    allowed: str
    """What it may hold."""
    unit: str
    default: Any
    """`msgspec.NODEFAULT` if it has to be said."""
    documentation: str


class Table(NamedTuple):
    """A table of the TOML file, and its settings."""

    path: str
    documentation: str
    settings: list[Setting]


@functools.cache
def texts() -> dict[tuple[str, str], str]:
    """The documentation by class and field; the empty field is the class itself."""
    found: dict[tuple[str, str], str] = {}
    for node in ast.parse(inspect.getsource(tree)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        found[node.name, ""] = " ".join((ast.get_docstring(node) or "").split())
        for field, text in zip(node.body, node.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found[node.name, name] = " ".join(words.split())
                case _:
                    pass
    return found


def variable_of(path: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + path.replace(".", "__").upper()


def settings() -> list[Setting]:
    """All settings, in the order of the tree."""
    return [setting for table in tables() for setting in table.settings]


def tables() -> Iterator[Table]:
    """The settings table by table."""
    yield from _tables(Config, "", "", None)


def _tables(section: type[Section], path: str, words: str, made: Section | None) -> Iterator[Table]:
    leaves: list[Setting] = []
    inner: list[tuple[type[Section], str, str, Section | None]] = []
    for name, field in schema.fields(section).items():
        here = f"{path}.{name}" if path else name
        shape = schema.shape_of(field.type)
        documentation = texts().get((section.__name__, name), "")
        placeholder = ""
        if isinstance(shape, schema.Rows):
            placeholder = ".N"
            shape = shape.item
        elif isinstance(shape, schema.Table):
            placeholder = ".NAME"
            shape = schema.shape_of(shape.item)
        if isinstance(shape, type):
            default = field.default if isinstance(field.default, Section) else None
            inner.append((shape, here + placeholder, documentation, default))
            continue
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if made is not None:  # a section that is there by default may say more than its fields do
            default = getattr(made, name)
        leaves.append(
            Setting(
                path=here + placeholder,
                variable=variable_of(here + placeholder),
                allowed=schema.allowed(shape.annotation if isinstance(shape, schema.Leaf) else shape),
                unit=schema.unit_of(name),
                default=default,
                documentation=documentation,
            )
        )
    if leaves:
        yield Table(path, words, leaves)
    for found in inner:
        yield from _tables(*found)


_PASSWORD = re.compile(r"(?<=://)([^/@:]*:)[^@]*(?=@)|([?&]password=)[^&]*")
"""The password in a URL, which is nobody's business."""


def shown(value: Any) -> str:  # noqa: PLR0911  # one case for each kind of value
    """A value as TOML writes it, or a word for what TOML can't say. Passwords in URLs are left out."""
    match value:
        case None:
            return "unset"
        case msgspec.NODEFAULT:
            return "required"
        case bool():
            return "true" if value else "false"
        case str():
            return msgspec.json.encode(_PASSWORD.sub(r"\1\2***", value)).decode()
        case list() | tuple():
            return f"[{', '.join(map(shown, value))}]"
        case dict():
            return f"{{{', '.join(f'{name} = {shown(item)}' for name, item in value.items())}}}" if value else "{}"
    return str(value)


_HEAD = """\
# Configuration

*This page is made by `make docs` from `server/forebay_server/config/tree.py`.*

A setting is looked for in four places; the later ones are stronger:

1. its default;
2. the TOML file named by `--config` or `FOREBAY_CONFIG` (for a model, the TOML file beside it is weaker still);
3. an environment variable: `FOREBAY_` and the setting's path in capitals, with `__` for each dot.
   `server.drain_grace_s` is `FOREBAY_SERVER__DRAIN_GRACE_S`; `FOREBAY_MODELS__0__BATCHING__MAX_DELAY_MS` sets it for
   the first model. Names of the operator's choice (`NAME`) are taken in lower case. A variable without `__` is no
   setting, so what Kubernetes adds for a service called `forebay` does no harm;
4. a flag: its own (`--listen`), or `--set server.drain_grace_s=60` for any setting.

Unknown names and wrong types are errors. Relative paths in a TOML file start at that file. Lists in variables and flags
are written as in TOML (`[1, 2]`), or for texts with commas (`a,b`). `forebay check` shows what holds and where it
comes from.
"""


def markdown() -> str:
    """The page docs/configuration.md."""
    lines = [_HEAD]
    for path, words, several in tables():
        table = re.sub(r"\.N(?=\.|$)", "", path)
        lines += [f"## `[[{table}]]`" if path.endswith(".N") else f"## `[{table}]`", "", words, ""]
        lines += ["| setting | values | default | |", "|---|---|---|---|"]
        for setting in several:
            values = setting.allowed.replace("|", "\\|") + (f", {setting.unit}" if setting.unit else "")
            name = setting.path.removeprefix(f"{path}.")
            documentation = setting.documentation.replace("|", "\\|")
            lines.append(f"| `{name}` | {values} | `{shown(setting.default)}` | {documentation} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
