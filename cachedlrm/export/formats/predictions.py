"""Predictions in a file, written as they come: ``.npy``, ``.csv`` or ``.parquet``."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError, check_package
from cachedlrm.base.files import whole_file

Write = Callable[[NDArray[np.float32], NDArray[np.float32] | None], None]
"""Takes the next predictions [n] and their labels [n], where there are any."""

_SUFFIXES = (".npy", ".parquet", ".csv")
_ROW_GROUP = 1 << 20


def check_suffix(path: Path) -> None:
    """Refuses a file of another kind.

    Raises:
        UserError: its name ends in none of the three, or a package is missing.
    """
    if path.suffix not in _SUFFIXES:
        raise UserError(f"--out {path}: end its name in {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}")
    if path.suffix == ".parquet":
        check_package(f"--out {path}", "pyarrow", "prepare")


@contextmanager
def prediction_file(path: Path, num_samples: int) -> Iterator[Write]:
    """Where to write predictions to; the file appears only when complete.

    ``.npy`` is float32 [num_samples]. The others have a column ``prediction``, and ``label`` where there are labels.

    Args:
        path: whose suffix says what is written.
        num_samples: predictions in all.

    Raises:
        UserError: it could not be written.
    """
    with whole_file(path) as file:
        if path.suffix == ".npy":
            header = {"descr": "<f4", "fortran_order": False, "shape": (num_samples,)}
            np.lib.format.write_array_header_1_0(file, header)
            yield lambda predictions, _: _write(file, predictions.astype("<f4", copy=False).data.cast("B"))
        elif path.suffix == ".csv":
            yield _CsvWriter(file)
        else:
            writer = _ParquetWriter(file)
            yield writer
            writer.close()


def _write(file: BinaryIO, data: Any) -> None:
    file.write(data)


class _CsvWriter:
    """Lines with the fewest digits that give the same float32 again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._is_first = True

    def __call__(self, predictions: NDArray[np.float32], labels: NDArray[np.float32] | None) -> None:
        if self._is_first:
            self._file.write(b"prediction\n" if labels is None else b"prediction,label\n")
            self._is_first = False
        columns = [[str(prediction) for prediction in predictions]]
        if labels is not None:
            columns.append([f"{label:g}" for label in labels.tolist()])
        self._file.write(("\n".join(map(",".join, zip(*columns, strict=True))) + "\n").encode())


class _ParquetWriter:
    """Row groups of a million rows."""

    def __init__(self, file: BinaryIO) -> None:
        self._arrow = importlib.import_module("pyarrow")
        self._parquet = importlib.import_module("pyarrow.parquet")
        self._file = file
        self._writer: Any = None
        self._parts: list[tuple[NDArray[np.float32], NDArray[np.float32] | None]] = []
        self._waiting = 0

    def __call__(self, predictions: NDArray[np.float32], labels: NDArray[np.float32] | None) -> None:
        self._parts.append((predictions, labels))
        self._waiting += len(predictions)
        if self._waiting >= _ROW_GROUP:
            self._write()

    def _write(self) -> None:
        columns = {"prediction": np.concatenate([predictions for predictions, _ in self._parts])}
        labels = [label for _, label in self._parts if label is not None]
        if labels:
            columns["label"] = np.concatenate(labels)
        table = self._arrow.table(columns)
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)
        self._parts, self._waiting = [], 0

    def close(self) -> None:
        if self._parts:
            self._write()
        if self._writer is not None:
            self._writer.close()
