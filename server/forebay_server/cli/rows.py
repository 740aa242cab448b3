"""Reads rows for a model from files: `.npy`, `.npz`, `.json`, `.jsonl` and `.csv`, in the types that the model wants.

* `.npy`: an array. `.npz`: arrays by input name.
* `.json`: `{"x": [...], ...}` by input name, or a list of rows, each an object by input name, or (for one input) its
  values. `.jsonl`: such a row on each line.
* `.csv`: a row on each line. The first line may name inputs (`age,income`) and their elements (`x.0,x.1`); else all
  columns together are the row of the only input, under names of their own or none.

Numbers are cast if nothing is lost but the precision of floats. A row may be given flat if the model's shape says how
to fold it. Called by the commands that send rows.
"""

import csv
import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from forebay_server.errors import ConfigError

if TYPE_CHECKING:
    from forebay_client import ModelVersion, TensorSpec

Array = npt.NDArray[Any]
ONLY = ""
"""The name of values that come without one: they are for the model's only input."""
LONGEST_CELL: Final = (1 << 31) - 1
"""Characters of a cell of a CSV file: texts are as long as models take them. (Python's limit is 131,072.)"""


class Rows(NamedTuple):
    """What is to be sent: the arrays of all rows, and how to cut them."""

    arrays: Mapping[str, Array]
    total: int
    batched: bool
    """Whether a request takes rows, else exactly one."""
    stacked: bool
    """Whether dimension 0 counts rows; not so if the files hold one request of a model that is not batched."""

    def request(self, start: int, stop: int) -> dict[str, Array]:
        """The inputs of these rows."""
        if not self.stacked:
            return dict(self.arrays)
        if not self.batched:
            return {name: array[start] for name, array in self.arrays.items()}
        return {name: array[start:stop] for name, array in self.arrays.items()}


def read_rows(version: "ModelVersion", given: Sequence[str]) -> Rows:
    """Reads the files that a command was given.

    Args:
        version: The model that the rows are for.
        given: Files, or `name=file` for one input.

    Raises:
        ConfigError: A file can't be read, or does not fit the model.
    """
    specs = {spec.name: spec for spec in version.inputs}
    found: dict[str, tuple[Any, str]] = {}
    for text in given:
        name, path = _name_and_path(text, specs)
        content = _read(path)
        if path.suffix.lower() == ".csv":
            content = _named_columns(content[ONLY], specs)
        for key, values in content.items():
            where = name or key or _only(specs, path)
            if where not in specs:
                raise ConfigError(f"{path}: the model has no input {where!r}; it takes {', '.join(specs)}")
            found[where] = (values, str(path))
    missing = [name for name in specs if name not in found]
    if missing:
        raise ConfigError(f"nothing is given for the input {missing[0]!r}; give it {missing[0]}=FILE")
    batched = all(spec.batched for spec in specs.values())
    arrays = {name: _fit(_cast(*found[name], spec), spec, found[name][1]) for name, spec in specs.items()}
    stacked = batched or all(array.ndim == len(specs[name].shape) + 1 for name, array in arrays.items())
    if not stacked:
        return Rows(arrays, 1, batched=False, stacked=False)
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        rows = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise ConfigError(f"the inputs differ in their number of rows: {rows}")
    return Rows(arrays, next(iter(counts.values())), batched=batched, stacked=True)


def _name_and_path(text: str, specs: Mapping[str, "TensorSpec"]) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if equals and (name in specs or not Path(text).exists()):
        if name not in specs:
            raise ConfigError(f"{text}: the model has no input {name!r}; it takes {', '.join(specs)}")
        return name, Path(path)
    return "", Path(text)


def _only(specs: Mapping[str, "TensorSpec"], path: Path) -> str:
    if len(specs) != 1:
        raise ConfigError(f"{path}: the model takes {', '.join(specs)}, and the file does not say which one it is for")
    return next(iter(specs))


def _read(path: Path) -> dict[str, Any]:
    """The values in a file by input name: arrays, or lists."""
    readers = {".npy": _read_npy, ".npz": _read_npz, ".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{path}: rows are read from {', '.join(readers)} files")
    try:
        return reader(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (ValueError, EOFError, RecursionError, csv.Error, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error


def _read_npy(path: Path) -> dict[str, Any]:
    loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(loaded, np.ndarray):
        raise ValueError("this is not a .npy file")  # noqa: TRY004  # a bad file, not a bad argument
    return {ONLY: loaded}


def _read_npz(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:  # numpy would leave one open that is damaged
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("this is not a .npz file")  # noqa: TRY004  # a bad file, not a bad argument
        with loaded:
            arrays = dict(loaded.items())
    # A single array that was saved without a name.
    return {ONLY: arrays["arr_0"]} if list(arrays) == ["arr_0"] else arrays


def _read_json(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(document, dict):
        return document
    if not isinstance(document, list):
        raise ValueError("expected an object by input name, or a list of rows")  # noqa: TRY004  # as above
    return _columns(document)


def _read_jsonl(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as lines:
        return _columns([json.loads(line) for line in lines if line.strip()])


def _columns(rows: list[Any]) -> dict[str, Any]:
    """Rows of objects as columns; other rows are those of the only input."""
    if not rows or not isinstance(rows[0], dict):
        return {ONLY: rows}
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != rows[0].keys():
            raise ValueError(f"row {number} has other names than row 0")
    return {name: [row[name] for row in rows] for name in rows[0]}


def _read_csv(path: Path) -> dict[str, Any]:
    csv.field_size_limit(LONGEST_CELL)
    with path.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.reader(lines) if row]
    if not rows:
        raise ValueError("there are no rows")
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(f"row {number} has {len(row)} columns, and row 0 has {len(rows[0])}")
    return {ONLY: rows}


def _named_columns(rows: list[list[str]], specs: Mapping[str, "TensorSpec"]) -> dict[str, Any]:
    """The columns of a CSV file by the input that they belong to, if its first line names inputs."""
    bases = [re.sub(r"(\.\d+|\[\d+\])$", "", cell.strip()) for cell in rows[0]]
    if all(base in specs for base in bases):
        columns: dict[str, list[int]] = {}
        for index, base in enumerate(bases):
            columns.setdefault(base, []).append(index)
        return {
            name: [row[places[0]] if len(places) == 1 else [row[place] for place in places] for row in rows[1:]]
            for name, places in columns.items()
        }
    # Names of features over the numbers of the only input.
    numeric = len(specs) == 1 and next(iter(specs.values())).data_type not in {"BYTES", "BOOL"}
    if numeric and len(rows) > 1 and not any(map(_is_number, rows[0])):
        return {ONLY: rows[1:]}
    return {ONLY: rows}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _cast(values: Any, where: str, spec: "TensorSpec") -> Array:
    """The values in the type of the input."""
    if spec.data_type == "BYTES":
        return _texts(values, where, spec)
    try:
        array = _whole(values) if spec.data_type == "UINT64" else np.asarray(values)
    except ValueError as error:
        raise ConfigError(f"{where}: the rows of {spec.name!r} differ in their shapes") from error
    if array.dtype == spec.dtype:
        return array
    if spec.data_type == "BF16" and array.dtype == np.dtype("V2"):  # how numpy saves bfloat16
        return array.view(spec.dtype)
    if array.dtype.kind in "SUO":
        array = _numbers(array, where, spec)
    if array.dtype.kind not in "biuf" and array.dtype != spec.dtype:
        raise ConfigError(f"{where}: input {spec.name!r} takes {spec.data_type}, not {array.dtype}")
    with np.errstate(all="ignore"):
        cast = array.astype(spec.dtype)
        if spec.data_type in {"FP16", "BF16", "FP32", "FP64"}:
            lost = ~np.isfinite(cast.astype(np.float64)) & np.isfinite(array.astype(np.float64))
        else:
            lost = cast != array
    if lost.any():
        raise ConfigError(f"{where}: input {spec.name!r} takes {spec.data_type}, which can't hold {array[lost][0]}")
    return cast


def _texts(values: Any, where: str, spec: "TensorSpec") -> Array:
    # Lists not by way of numpy's own strings, which lose the zeros at their ends.
    array = values if isinstance(values, np.ndarray) else np.asarray(values, np.object_)
    if array.dtype.kind not in "SUO":
        raise ConfigError(f"{where}: input {spec.name!r} takes texts, not {array.dtype}")
    for element in array.ravel().tolist():
        if not isinstance(element, str | bytes):
            raise ConfigError(f"{where}: input {spec.name!r} takes texts, not {json.dumps(element)[:40]}")
    return array.astype(object)


def _whole(values: Any) -> Array:
    """The array that numpy makes of values; whole numbers of which some are beyond INT64 as they are, not rounded."""
    array = np.asarray(values)
    if isinstance(values, np.ndarray) or array.dtype.kind != "f":
        return array
    numbers = np.asarray(values, np.object_)
    return numbers if all(isinstance(number, int) for number in numbers.ravel().tolist()) else array


def _numbers(array: Array, where: str, spec: "TensorSpec") -> Array:
    """Texts (of a CSV file) as numbers of the model's kind, exactly."""
    target = np.dtype(np.float64) if spec.data_type in {"FP16", "BF16", "FP32", "FP64"} else spec.dtype
    words = {"true": "1", "false": "0"} if spec.data_type == "BOOL" else {}
    try:
        if words:
            flat = [words.get(str(text).strip().lower(), text) for text in array.ravel().tolist()]
            return np.asarray(flat).astype(np.int64).reshape(array.shape)
        return array.astype(target)
    except (ValueError, TypeError, OverflowError):
        for index, text in enumerate(array.ravel().tolist()):
            try:
                word = words.get(str(text).strip().lower(), text)
                np.asarray([word], np.object_ if array.dtype.kind == "O" else None).astype(
                    np.int64 if words else target
                )
            except (ValueError, TypeError, OverflowError):
                row = index // max(1, array.size // len(array))
                raise ConfigError(f"{where}: row {row}: {text!r} is not a {spec.data_type} value") from None
        raise


def _fit(array: Array, spec: "TensorSpec", where: str) -> Array:
    """The array with the dimensions that the model wants, if it says clearly how."""
    row = spec.shape[1:]
    if not spec.batched or (array.ndim == len(spec.shape) and _matches(row, array.shape[1:])):
        return array
    if _matches(row, array.shape):
        return array[None]  # one row
    if not row and array.ndim == 2 and array.shape[1] == 1:  # a file of one column
        return array[:, 0]
    if array.ndim < len(spec.shape) and row.count(-1) <= 1:
        try:
            return array.reshape((len(array) if array.ndim else 1, *row))
        except ValueError:
            pass
    raise ConfigError(
        f"{where}: input {spec.name!r} has the shape {list(array.shape)}, and the model takes {list(spec.shape)}"
    )


def _matches(wanted: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether a shape is what a specification wants."""
    return len(wanted) == len(shape) and all(want in (-1, have) for want, have in zip(wanted, shape, strict=True))
