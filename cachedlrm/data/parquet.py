"""Parquet files, read as they are: ``--data parquet:PATH``, whose ids are numbers already.

PATH is a file or a folder of them, one stream in natural order. Ids are rows of their tables, or folded into them;
`cachedlrm.prepare` takes texts, missing values and any integers, and gives rows by frequency. Needs the optional
package pyarrow.
"""

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.data.batch import FILE_ADVICE, Batch, make_batch, spans
from cachedlrm.data.parquet_columns import Columns
from cachedlrm.data.parquet_files import KEPT_GROUPS, ParquetFiles, RowGroup


class ParquetSource:
    """A `Source` over the rows of files. A row group is decoded when it is reached; the last two stay in memory.

    Args:
        files: the rows.
        table_rows: rows of each table; as many as there are sparse columns.
        max_ind_range: ids are folded modulo this if positive.
    """

    max_lookups_per_bag = 1

    def __init__(self, files: ParquetFiles, table_rows: tuple[int, ...], max_ind_range: int = -1) -> None:
        self.table_rows = table_rows
        self.num_dense = files.columns[1]
        self.num_samples = files.first_samples[-1]
        self._files = files
        self._max_ind_range = max_ind_range
        self._lock = threading.Lock()
        self._decoded: dict[int, _Decoded] = {}

    def read(self, start: int, stop: int) -> Batch:
        """Samples ``start`` to ``stop - 1``, of several row groups where the range spans them.

        Raises:
            UserError: a value is missing, not finite or out of range; names it.
        """
        num_tables, num_dense = self._files.columns
        dense, labels = np.empty((stop - start, num_dense), np.float32), np.empty(stop - start, np.float32)
        ids = np.empty((stop - start, num_tables), np.int64)
        with self._lock:
            for number, part, out in spans(self._files.first_samples, start, stop):
                group = self._group(number)
                dense[out], labels[out], ids[out] = group.dense[:, part].T, group.labels[part], group.ids[:, part].T
        rows = ids.ravel()
        return make_batch(dense, rows, np.arange(len(rows) + 1), labels, self.table_rows, self._files.words, start)

    def _group(self, number: int) -> "_Decoded":
        if number not in self._decoded:
            if len(self._decoded) == KEPT_GROUPS:
                del self._decoded[next(iter(self._decoded))]
            self._decoded[number] = self._decode(self._files.groups[number])
        return self._decoded[number]

    def _decode(self, group: RowGroup) -> "_Decoded":
        names = self._files.names
        decoded = _Decoded.empty(len(group), names)
        for table, (name, num_rows) in enumerate(zip(names.sparse, self.table_rows, strict=True)):
            ids = group.ids(name, self._max_ind_range)
            if ids.max() >= num_rows:
                index = int(ids.argmax())
                where = group.place(index, name)
                raise UserError(f"{where}: id {ids[index]} is outside 0..{num_rows - 1}; {FILE_ADVICE.beyond}")
            decoded.ids[table] = ids
        for column, name in enumerate(names.dense):
            decoded.dense[column] = group.floats(name)
        decoded.labels[:] = group.floats(names.label)
        wrong = (decoded.labels < 0) | (decoded.labels > 1)
        if wrong.any():
            index = int(wrong.argmax())
            where = group.place(index, names.label)
            raise UserError(f"{where} is {decoded.labels[index]}; labels are 0 to 1, name another column or correct it")
        return decoded


@dataclass(frozen=True)
class _Decoded:
    """n rows of a row group, column after column as they are decoded.

    Attributes:
        ids: [num_tables, n] int32.
        dense: [num_dense, n] float32.
        labels: [n] float32.
    """

    ids: NDArray[np.int32]
    dense: NDArray[np.float32]
    labels: NDArray[np.float32]

    @classmethod
    def empty(cls, count: int, names: Columns) -> "_Decoded":
        ids = np.empty((len(names.sparse), count), np.int32)  # there are fewer than 2^31 rows
        return cls(ids, np.empty((len(names.dense), count), np.float32), np.empty(count, np.float32))
