"""Puts the outcomes of many requests together again, row by row, and writes them: `.npz`, `.npy`, `.json`, `.csv`.

The rows of a file are those of the input, in its order and complete: a failed row is null in JSON, empty in CSV, and in
arrays NaN, 0 or an empty text, with their numbers in `failed_rows`. Called by the commands that give results.
"""

import base64
import csv
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import click
import numpy as np
import numpy.typing as npt

from forebay_server.cli.guard import Failed
from forebay_server.errors import ConfigError

if TYPE_CHECKING:
    from forebay_client import ForebayError, Prediction

Array = npt.NDArray[Any]

FORMATS = (".npz", ".npy", ".json", ".csv")


class Failure(NamedTuple):
    """Rows without a result."""

    start: int
    stop: int
    code: str
    """The name of the status code."""
    reason: str
    message: str

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"rows": [self.start, self.stop], "code": self.code, "reason": self.reason, "message": self.message}


class Results:
    """The outcomes so far.

    Args:
        batched: Whether the outputs of a request have a dimension of rows.
    """

    def __init__(self, *, batched: bool) -> None:
        self._batched = batched
        self._pieces: list[tuple[int, int, Prediction | None]] = []
        self.failures: list[Failure] = []
        self.rows = 0
        """Rows with an outcome."""
        self.failed = 0
        """Those without a result."""

    def add(self, start: int, stop: int, outcome: "Prediction | ForebayError") -> None:
        """An outcome of these rows; in their order."""
        if isinstance(outcome, Exception):
            self.fail(Failure(start, stop, outcome.code.name, outcome.reason, outcome.message))
        else:
            self.rows += stop - start
            self._pieces.append((start, stop, outcome))

    def fail(self, failure: Failure) -> None:
        """These rows have no result; in the order of rows."""
        self.rows += failure.stop - failure.start
        self.failed += failure.stop - failure.start
        self.failures.append(failure)
        self._pieces.append((failure.start, failure.stop, None))

    def causes(self) -> Iterator[str]:
        """A line for each cause of failures: how many rows, the code, the reason, and one of the messages."""
        rows: Counter[tuple[str, str]] = Counter()
        messages: dict[tuple[str, str], str] = {}
        for failure in self.failures:
            key = (failure.code, failure.reason)
            rows[key] += failure.stop - failure.start
            messages.setdefault(key, failure.message)
        for (code, reason), count in rows.most_common():
            yield f"{count} rows: {code}{f' ({reason})' if reason else ''}: {messages[code, reason]}"

    def write(self, place: str) -> None:
        """Writes to a file by its suffix, or to stdout (`-`) as JSON.

        Raises:
            Failed: The results don't fit the format.
        """
        suffix = Path(place).suffix.lower()
        if place == "-":
            self._write_json(sys.stdout)
        elif suffix == ".npz":
            np.savez(place, allow_pickle=False, **self._arrays())
        elif suffix == ".npy":
            arrays = self._arrays()
            arrays.pop("failed_rows", None)
            if len(arrays) != 1:
                raise Failed(f"{place}: a .npy file holds one output, not {', '.join(arrays)}; write a .npz file")
            np.save(place, next(iter(arrays.values())), allow_pickle=False)
        else:
            with Path(place).open("w", encoding="utf-8", newline="") as file:
                (self._write_csv if suffix == ".csv" else self._write_json)(file)

    def report(self, seconds: float, sent: int | None = None) -> None:
        """Says on stderr how many rows there were, how fast they came, and why some have no result.

        Args:
            seconds: How long it took.
            sent: The rows that came in this time; None: all.

        Raises:
            Failed: Some have no result.
        """
        rate = f", {(self.rows if sent is None else sent) / seconds:,.0f} rows/s" if seconds > 0 else ""
        click.echo(f"{self.rows:,} rows in {seconds:.2f} s{rate}, {self.failed:,} failed", err=True)
        for cause in self.causes():
            click.echo(f"  {cause}", err=True)
        if self.failures:
            raise Failed(f"{self.failed:,} of {self.rows:,} rows have no result")

    def _names(self) -> list[str]:
        return list(next((prediction for _, _, prediction in self._pieces if prediction is not None), {}))

    def _arrays(self) -> dict[str, Array]:
        """All rows of each output as one array."""
        arrays = {name: self._array(name) for name in self._names()}
        if self.failures:
            rows = [row for failure in self.failures for row in range(failure.start, failure.stop)]
            arrays["failed_rows"] = np.array(rows, np.int64)
        return arrays

    def _array(self, name: str) -> Array:
        pieces: list[Array | None] = []
        for _, _, prediction in self._pieces:
            piece = None if prediction is None else _storable(name, prediction[name])
            pieces.append(piece if piece is None or self._batched else piece[None])
        known = [piece for piece in pieces if piece is not None]
        shapes = {piece.shape[1:] for piece in known}
        if len(shapes) > 1:
            several = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
            raise Failed(f"the rows of output {name!r} differ in their shapes ({several}); write a .json file")
        row, dtype = shapes.pop(), np.result_type(*known)
        array = np.full((self.rows, *row), np.nan if dtype.kind == "f" else np.zeros((), dtype), dtype)
        for (start, stop, _), piece in zip(self._pieces, pieces, strict=True):
            if piece is not None:
                array[start:stop] = piece
        return array

    def _each_row(self, name: str) -> Iterator[Array | None]:
        for start, stop, prediction in self._pieces:
            if prediction is None:
                yield from [None] * (stop - start)
            elif self._batched:
                yield from prediction[name]
            else:
                yield prediction[name]

    def _write_json(self, file: TextIO) -> None:
        ran = next((prediction for _, _, prediction in self._pieces if prediction is not None), None)
        document: dict[str, Any] = {
            "model": ran.model if ran is not None else None,
            "version": ran.version if ran is not None else None,
            "rows": self.rows,
            "outputs": {
                name: [None if row is None else _plain(row) for row in self._each_row(name)] for name in self._names()
            },
        }
        if self.failures:
            document["errors"] = [failure.plain() for failure in self.failures]
        json.dump(document, file, allow_nan=True)
        file.write("\n")

    def _write_csv(self, file: TextIO) -> None:
        arrays = {name: self._array(name) for name in self._names()}
        failed = {row for failure in self.failures for row in range(failure.start, failure.stop)}
        flat = {name: array.reshape(len(array), -1) for name, array in arrays.items()}
        writer = csv.writer(file)
        writer.writerow(
            name if arrays[name].ndim == 1 else f"{name}.{column}"
            for name, array in flat.items()
            for column in range(array.shape[1])
        )
        for row in range(self.rows):
            cells = [_plain(cell) for array in flat.values() for cell in array[row]]
            writer.writerow([""] * len(cells) if row in failed else cells)


def check_place(place: str) -> None:
    """Refuses an output that could not be written, before any work is done.

    Raises:
        ConfigError: The suffix is unknown, or the folder is not there.
    """
    if place == "-":
        return
    if Path(place).suffix.lower() not in FORMATS:
        raise ConfigError(f"{place}: results are written as {', '.join(FORMATS)}, or as JSON to stdout (-)")
    if not Path(place).parent.is_dir():
        raise ConfigError(f"{place}: there is no folder {Path(place).parent}")


def _storable(name: str, array: Array) -> Array:
    """The array in a type that numpy's files have without pickle."""
    if array.dtype.kind == "O":
        if any(element.endswith(b"\0") for element in array.ravel().tolist()):
            raise Failed(f"output {name!r} has texts that end in a zero byte; write a .json file")
        return array.astype(np.bytes_)
    if array.dtype.kind not in "biuf":  # bfloat16
        return array.astype(np.float32)
    return array


def _plain(value: Any) -> Any:
    """An array or a scalar as JSON and CSV know it. Bytes are text if they are UTF-8, else base64."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value] if value.dtype.kind in "OSV" else value.tolist()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    return value.item() if hasattr(value, "item") else value
