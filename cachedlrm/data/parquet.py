"""Parquet files, read as they are: ``--data parquet:PATH``, whose ids are numbers already.

PATH is a file or a folder of them, one stream in natural order. Ids are rows of their tables, or folded into them;
`cachedlrm.prepare` takes texts, missing values and any integers, and gives rows by frequency. Needs the optional
package pyarrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.machine import free_host_bytes
from cachedlrm.base.text import shown
from cachedlrm.base.units import format_bytes
from cachedlrm.data.batch import FILE_ADVICE, MOST_ROWS
from cachedlrm.data.files import KEPT_BLOCKS, BlockSource, DecodedBlock, numbered
from cachedlrm.data.parquet_columns import Columns, NamedColumns, check_columns, choose_columns, read_columns
from cachedlrm.data.raw.inputs import find_inputs
from cachedlrm.data.raw.parquet import reading_parquet
from cachedlrm.data.row_groups import PREPARE, RowGroup, row_groups
from cachedlrm.data.spec import DataRequest, SourceSpec, too_many_rows
from cachedlrm.data.vocabulary import IDS_AS_THEY_ARE, Vocabulary

_PROBE_BYTES = 1 << 16


@dataclass(frozen=True)
class ParquetSpec(SourceSpec):
    """``parquet:PATH`` with columns after it (`cachedlrm.data.parquet_columns`): files of one schema.

    Attributes:
        names: of the columns.
        groups: in order, none of them empty.
        max_ind_range: ids are folded modulo this if positive.
    """

    words: str
    names: Columns
    groups: tuple[RowGroup, ...]
    max_ind_range: int

    @classmethod
    def read(cls, words: str, argument: str, request: DataRequest, train: SourceSpec | None) -> Self:
        """Opens a file, or the files of a folder in natural order: footers, and the first row of each row group.

        Columns that are not named are those of ``train``, if it is of this kind.
        """
        path, named = read_columns(words, argument)
        try:
            paths = find_inputs([path])
        except UserError as error:
            raise UserError(f"{words}: {error}") from error
        names = train.names if isinstance(train, ParquetSpec) and named == NamedColumns() else None
        groups: list[RowGroup] = []
        for file_path in paths:
            with (
                reading_parquet(file_path),
                pyarrow.parquet.ParquetFile(file_path, pre_buffer=False, buffer_size=_PROBE_BYTES) as file,
            ):
                names = names or choose_columns(words, file.schema_arrow, named, request.needs_labels)
                check_columns(file_path, file.schema_arrow, names)
                inside = list(row_groups(file_path, file.metadata))
                for group in inside:
                    # Asked for a damaged footer's statistics, Arrow ends the process; reading a row fails as it should.
                    rows = file.iter_batches(1, row_groups=[group.number], columns=list(names.all), use_threads=False)
                    next(rows, None)
            if names.label is not None:
                for group in inside:
                    group.check_label(names.label)
            groups += inside
        if names is None or not groups:
            raise UserError(f"{words}: no rows in it; name another file")
        _check_memory(words, names, groups)
        return cls(words, names, tuple(groups), request.max_ind_range)

    @property
    def columns(self) -> tuple[int, int]:
        """See `SourceSpec`."""
        return len(self.names.sparse), len(self.names.dense)

    @property
    def vocabulary(self) -> Vocabulary:
        """None but the ids."""
        return Vocabulary(IDS_AS_THEY_ARE).folded(self.max_ind_range)

    @property
    def table_names(self) -> tuple[str, ...]:
        """Those of the columns."""
        return self.names.sparse

    def table_rows(self) -> tuple[int, ...]:
        """One more than each column's largest id; from the files' statistics if they hold it, else from the ids."""
        rows = []
        for name in self.names.sparse:
            largest = -1
            for group in self.groups:
                if largest + 1 != self.max_ind_range:  # there is no larger one
                    is_list = name in self.names.lists
                    largest = max(largest, group.largest_id(name, self.max_ind_range, is_list=is_list))
            rows.append(max(1, largest + 1))  # all ids may be missing
        if sum(rows) > MOST_ROWS:
            name = self.names.sparse[max(range(len(rows)), key=rows.__getitem__)]
            where = f"{self.words}: {shown(name)} has ids up to {max(rows) - 1}"
            raise too_many_rows(where, tuple(rows), self.max_ind_range)
        return tuple(rows)

    @property
    def files(self) -> tuple[Path, ...]:
        """See `SourceSpec`; those with rows."""
        return tuple(dict.fromkeys(group.path for group in self.groups))

    def open(self, table_rows: tuple[int, ...], num_dense: int) -> "ParquetSource":
        """See `SourceSpec`."""
        return ParquetSource(self, table_rows)


def _check_memory(words: str, names: Columns, groups: Sequence[RowGroup]) -> None:
    def values(group: RowGroup) -> int:
        of_lists = sum(group.num_values(name) + 2 * len(group) for name in names.lists)  # ids, and where lists begin
        return len(group) * (len(names.all) - len(names.lists)) + of_lists

    largest = max(groups, key=values)
    needed = KEPT_BLOCKS * 4 * values(largest)
    if needed > free_host_bytes():
        raise UserError(
            f"{words}: two row groups of {len(largest):,} rows take {format_bytes(needed)} of memory and "
            f"{format_bytes(free_host_bytes())} are free; write files of smaller ones, or use {PREPARE}"
        )


class ParquetSource(BlockSource):
    """The rows of files, row group by row group.

    Args:
        spec: of the files.
        table_rows: rows of each table; as many as there are sparse columns.
    """

    def __init__(self, spec: ParquetSpec, table_rows: tuple[int, ...]) -> None:
        has_labels = spec.names.label is not None
        super().__init__(spec.words, numbered(map(len, spec.groups)), table_rows, spec.columns[1], has_labels)
        self._groups, self._names, self._max_ind_range = spec.groups, spec.names, spec.max_ind_range
        if spec.names.lists:
            self.max_lookups_per_bag = tuple(self._longest(name) for name in spec.names.sparse)

    def _longest(self, name: str) -> int:
        """The most ids of a row in a column, for which lists are read once."""
        if name not in self._names.lists:
            return 1
        return max(int(np.diff(group.lists(name, self._max_ind_range)[1]).max()) for group in self._groups)

    def _decode(self, number: int) -> DecodedBlock:
        group, names = self._groups[number], self._names
        all_ids: list[NDArray[np.int32]] = []  # column after column, as they are decoded
        all_starts: list[NDArray[np.int64] | None] = []
        dense = np.empty((len(names.dense), len(group)), np.float32)
        for name, num_rows in zip(names.sparse, self.table_rows, strict=True):
            ids, starts = self._column(group, name)
            if ids.max(initial=-1) >= num_rows:
                index = int(ids.argmax())
                row = index if starts is None else int(np.searchsorted(starts, index, side="right")) - 1
                where = group.place(row, name)
                raise UserError(f"{where}: id {ids[index]} is outside 0..{num_rows - 1}; {FILE_ADVICE.beyond}")
            all_ids.append(ids.astype(np.int32))
            all_starts.append(starts)
        for column, name in enumerate(names.dense):
            dense[column] = group.floats(name)
        labels = None if names.label is None else group.labels(names.label)
        return DecodedBlock(dense.T, all_ids, labels, all_starts)

    def _column(self, group: RowGroup, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """A column's ids, and where each row's list begins in them, if it has lists: of one id or none, of some."""
        if name in self._names.lists:
            return group.lists(name, self._max_ind_range)
        ids, missing = group.ids(name, self._max_ind_range)
        if missing is None:
            return ids, None
        return ids[~missing], np.concatenate([[0], np.cumsum(~missing)])
