"""Reads an engine's own options: known names, right types, one clear sentence otherwise."""

from collections.abc import Mapping
from typing import TypeVar

from forebay_server.engines.base import ModelLoadError, ParameterValue

Value = TypeVar("Value", bool, int, float, str)


class Options:
    """An engine's options while it reads them; `done` complains about what nobody has read."""

    def __init__(self, engine: str, values: Mapping[str, ParameterValue]) -> None:
        self._engine = engine
        self._values = dict(values)
        self.known: list[str] = []
        """The names that were asked for."""

    def take(self, name: str, default: Value) -> Value:
        """The value of an option, of the type of its default; an int will do for a float.

        Raises:
            ModelLoadError: It is of another type.
        """
        self.known.append(name)
        if name not in self._values:
            return default
        value = self._values.pop(name)
        wanted = type(default)
        if wanted is float and type(value) is int:
            return wanted(value)
        if type(value) is not wanted:
            raise ModelLoadError(f"engine option {name!r} must be a {wanted.__name__}, not {value!r}")
        return value

    def take_prefixed(self, prefix: str) -> dict[str, ParameterValue]:
        """All options whose names begin so, without the beginning; of any type."""
        self.known.append(f"{prefix}NAME")
        names = [name for name in self._values if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._values.pop(name) for name in names}

    def rest(self) -> dict[str, ParameterValue]:
        """Everything that nobody has read; it counts as read."""
        rest, self._values = self._values, {}
        return rest

    def done(self) -> None:
        """Says that all options are read.

        Raises:
            ModelLoadError: Some are left.
        """
        if self._values:
            unknown = ", ".join(sorted(self._values))
            known = ", ".join(sorted(self.known))
            raise ModelLoadError(f"the engine {self._engine!r} has no option {unknown}; it has {known}")
