"""The row groups of a Parquet file, and their columns' values, checked one by one.

Needs the optional package pyarrow.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown
from cachedlrm.data.files import BadIdError, fold_ids
from cachedlrm.data.raw.columns import plain
from cachedlrm.data.raw.parquet import READ_BYTES, reading_parquet

PREPARE = "python -m cachedlrm.prepare parquet"
"""The command for files that ``--data`` does not take."""


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

    def _read(self, name: str) -> list[pa.Array]:
        """A column of n rows, as Arrow has it.

        Raises:
            UserError: the file cannot be read.
        """
        with (
            reading_parquet(self.path),
            # Column by column: the group as the file has it would be in memory beside the group decoded.
            pyarrow.parquet.ParquetFile(
                self.path,
                metadata=self.metadata,
                pre_buffer=False,
                buffer_size=READ_BYTES,
                page_checksum_verification=True,
            ) as file,
        ):
            column = file.read_row_group(self.number, columns=[name], use_threads=False).column(name)
            chunks = [plain(chunk) for chunk in column.chunks if len(chunk)]
        if len(column) != len(self):
            raise UserError(f"{shown(self.path)} is damaged: {shown(name)} is cut off; write it again")
        return chunks

    def column(self, name: str) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """A column's values [n], in the type they have there, and which of them are missing (0 then), if any are.

        Raises:
            UserError: the file cannot be read.
        """
        chunks, missing = self._read(name), None
        if any(chunk.null_count for chunk in chunks):
            missing = np.concatenate([chunk.is_null().to_numpy(zero_copy_only=False) for chunk in chunks])
            chunks = [chunk.fill_null(pa.scalar(0).cast(chunk.type)) for chunk in chunks]
        return np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in chunks]), missing

    def ids(self, name: str, max_ind_range: int) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
        """A column's ids [n], folded modulo ``max_ind_range`` if that is positive, and which of them are missing.

        Raises:
            UserError: as `column`, or an id is below 0 or above int64.
        """
        values, missing = self.column(name)
        return self._folded(values, max_ind_range, lambda index: self.place(index, name)), missing

    def lists(self, name: str, max_ind_range: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The ids of a column of lists, folded as `ids` [L], and where each row's list begins in them, [n + 1].

        A list that is missing is empty, and an id that is missing is none.

        Raises:
            UserError: as `ids`.
        """
        sizes, parts = [], []
        for chunk in self._read(name):
            size = pc.list_value_length(chunk).fill_null(0).to_numpy().astype(np.int64)
            flat = plain(chunk.flatten())
            if flat.null_count:
                there = flat.is_valid().to_numpy(zero_copy_only=False)
                starts = np.concatenate([[0], np.cumsum(there)])[np.concatenate([[0], np.cumsum(size)])]
                size, flat = np.diff(starts), flat.drop_null()
            sizes.append(size)
            parts.append(flat.to_numpy(zero_copy_only=False))
        starts = np.concatenate([[0], *sizes]).cumsum()

        def place(lookup: int) -> str:
            return self.place(int(np.searchsorted(starts, lookup, side="right")) - 1, name)

        return self._folded(np.concatenate(parts), max_ind_range, place), starts

    def _folded(self, values: NDArray[Any], max_ind_range: int, place: Callable[[int], str]) -> NDArray[np.int64]:
        if values.dtype == np.bool_:
            values = values.view(np.uint8)
        try:
            return fold_ids(values, max_ind_range)
        except BadIdError as error:
            (index,) = error.place
            raise UserError(f"{place(index)}: id {values[index]} {error.what}") from error

    def floats(self, name: str) -> NDArray[np.float32]:
        """A column's numbers [n]; 0 for a missing one, as `cachedlrm.prepare` has it.

        Raises:
            UserError: as `column`, or a value is not finite as float32.
        """
        return self._as_floats(name, self.column(name)[0])

    def _as_floats(self, name: str, values: NDArray[Any]) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            floats = values.astype(np.float32)
        if not np.isfinite(floats).all():
            index = int((~np.isfinite(floats)).argmax())
            where = self.place(index, name)
            raise UserError(f"{where} is {values[index]}, which is not a finite float32; correct or scale the data")
        return floats

    def labels(self, name: str) -> NDArray[np.float32]:
        """A column's labels [n].

        Raises:
            UserError: as `floats`, or a value is missing or not from 0 to 1.
        """
        values, missing = self.column(name)
        if missing is not None:
            where = self.place(int(missing.argmax()), name)
            raise UserError(f"{where} is missing (null) and a label is needed; leave such rows out")
        labels = self._as_floats(name, values)
        wrong = (labels < 0) | (labels > 1)
        if wrong.any():
            index = int(wrong.argmax())
            where = self.place(index, name)
            raise UserError(f"{where} is {labels[index]}; labels are 0 to 1, name another column or correct it")
        return labels

    def largest_id(self, name: str, max_ind_range: int, *, is_list: bool = False) -> int:
        """The largest id of a column, once folded; from the file's statistics if they hold it, else from the ids.

        -1 if all are missing.

        Raises:
            UserError: an id that `ids` refuses.
        """
        statistics = self._statistics(name)
        if statistics is not None and statistics.has_min_max and statistics.min >= 0:
            largest = int(statistics.max)
            if max_ind_range <= 0 or largest < max_ind_range:
                return largest
        if is_list:
            return int(self.lists(name, max_ind_range)[0].max(initial=-1))
        ids, missing = self.ids(name, max_ind_range)
        return int(ids.max()) if missing is None else int(ids[~missing].max(initial=-1))

    def check_label(self, name: str) -> None:
        """Looks for missing labels, if the file's statistics count them.

        Raises:
            UserError: a label is missing.
        """
        statistics = self._statistics(name)
        if statistics is not None and statistics.has_null_count and statistics.null_count:
            self.labels(name)  # raises, with the row

    def num_values(self, name: str) -> int:
        """Values in a column, of all its lists; the rows, if the file does not say."""
        leaf = self.leaves.get(name)
        return len(self) if leaf is None else int(self.metadata.row_group(self.number).column(leaf).num_values)

    def _statistics(self, name: str) -> pyarrow.parquet.Statistics | None:
        leaf = self.leaves.get(name)
        return None if leaf is None else self.metadata.row_group(self.number).column(leaf).statistics

    def place(self, index: int, name: str) -> str:
        """Where a value is, for messages; rows count from 1, as `cachedlrm.prepare` names them."""
        return f"{shown(self.path)}: row {self.first_row + index + 1}: {shown(name)}"


def row_groups(path: Path, metadata: pyarrow.parquet.FileMetaData) -> Iterator[RowGroup]:
    """Those of a file that are not empty.

    Raises:
        UserError: a row group claims fewer than zero rows.
    """
    leaves = {}
    for leaf in range(metadata.num_columns):
        column = metadata.schema.column(leaf)
        if column.name == column.path:  # b in a struct a has the path of a column a.b
            leaves[column.name] = leaf
        elif column.max_repetition_level == 1 and len(parts := column.path.rsplit(".", 2)) == 3:
            leaves[parts[0]] = leaf  # of a list, whose path ends in .list.element
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
