"""Finds engines: by name, by the suffix of a model's file, or by the form of a path.

Engines are entry points in the group `forebay.engines`, ours as well as others'. The loader and `forebay check` ask
here; nothing is cached, because models are loaded seldom.
"""

import re
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path, PurePath
from typing import Final, cast

from forebay_server.engines.base import EngineFactory
from forebay_server.errors import ConfigError

GROUP: Final = "forebay.engines"

_MODULE_OBJECT = re.compile(r"[^:]*[A-Za-z0-9_]:[A-Za-z_][A-Za-z0-9_.]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An engine for a model, and what to call its factory with."""

    name: str
    factory: EngineFactory
    path: Path | str
    """A `Path` of a file, a `str` of an object (`module:object`) and of engines that read no files."""


def names() -> list[str]:
    """The names of all installed engines."""
    return sorted(_entry_points())


def find(name: str, path: str) -> Found:
    """The engine for a model.

    Args:
        name: The engine's name, or `auto`: then `NAME:...` asks for the engine NAME (`synthetic:base_ms=5`), another
            `module:object` for the python engine, and anything else is a file that is judged by its suffix.
        path: The model's path as the operator wrote it.

    Raises:
        ConfigError: There is no such engine, none takes this suffix, or it can't be imported.
    """
    points = _entry_points()
    prefix, colon, rest = path.partition(":")
    if name != "auto":
        if name not in points:
            raise ConfigError(f"no engine is called {name!r}; installed are {_listed(points)}")
        return _found(points[name], rest if colon and prefix == name else path)
    if colon and prefix in points:
        return _found(points[prefix], rest)
    if "python" in points and _MODULE_OBJECT.fullmatch(path):
        return _found(points["python"], path)
    suffix = PurePath(path).suffix.lower()
    failure: ConfigError | None = None
    suffixes: set[str] = set()
    for point in points.values():
        try:
            factory = _factory(point)
        except ConfigError as error:  # somebody else's engine is broken: only a reason to fail if none other fits
            failure = error
            continue
        suffixes.update(factory.suffixes)
        if suffix in factory.suffixes:
            return Found(name=point.name, factory=factory, path=Path(path))
    if failure is not None:
        raise failure
    kinds = ", ".join(sorted(suffixes)) or "none"
    raise ConfigError(f"{path}: no engine takes a file with the suffix {suffix!r} (known are {kinds}); name one")


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _listed(points: dict[str, EntryPoint]) -> str:
    return ", ".join(sorted(points)) or "none"


def _found(point: EntryPoint, path: str) -> Found:
    factory = _factory(point)
    # Some engines read files and take objects as well; what ends like a file is one.
    named = _MODULE_OBJECT.fullmatch(path) and PurePath(path).suffix.lower() not in factory.suffixes
    return Found(name=point.name, factory=factory, path=Path(path) if factory.suffixes and not named else path)


def _factory(point: EntryPoint) -> EngineFactory:
    try:
        factory = cast("EngineFactory", point.load())
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the engine {point.name!r} can't be imported from {point.value!r}: {error}") from error
    if not isinstance(getattr(factory, "suffixes", None), tuple | list):
        raise ConfigError(f"the engine {point.name!r} ({point.value!r}) doesn't say which suffixes it takes")
    return factory
