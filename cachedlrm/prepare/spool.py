"""Parsed samples on their way to disk: files that only grow, up to a number of samples that is on record."""

import os
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


def keys_file(table: int) -> str:
    """Name of a table's keys."""
    return f"keys_{table:03}.bin"


class SampleSpool:
    """Dense features row after row, labels, and each table's keys as files of plain numbers.

    Args:
        directory: where.
        num_dense: dense features.
        num_tables: tables.
        key_dtype: of the keys.
        num_samples: on record; whatever a killed process wrote after them is cut off.

    Raises:
        UserError: files are shorter than that.
    """

    def __init__(
        self, directory: Path, num_dense: int, num_tables: int, key_dtype: np.dtype[Any], num_samples: int
    ) -> None:
        widths = {DENSE: 4 * num_dense, LABELS: 4}
        widths |= {keys_file(table): key_dtype.itemsize for table in range(num_tables)}
        with ExitStack() as stack:
            self._files = [stack.enter_context(open(directory / name, "ab")) for name in widths]
            for file, width in zip(self._files, widths.values(), strict=True):
                if file.tell() < num_samples * width:
                    raise UserError(f"{shown(directory)} is damaged; remove it to begin anew")
                file.truncate(num_samples * width)
            self._stack = stack.pop_all()

    def append(self, samples: Samples) -> None:
        """Writes samples after the others."""
        for file, values in zip(self._files, [samples.dense, samples.labels, *samples.keys], strict=True):
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
