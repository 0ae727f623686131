"""Parsed samples on their way to disk: files that only grow, up to a number of samples that is on record."""

import os
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown
from cachedlrm.data.raw.samples import Samples

DENSE, LABELS = "dense.bin", "labels.bin"
_INT32, _PIECE = np.dtype(np.int32), 1 << 20


def keys_file(table: int) -> str:
    """Name of a table's keys."""
    return f"keys_{table:03}.bin"


def sizes_file(table: int) -> str:
    """Name of the sizes of a table's lists."""
    return f"sizes_{table:03}.bin"


class SampleSpool:
    """Dense features row after row, labels, and each table's keys as files of plain numbers.

    A table of lists has its keys list after list, and the sizes of the lists in a file of their own.

    Args:
        directory: where.
        num_dense: dense features.
        num_tables: tables.
        key_dtype: of the keys.
        num_samples: on record; whatever a killed process wrote after them is cut off.
        list_tables: numbers of those that hold lists.

    Raises:
        UserError: files are shorter than that.
    """

    def __init__(
        self,
        directory: Path,
        num_dense: int,
        num_tables: int,
        key_dtype: np.dtype[Any],
        num_samples: int,
        *,
        list_tables: Collection[int] = (),
    ) -> None:
        self._list_tables = sorted(list_tables)
        lengths = {DENSE: 4 * num_dense * num_samples, LABELS: 4 * num_samples}
        lengths |= {keys_file(table): key_dtype.itemsize * num_samples for table in range(num_tables)}
        lengths |= {sizes_file(table): 4 * num_samples for table in self._list_tables}
        with ExitStack() as stack:
            files = {name: stack.enter_context(open(directory / name, "ab")) for name in lengths}
            for table in self._list_tables:
                num_keys = count_listed(directory / sizes_file(table), 0, num_samples)
                lengths[keys_file(table)] = key_dtype.itemsize * num_keys
            for name, file in files.items():
                if file.tell() < lengths[name]:
                    raise UserError(f"{shown(directory)} is damaged; remove it to begin anew")
                file.truncate(lengths[name])
            self._files = list(files.values())
            self._stack = stack.pop_all()

    def append(self, samples: Samples) -> None:
        """Writes samples after the others."""
        keys = [samples.lists[t].keys if t in samples.lists else keys for t, keys in enumerate(samples.keys)]
        sizes = [samples.lists[table].sizes for table in self._list_tables]
        for file, values in zip(self._files, [samples.dense, samples.labels, *keys, *sizes], strict=True):
            file.write(np.ascontiguousarray(values).data)

    def commit(self) -> None:
        """Forces everything to the disk, so that it may go on record."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())

    def __enter__(self) -> "SampleSpool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def read_numbers(path: Path, dtype: np.dtype[Any], start: int, stop: int, header_bytes: int = 0) -> NDArray[Any]:
    """Numbers ``start`` to ``stop - 1`` of a file of plain numbers; a copy, so that no page stays mapped."""
    return np.fromfile(path, dtype, stop - start, offset=header_bytes + start * dtype.itemsize)


def count_listed(sizes: Path, start: int, stop: int) -> int:
    """Keys in the lists of samples ``start`` to ``stop - 1``, whose sizes are in a file."""
    pieces = (read_numbers(sizes, _INT32, first, min(first + _PIECE, stop)) for first in range(start, stop, _PIECE))
    return sum(int(piece.sum(dtype=np.int64)) for piece in pieces)
