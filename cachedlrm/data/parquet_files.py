"""The row groups of Parquet files: which there are, and their columns' values, checked one by one.

Needs the optional package pyarrow.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.machine import free_host_bytes
from cachedlrm.base.text import shown
from cachedlrm.base.units import format_bytes
from cachedlrm.data.folding import BadIdError, fold_ids
from cachedlrm.data.parquet_columns import Columns, NamedColumns, check_columns, choose_columns, read_spec
from cachedlrm.data.raw.inputs import find_inputs
from cachedlrm.data.raw.parquet import plain, reading_parquet

KEPT_GROUPS = 2
"""Row groups that are decoded at a time: a batch may lie across the boundary of two."""

_PROBE_BYTES = 1 << 16
_PREPARE = "python -m cachedlrm.prepare parquet"


@dataclass(frozen=True)
class RowGroup:
    """A piece of a file that is decoded as one.

    Attributes:
        path: of the file.
        metadata: of the file.
        leaves: numbers of its columns by their names.
        number: in the file.
        first_row: in the file, from 0.
    """

    path: Path
    metadata: pyarrow.parquet.FileMetaData
    leaves: Mapping[str, int]
    number: int
    first_row: int

    def __len__(self) -> int:
        return int(self.metadata.row_group(self.number).num_rows)

    def column(self, name: str) -> NDArray[Any]:
        """A column's values [n], in the type they have there.

        Raises:
            UserError: the file cannot be read, or a value is missing.
        """
        with (
            reading_parquet(self.path),
            # Column by column: the group as the file has it would be in memory beside the group decoded.
            pyarrow.parquet.ParquetFile(
                self.path, metadata=self.metadata, pre_buffer=False, page_checksum_verification=True
            ) as file,
        ):
            column = file.read_row_group(self.number, columns=[name], use_threads=False).column(name)
            missing = column.is_null().to_numpy() if column.null_count else None
            parts = [plain(chunk).to_numpy(zero_copy_only=False) for chunk in column.chunks if len(chunk)]
        if missing is not None:
            where = self.place(int(missing.argmax()), name)
            raise UserError(f"{where} is missing (null); fill in a value, or let {_PREPARE} do that")
        if len(column) != len(self):
            raise UserError(f"{shown(self.path)} is damaged: {shown(name)} is cut off; write it again")
        return np.concatenate(parts)

    def ids(self, name: str, max_ind_range: int) -> NDArray[np.int64]:
        """A column's ids [n], folded modulo ``max_ind_range`` if that is positive.

        Raises:
            UserError: the same, or an id below 0 or above int64.
        """
        values = self.column(name)
        if values.dtype == np.bool_:
            values = values.view(np.uint8)
        try:
            return fold_ids(values, max_ind_range)
        except BadIdError as error:
            (index,) = error.place
            raise UserError(f"{self.place(index, name)}: id {values[index]} {error.what}") from error

    def floats(self, name: str) -> NDArray[np.float32]:
        """A column's numbers [n].

        Raises:
            UserError: the same, or a value that is not finite as float32.
        """
        values = self.column(name)
        with np.errstate(over="ignore"):
            floats = values.astype(np.float32)
        if not np.isfinite(floats).all():
            index = int((~np.isfinite(floats)).argmax())
            where = self.place(index, name)
            raise UserError(f"{where} is {values[index]}, which is no finite float32; correct or scale the data")
        return floats

    def largest_id(self, name: str, max_ind_range: int) -> int:
        """The largest id of a column, once folded; from the file's statistics where they tell, else counted.

        Raises:
            UserError: an id that `ids` refuses.
        """
        statistics = self._statistics(name)
        if statistics is not None and statistics.has_min_max and statistics.min >= 0:
            largest = int(statistics.max)
            if max_ind_range <= 0 or largest < max_ind_range:
                return largest
        return int(self.ids(name, max_ind_range).max())

    def check_missing(self, names: Sequence[str]) -> None:
        """Looks for missing values, where the file's statistics count them.

        Raises:
            UserError: a value of one of the columns is missing.
        """
        for name in names:
            statistics = self._statistics(name)
            if statistics is not None and statistics.has_null_count and statistics.null_count:
                self.column(name)  # knows the row

    def _statistics(self, name: str) -> pyarrow.parquet.Statistics | None:
        return self.metadata.row_group(self.number).column(self.leaves[name]).statistics

    def place(self, index: int, name: str) -> str:
        """Where a value is, for messages; rows count from 1, as `cachedlrm.prepare` names them."""
        return f"{shown(self.path)}: row {self.first_row + index + 1}: {shown(name)}"


@dataclass(frozen=True)
class ParquetFiles:
    """Files of one schema. Use `open_parquet`.

    Attributes:
        words: what the user called them, for messages.
        names: of the columns.
        groups: in order, none of them empty.
        first_samples: number of each group's first sample, and of all samples.
    """

    words: str
    names: Columns
    groups: tuple[RowGroup, ...]
    first_samples: tuple[int, ...]

    @property
    def columns(self) -> tuple[int, int]:
        """Sparse and dense columns."""
        return len(self.names.sparse), len(self.names.dense)


def open_parquet(words: str, text: str, like: ParquetFiles | None = None) -> ParquetFiles:
    """Opens a file, or the files of a folder in natural order; reads their footers and the first row of each row group.

    Args:
        words: option and value that name them, for messages.
        text: the path and, behind colons, columns; see `cachedlrm.data.parquet_columns`.
        like: files whose columns are taken where ``text`` names none.

    Raises:
        UserError: a file cannot be read, is no Parquet file or has not the columns; or there are no rows.
    """
    path, named = read_spec(words, text)
    try:
        paths = find_inputs([path])
    except UserError as error:
        raise UserError(f"{words}: {error}") from error
    if path.is_dir():
        paths = [file for file in paths if not file.name.startswith("_")]  # _SUCCESS, _metadata: notes of the writer's
    names = like.names if like is not None and named == NamedColumns() else None
    groups: list[RowGroup] = []
    for file_path in paths:
        with (
            reading_parquet(file_path),
            pyarrow.parquet.ParquetFile(file_path, pre_buffer=False, buffer_size=_PROBE_BYTES) as file,
        ):
            names = names or choose_columns(words, file.schema_arrow, named)
            check_columns(file_path, file.schema_arrow, names)
            inside = list(_row_groups(file_path, file.metadata))
            for group in inside:
                # Asked for a damaged footer's statistics, Arrow ends the process; reading a row fails as it should.
                next(file.iter_batches(1, row_groups=[group.number], columns=list(names.all), use_threads=False), None)
        for group in inside:
            group.check_missing(names.all)
        groups += inside
    if names is None or not groups:
        raise UserError(f"{words}: no rows in it; name another file")
    _check_memory(words, names, groups)
    return ParquetFiles(words, names, tuple(groups), tuple(accumulate(map(len, groups), initial=0)))


def _row_groups(path: Path, metadata: pyarrow.parquet.FileMetaData) -> Iterator[RowGroup]:
    """Those of a file that are not empty.

    Raises:
        UserError: the file says that one has less than no rows.
    """
    leaves = {}
    for leaf in range(metadata.num_columns):
        column = metadata.schema.column(leaf)
        if column.name == column.path:  # b in a struct a has the path of a column a.b
            leaves[column.name] = leaf
    first = 0
    for number in range(metadata.num_row_groups):
        if metadata.row_group(number).num_rows < 0:
            raise UserError(
                f"{shown(path)} is damaged: row group {number} has a number of rows below 0; write it again"
            )
        group = RowGroup(path, metadata, leaves, number, first)
        if len(group):
            yield group
        first += len(group)


def _check_memory(words: str, names: Columns, groups: Sequence[RowGroup]) -> None:
    largest = max(groups, key=len)
    needed = KEPT_GROUPS * 4 * len(largest) * (len(names.sparse) + len(names.dense) + 1)
    if needed > free_host_bytes():
        raise UserError(
            f"{words}: two row groups of {len(largest):,} rows take {format_bytes(needed)} of memory and "
            f"{format_bytes(free_host_bytes())} are free; write files of smaller ones, or use {_PREPARE}"
        )


def find_table_rows(folders: Sequence[ParquetFiles], max_ind_range: int, most_rows: int) -> tuple[int, ...]:
    """Rows that hold every id of files with equal columns: one more than each column's largest, as with npy files.

    Args:
        folders: training samples, and held-out ones where they are Parquet files too.
        max_ind_range: ids are folded modulo this if positive.
        most_rows: the most rows there can be in all tables.

    Raises:
        UserError: an id that is missing or negative, or more rows than there can be.
    """
    rows = []
    for table in range(folders[0].columns[0]):
        largest = -1
        for files in folders:
            for group in files.groups:
                if largest + 1 != max_ind_range:  # there is no larger one
                    largest = max(largest, group.largest_id(files.names.sparse[table], max_ind_range))
        rows.append(largest + 1)
    if sum(rows) > most_rows:
        name = folders[0].names.sparse[max(range(len(rows)), key=rows.__getitem__)]
        change = "fold ids with --max-ind-range" if max_ind_range <= 0 else "lower --max-ind-range to"
        raise UserError(
            f"{folders[0].words}: {shown(name)} has ids up to {max(rows) - 1}, and the largest ids of all columns make "
            f"{sum(rows)} rows, of which there can be {most_rows}; {change} {most_rows // len(rows)}"
        )
    return tuple(rows)
