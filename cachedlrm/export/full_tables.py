"""Whole embedding tables, piece by piece: initial records, and over them those of rows that were touched.

So a table may be larger than memory wherever a model leaves the cache: export, model files, quantisation, ONNX.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cachedlrm.cache.embedding_cache import EmbeddingCache
from cachedlrm.export.formats.piecewise import PiecewiseTensor
from cachedlrm.options.architecture import Architecture, pooling_name
from cachedlrm.store.host import RecordsBetween
from cachedlrm.store.init import RowInit
from cachedlrm.store.packing import as_kept, numbers_of
from cachedlrm.store.records import RecordLayout

_CHUNK_BYTES = 16 << 20


def chunk_rows(width: int) -> int:
    """Rows of a piece of a table whose records have ``width`` columns, so that a piece takes little memory."""
    return max(1, _CHUNK_BYTES // (4 * width))


class Records(Protocol):
    """The records of all rows of a group of tables."""

    def between(self, first: int, last: int) -> NDArray[np.float32]:
        """Records of rows ``first`` to ``last - 1`` as they are kept, [last - first, width]."""
        ...


class TouchedRecords:
    """Initial records, but for rows that were touched.

    Args:
        init: of the others.
        rows: [n] int64, in order.
        records: theirs, by index there.
        width: columns of a record.
    """

    def __init__(self, init: RowInit, rows: NDArray[np.int64], records: RecordsBetween, width: int) -> None:
        self._init = init
        self._rows = rows
        self._records = records
        self._width = width

    def between(self, first: int, last: int) -> NDArray[np.float32]:
        """See `Records`."""
        out = np.empty((last - first, self._width), np.float32)
        self._init.fill(np.arange(first, last), out)
        begin, end = np.searchsorted(self._rows, [first, last])
        out[self._rows[begin:end] - first] = self._records(int(begin), int(end))
        return out


def current_records(cache: EmbeddingCache) -> list[Records]:
    """The records of each group of a cache that has no batch in flight, now and until it trains on."""
    return [TouchedRecords(group.init, *group.touched(), group.layout.width) for group in cache.groups]


@dataclass(frozen=True)
class FullTable:
    """One table of a model.

    Attributes:
        name: of the weight, in the reference's state dict.
        pooling_name: of the pooling weights there, if its rows have them.
        first_row: in its group.
        num_rows: rows.
        layout: columns of a record.
        group: records of its group.
    """

    name: str
    pooling_name: str
    first_row: int
    num_rows: int
    layout: RecordLayout
    group: Records

    def tensor(self, columns: slice | int, kept: bool = False) -> PiecewiseTensor:
        """Some columns of all records' numbers, [num_rows, columns]; a single one makes a vector.

        Args:
            columns: of the parameters or of the state.
            kept: in the floats that the records have, not in 32 bits.
        """
        width = () if isinstance(columns, int) else (columns.stop - columns.start,)
        return PiecewiseTensor((self.num_rows, *width), lambda: self._pieces(columns, kept))

    def _pieces(self, columns: slice | int, kept: bool) -> Iterator[NDArray[Any]]:
        end = self.first_row + self.num_rows
        step = chunk_rows(self.layout.columns)
        for first in range(self.first_row, end, step):
            records = self.group.between(first, min(first + step, end))
            yield as_kept(self.layout, records, columns) if kept else numbers_of(self.layout, records)[:, columns]

    def parameters(self, kept: bool = False) -> dict[str, PiecewiseTensor]:
        """The weight [num_rows, dim] and, if there are, the pooling weights [num_rows] by name; see `tensor`."""
        parameters = {self.name: self.tensor(slice(0, self.layout.dim), kept)}
        if self.layout.weighted:
            parameters[self.pooling_name] = self.tensor(self.layout.dim, kept)
        return parameters


def full_tables(architecture: Architecture, records: Sequence[Records]) -> list[FullTable]:
    """The tables of a model, group by group.

    Args:
        architecture: of the model.
        records: of each group.
    """
    tables = []
    for group, layout, source in zip(architecture.groups, architecture.layouts, records, strict=True):
        first_row = 0
        for table in group:
            tables.append(FullTable(table.name, pooling_name(table), first_row, table.num_rows, layout, source))
            first_row += table.num_rows
    return tables
