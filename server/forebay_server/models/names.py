"""What models may be called, and which files their settings may name.

Names appear in metrics, in file names and in health services, so they are plain. Called by the loader and by whoever
takes names from outside.
"""

import re
from pathlib import Path
from typing import Final

from forebay_server.errors import ConfigError

NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
"""Of models and labels."""


def is_name(text: str) -> bool:
    """Whether a model or label may be called so."""
    return NAME.fullmatch(text) is not None


def check_name(text: str, what: str = "a model") -> str:
    """Gives the name back.

    Raises:
        ConfigError: It is not a name.
    """
    if not is_name(text):
        raise ConfigError(
            f"{what} can't be called {text!r}: 1 to 128 letters, digits, '_', '.' and '-', not starting with '.' or '-'"
        )
    return text


def check_label(text: str) -> str:
    """Gives the label back.

    Raises:
        ConfigError: It is not a name, or it is a number, which would be read as a version.
    """
    if check_name(text, "a label").isdigit():
        raise ConfigError(f"a label can't be the number {text}: that is how versions are named")
    return text


def name_of(path: str) -> str:
    """The name of a model that has none: its file's without suffix, or `object` of `module:object`.

    Raises:
        ConfigError: That is not a name.
    """
    engine, colon, rest = path.partition(":")
    if not colon:
        stem = Path(path).stem
    elif not rest or "=" in rest:  # an engine's name and its options
        stem = engine
    else:
        stem = rest.rpartition(":")[2].rpartition(".")[2]
    return check_name(stem, f"the model of {path!r} (give it a name)")


def inside(root: Path, path: str) -> Path:
    """A path below a root, symbolic links followed.

    Args:
        root: The folder that must not be left.
        path: Relative to it.

    Raises:
        ConfigError: It is absolute, or leaves the root by `..` or by a link.
    """
    base = root.resolve()
    if not path or "\0" in path or Path(path).is_absolute():
        raise ConfigError(f"{path!r} is not a path relative to {root}")
    target = (base / path).resolve()
    if target == base or not target.is_relative_to(base):
        raise ConfigError(f"{path!r} leaves {root}")
    return target
