"""Puts the tree of settings together: defaults < TOML file < `FOREBAY_*` variables < flags.

A variable is called `FOREBAY_` and the path of its setting in capitals, with `__` for each dot:
`FOREBAY_SERVER__DRAIN_GRACE_S`, `FOREBAY_MODELS__0__PATH`. Variables without `__` are not settings.

Every value is checked where it comes from, so that an error names the file, variable or flag as well as the setting.
Called by the commands. A model's own TOML file is read by `models.settings`, not here.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from forebay_server.config import schema
from forebay_server.config.documentation import PREFIX, texts
from forebay_server.config.tree import Config, JobsConfig, ModelConfig, OptionValue, Section, ServerConfig, TlsConfig
from forebay_server.errors import ConfigError

DEFAULT = "default"
"""The source of what nobody has set."""

_FILES = {
    (JobsConfig, "store"),
    (ModelConfig, "path"),
    (ServerConfig, "cache_dir"),
    (TlsConfig, "certificate"),
    (TlsConfig, "client_ca"),
    (TlsConfig, "key"),
}
"""Settings that are paths: in a TOML file relative to it."""

Keys = tuple[str, ...]


class Flag(NamedTuple):
    """A setting that was given on the command line."""

    path: str
    """`server.drain_grace_s`; `models.*.engine.instances` means all models."""
    value: Any
    """A text is read as the setting's type."""
    name: str
    """What the operator wrote, such as `--listen`; errors say it."""


class Resolved(NamedTuple):
    """A configuration, and where each of its settings comes from."""

    config: Config
    sources: Mapping[str, str]
    """By path; what is missing has its default."""


class Explained(NamedTuple):
    """A setting as it holds."""

    path: str
    value: Any
    unit: str
    source: str
    documentation: str


def load(
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    models: Sequence[str] = (),
    flags: Iterable[Flag] = (),
) -> Resolved:
    """Puts a configuration together.

    Args:
        file: The TOML file.
        environment: Variables; those that are no settings are passed over.
        models: Models named on the command line: served beside those of the file.
        flags: Further settings of the command line; the last one wins.

    Raises:
        ConfigError: A source can't be read, or holds something that it must not.
    """
    layers = _Layers()
    if file is not None:
        layers.add_file(file)
    named: list[tuple[Keys, str]] = [
        (("models", str(layers.models + index), "path"), path) for index, path in enumerate(models)
    ]
    for keys, path in named:  # before the variables, so that these can speak of them by number
        layers.add(keys, path, "command line")
    for variable, value in sorted((environment or {}).items()):
        if variable.startswith(PREFIX) and "__" in variable:
            layers.add(tuple(variable.removeprefix(PREFIX).lower().split("__")), value, variable)
    for keys, path in named:  # and once more, because they are stronger
        layers.add(keys, path, "command line")
    for flag in flags:
        for keys in layers.matching(tuple(flag.path.split("."))):
            layers.add(keys, flag.value, flag.name)
    return Resolved(layers.config(), layers.sources)


def explain(config: Config, sources: Mapping[str, str]) -> list[Explained]:
    """Every setting with its value, unit, source and documentation, in the order of the tree."""
    return list(_explain(config, "", sources))


def explain_section(section: Section, path: str) -> list[Explained]:
    """As `explain`, for a part of the tree whose sources are not known."""
    return list(_explain(section, path, {}))


def _explain(section: Section, path: str, sources: Mapping[str, str]) -> Iterable[Explained]:
    for name in section.__struct_fields__:
        here = f"{path}.{name}" if path else name
        value = getattr(section, name)
        inner: list[tuple[str, Any]] = []
        match value:
            case Section():
                inner = [(here, value)]
            case dict():
                inner = [(f"{here}.{key}", item) for key, item in value.items()]
            case list() if value and isinstance(value[0], Section):
                inner = [(f"{here}.{index}", item) for index, item in enumerate(value)]
        if inner and all(isinstance(item, Section) for _, item in inner):
            for where, item in inner:
                yield from _explain(item, where, sources)
        else:
            yield Explained(
                path=here,
                value=value,
                unit=schema.unit_of(name),
                source=_source_of(here, sources),
                documentation=texts().get((type(section).__name__, name), ""),
            )


def _source_of(path: str, sources: Mapping[str, str]) -> str:
    """Where a value comes from; several places for a table of options."""
    if path in sources:
        return sources[path]
    within = {source: None for key, source in sources.items() if key.startswith(f"{path}.")}
    return ", ".join(within) or DEFAULT


class _Layers:
    """The tree as plain tables, and where each value came from."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.sections: dict[str, str] = {}
        """Who first spoke of a section."""

    @property
    def models(self) -> int:
        """How many there are so far."""
        return len(self.tree.get("models", ()))

    def matching(self, keys: Keys) -> list[Keys]:
        """The paths that a path with a star stands for."""
        if "*" not in keys:
            return [keys]
        at = keys.index("*")
        return [(*keys[:at], str(index), *keys[at + 1 :]) for index in range(self.models)]

    def add_file(self, file: Path) -> None:
        """The whole of a TOML file."""
        try:
            document = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from error
        except ValueError as error:  # bad TOML, or bytes that are no text
            raise ConfigError(f"{file}: {str(error)[:1].lower()}{str(error)[1:]}") from error
        self._flatten((), document, str(file), file.resolve().parent)

    def _flatten(self, keys: Keys, value: Any, source: str, folder: Path) -> None:
        shape = self._shape(keys, source)
        if isinstance(shape, type) or (isinstance(shape, schema.Table) and isinstance(value, dict)):
            if not isinstance(value, dict):
                raise ConfigError(f"{source}: {'.'.join(keys)}: expected a table, got {shape_word(value)}")
            self._container(keys, source)
            for key, item in value.items():
                self._flatten((*keys, key), item, source, folder)
        elif isinstance(shape, schema.Rows):
            if not isinstance(value, list):
                raise ConfigError(f"{source}: {'.'.join(keys)}: expected a list of tables ([[{'.'.join(keys)}]])")
            self._container(keys, source)
            for index, item in enumerate(value):
                self._flatten((*keys, str(index)), item, source, folder)
        else:
            owner = self._shape(keys[:-1], source)
            if isinstance(owner, type) and (owner, keys[-1]) in _FILES and isinstance(value, str):
                value = _beside(value, folder)
            self.add(keys, value, source, strict=True)

    def add(self, keys: Keys, value: Any, source: str, *, strict: bool = False) -> None:
        """One value. Unless `strict`, a text is read as what the setting wants."""
        path = ".".join(keys)
        shape = self._shape(keys, source)
        if not isinstance(shape, schema.Leaf | schema.Table):
            raise ConfigError(f"{source}: {path} is a table; name one of its settings, such as {path}.{_first(shape)}")
        annotation = dict[str, shape.item] if isinstance(shape, schema.Table) else shape.annotation  # type: ignore[name-defined]  # a type made at run time
        given = value
        try:
            if isinstance(value, str) and not strict:
                value = _from_text(value, annotation)
            value = msgspec.convert(value, annotation, strict=strict or not isinstance(value, str))
        except msgspec.ValidationError as error:
            text = given if isinstance(given, str) and not strict else None
            raise ConfigError(f"{source}: {path}: {schema.sentence(error, annotation, text)}") from error
        if isinstance(value, float) and not math.isfinite(value) and annotation is not float:  # not free, but bounded
            raise ConfigError(f"{source}: {path}: expected a finite number, got {value}")
        container = self._container(keys[:-1], source)
        container[keys[-1]] = value
        self.sources[path] = source

    def _shape(self, keys: Keys, source: str) -> schema.Shape:
        """What is at a path. An error if there is nothing of this name."""
        shape: schema.Shape = Config
        for depth, key in enumerate(keys):
            path = ".".join(keys[: depth + 1])
            if isinstance(shape, type):
                known = schema.fields(shape)
                if key not in known:
                    raise ConfigError(f"{source}: {path} is not a setting{_suggestion(keys[:depth], key, known)}")
                shape = schema.shape_of(known[key].type)
            elif isinstance(shape, schema.Table):
                shape = schema.shape_of(shape.item)
            elif isinstance(shape, schema.Rows):
                if not re.fullmatch(r"[0-9]{1,9}", key):
                    raise ConfigError(f"{source}: {path}: {key!r} is not the number of one of the {keys[0]}")
                shape = shape.item
            else:
                raise ConfigError(f"{source}: {path} is not a setting: {'.'.join(keys[:depth])} is a value")
        return shape

    def _container(self, keys: Keys, source: str) -> Any:
        """The table (or list of tables) at a path, made if it is not there, with the defaults that it comes with."""
        node: Any = self.tree
        shape: schema.Shape = Config
        for depth, key in enumerate(keys):
            if isinstance(shape, schema.Rows):
                index = int(key)
                if index > len(node):
                    raise ConfigError(f"{source}: {'.'.join(keys)}: there are only {len(node)} {keys[0]}")
                if index == len(node):
                    self.sections[".".join(keys[: depth + 1])] = source
                    node.append({})
                node, shape = node[index], shape.item
                continue
            default: Any = None
            if isinstance(shape, type):
                field = schema.fields(shape)[key]
                default, shape = field.default, schema.shape_of(field.type)
            elif isinstance(shape, schema.Table):
                shape = schema.shape_of(shape.item)
            if key not in node or node[key] is None:
                empty: Any = [] if isinstance(shape, schema.Rows) else {}
                self.sections.setdefault(".".join(keys[: depth + 1]), source)
                node[key] = msgspec.to_builtins(default) if isinstance(default, Section) else empty
            node = node[key]
            if depth == len(keys) - 1:
                break
        return node

    def config(self) -> Config:
        """The tree as structs."""
        try:
            config = msgspec.convert(self.tree, Config)
        except msgspec.ValidationError as error:
            # Values were checked one by one: only what has to be said and was not can be wrong.
            missing = re.search(r"required field `(\w+)`(?: - at `\$\.?([^`]*)`)?", str(error))
            if missing is None:
                raise ConfigError(schema.sentence(error)) from error
            section = re.sub(r"\[(\d+)\]", r".\1", missing[2] or "")
            source = self.sections.get(section, DEFAULT)
            raise ConfigError(f"{source}: {section}.{missing[1]} is missing") from error
        for index, model in enumerate(config.models):
            if not model.path:
                raise ConfigError(f"{self.sections[f'models.{index}']}: models.{index}.path is missing")
        return config


def shape_word(value: Any) -> str:
    """What a TOML value is, for people."""
    match value:
        case dict():
            return "a table"
        case list():
            return "a list"
        case str():
            return "a text"
    return str(value)


def _beside(path: str, folder: Path) -> str:
    """A path of a TOML file, seen from where the command runs. What is none, such as `synthetic:...`, stays."""
    if not path or (":" in path and not re.match(r"[^:]+\.py:", path)):
        return path
    return str(folder / path)


def _from_text(text: str, annotation: Any) -> Any:
    """The value that a text of a variable or flag means; the text itself where msgspec can read it."""
    shape = schema.shape_of(annotation)
    if annotation == OptionValue:
        return _toml(text, text)
    if isinstance(shape, schema.Table):
        return _toml(text, text)
    info = msgspec.inspect.type_info(annotation)
    if isinstance(info, msgspec.inspect.ListType):
        if text.lstrip().startswith("["):
            return _toml(text, text)
        parts = [part.strip() for part in text.split(",") if part.strip()]
        texts = isinstance(info.item_type, msgspec.inspect.StrType)
        return parts if texts else _toml(f"[{','.join(parts)}]", parts)
    return text


def _toml(text: str, otherwise: Any) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return otherwise


def _suggestion(parents: Keys, key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"; did you mean {'.'.join((*parents, close[0]))}?" if close else ""


def _first(shape: type[Section] | schema.Rows) -> str:
    if isinstance(shape, schema.Rows):
        return f"0.{next(iter(schema.fields(shape.item)))}"
    return next(iter(schema.fields(shape)))
