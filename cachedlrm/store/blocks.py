"""Initial records from arrays that stay where they are, as those of a model file mapped into memory."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cachedlrm.data.batch import table_offsets


class BlocksInit:
    """Initial records whose columns lie in several arrays. See `cachedlrm.store.init.RowInit`.

    Args:
        tables: of each table its arrays, [rows, columns] or [rows] float32, side by side from the first column of the
            record on; what is missing behind them is zero.
    """

    fill_on_device = None

    def __init__(self, tables: Sequence[Sequence[NDArray[np.float32]]]) -> None:
        self._tables = tables
        self._first_rows = table_offsets(tuple(len(blocks[0]) for blocks in tables))

    def fill(self, rows: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Writes the initial records of ``rows`` [n] into ``out`` [n, width]."""
        table_of = np.searchsorted(self._first_rows, rows, side="right") - 1
        out[...] = 0.0
        for table in np.unique(table_of):
            here = np.flatnonzero(table_of == table)
            local = rows[here] - self._first_rows[table]
            column = 0
            for block in self._tables[table]:
                values = block[local]
                if values.ndim == 1:
                    values = values[:, None]
                out[here, column : column + values.shape[1]] = values
                column += values.shape[1]
