"""The operator's Python code: finding the object that a path names, and calling it while a model is loaded."""

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from forebay_server.engines.base import ModelLoadError


def resolve(path: str, folder: str) -> Any:
    """The object that `module:object` or `folder/module.py:object` names.

    Args:
        path: What the operator wrote.
        folder: Where the module is looked for beside PYTHONPATH; empty: nowhere.

    Raises:
        ModelLoadError: There is no such object, or importing its module raised.
    """
    source, colon, dotted = path.rpartition(":")
    if not colon or not source or not dotted:
        raise ModelLoadError(f"{path}: it is not of the form module:object")
    if source.endswith(".py"):
        file = Path(source)
        if not file.is_file():
            raise ModelLoadError(f"{file}: no such file")
        folder, source = str(file.parent), file.stem
    target: Any = _module(path, source, folder)
    for name in dotted.split("."):
        try:
            target = getattr(target, name)
        except AttributeError:
            raise ModelLoadError(f"{path}: {source} has no {dotted}") from None
    return target


def _module(path: str, name: str, folder: str) -> ModuleType:
    if folder:
        entry = str(Path(folder).resolve())
        if not Path(entry).is_dir():
            raise ModelLoadError(f"{path}: the folder {folder} of the option 'path' does not exist")
        if entry not in sys.path:
            sys.path.insert(0, entry)
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
        return module if not folder or _lies_in(module, entry) else _namesake(name, entry)
    except ModuleNotFoundError as error:
        where = folder or "PYTHONPATH (or name a folder in the engine option 'path')"
        raise ModelLoadError(f"{path}: no module {error.name!r} in {where}") from error
    except Exception as error:  # whatever the operator's module does when it is imported
        raise ModelLoadError(f"{path}: importing {name} raised {type(error).__name__}: {error}") from error


def _lies_in(module: ModuleType, folder: str) -> bool:
    return module.__file__ is not None and Path(module.__file__).resolve().is_relative_to(folder)


def _namesake(name: str, folder: str) -> ModuleType:
    """The module of a folder whose name another module has already, under a name of its own.

    Raises:
        ModuleNotFoundError: The folder has no such module.
    """
    own_name = f"{name}@{folder}"
    if own_name in sys.modules:
        return sys.modules[own_name]
    found = importlib.machinery.PathFinder.find_spec(name, [folder])
    if found is None or found.loader is None or found.origin is None:
        raise ModuleNotFoundError(name=name)
    spec = importlib.util.spec_from_file_location(own_name, found.origin)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(name=name)
    module = sys.modules[own_name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[own_name]
        raise
    return module


def guarded(path: str, what: str, call: Callable[[], Any]) -> Any:
    """What the operator's code returns.

    Raises:
        ModelLoadError: It raised.
    """
    try:
        return call()
    except Exception as error:  # the operator's code
        raise ModelLoadError(f"{path}: {what} raised {type(error).__name__}: {error}") from error
